"""What a potential sees: the edges of each atom, and one door to the neighbours.

`gather` is the only way from an atom to its neighbours. The heat flux listens at this door (heat flux by time shift:
`J_pot = -dU/dlambda` when every edge sees its neighbour displaced in time by `lambda . r_ij`), so a model that uses it
gets the exact flux for any number of message-passing steps and needs to know nothing about it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmd_thermal._arrays import map_blocks, take
from jaxmd_thermal.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from jaxmd_thermal.neighbors import NeighborList

PADDING = 2.0
"""Empty slots hold an edge of this many cutoffs: finite, differentiable, and beyond reach of every potential."""

ACCELERATOR_ROWS = 1024

BYTES = 8
"""Of each value of a block: models choose their rows for it."""

LANES = 16
"""Numbers that are added side by side in sums over features."""


@jax.custom_jvp
def time_shifted(values, delays, rates, senders):
    """`values[senders]` with each neighbour displaced in time by its delay, at zero delay.

    The value is the plain gather, so that the compiler shares it with an undisplaced evaluation; only the derivative
    knows of the displacement: d/d(delay) = dx_j/dt. That rule is differentiable again, so gradients of the heat flux
    (training, driving force) reach the rates and the positions as they must.

    Args:
      values: (atoms, ...) node quantity.
      delays: (rows, K) fs. Must be zero.
      rates: (atoms, ...) dx/dt along the velocities.
      senders: (rows, K).
    """
    return take(values, senders)


@time_shifted.defjvp
def _time_shifted_jvp(primals, tangents):
    values, _, rates, senders = primals
    d_values, d_delays = tangents[0], tangents[1]
    moved = take(rates, senders)
    return take(values, senders), take(d_values, senders) + _each_times(d_delays.astype(values.dtype), moved)


def _each_times(factors, values):
    """(n, K) times (n, K, ...), so that the transpose, a sum over all that `...` stands for, is vectorised.

    XLA's own sum along the last axis adds one number after the other on CPU; here it adds vectors, of LANES or of the last axis,
    and a matrix product, which it does not merge into that sum, adds those up.
    """
    size = math.prod(values.shape[2:])
    if size % LANES:
        return factors.reshape(factors.shape + (1,) * (values.ndim - 2)) * values
    wide = values.shape[-1] if values.ndim > 3 and values.shape[-1] % LANES == 0 else LANES
    lanes = jnp.matmul(factors[..., None], jnp.ones((1, wide), factors.dtype), precision="highest")
    product = lanes[:, :, None] * values.reshape(*values.shape[:2], size // wide, wide)
    return product.reshape(values.shape)


@jax.custom_jvp
def delays_along(edges, shift):
    """(rows, K) delays `shift . r_ij`, at `shift` = 0: zero, with the derivative r_ij."""
    return jnp.zeros(edges.shape[:-1], edges.dtype)


@delays_along.defjvp
def _delays_along_jvp(primals, tangents):
    edges, _ = primals
    return delays_along(*primals), edges @ tangents[1]


@jax.custom_jvp
def strained(edges, strain):
    """`edges (1 + strain)` at `strain` = 0. As above: the value stays the one that other evaluations share."""
    return edges


@strained.defjvp
def _strained_jvp(primals, tangents):
    edges, strain = primals
    return strained(edges, strain), tangents[0] + edges @ tangents[1]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _replayed(function, known, *arguments):
    return known


@_replayed.defjvp
def _replayed_jvp(function, primals, tangents):
    known, arguments = primals[0], primals[1:]
    return _replayed(function, known, *arguments), jax.jvp(function, arguments, tangents[1:])[1]


def replay(function, known):
    """`function()`, whose value is `known` already from another evaluation: only its derivatives are computed.

    Compilers share repeated expressions, but not repeated loops; this does it for them.
    """
    # All that the function closes over becomes an argument: whole numbers too, or traced ones would leak.
    program, shapes = jax.make_jaxpr(function, return_shape=True)()
    structure = jax.tree.structure(shapes)

    def converted(*arguments):
        return jax.tree.unflatten(structure, jax.core.eval_jaxpr(program.jaxpr, arguments))

    return _replayed(converted, known, *program.consts)


def rows_at_a_time(block: int | None) -> int | None:
    """Rows of a block on this device: models choose what fits a CPU's cache; an accelerator must be filled as well."""
    return block if block is None or jax.default_backend() == "cpu" else max(block, ACCELERATOR_ROWS)


class Recorder:
    """Collects the node quantities that a model gathers and the results of its loops, in the order in which it does."""

    def __init__(self):
        self.gathered = []
        self.computed = []


@dataclass
class Displaced:
    """Time-shift form: `shift` is lambda (3,) in fs/Å, or `delays` are one for each edge; both are zero.

    `velocities` are those of the extended array, `rates` (of what was gathered) and `computed` are what the recorder
    collected, in the same order.
    """

    velocities: Any
    rates: list
    computed: list
    shift: Any = None
    delays: Any = None
    used: int = 0
    replayed: int = 0


@dataclass(frozen=True)
class Graph:
    """Edges of a structure, or of a block of its rows.

    For authors of potentials: `edge_vectors`, `mask`, `numbers`, `neighbor_numbers`, `gather`, `map_rows`.
    """

    extended: Any
    rows: Any
    index: Any
    owners: Any
    numbers: Any
    all_numbers: Any
    first_row: Any
    cutoff: float
    dtype: Any
    strain: Any = None
    listener: Recorder | Displaced | None = None
    free_edges: Any = None
    local: bool = False  # rows are evaluated one block at a time: nothing may be gathered
    carried: int = 1  # numbers for each value: itself, and its derivatives along given directions

    @classmethod
    def of(
        cls,
        positions,
        cell,
        numbers,
        neighbors: NeighborList,
        cutoff: float,
        dtype=None,
        *,
        strain=None,
        listener=None,
        local: bool = False,
        carried: int = 1,
    ) -> Graph:
        """Graph of a whole structure, differentiable in positions, cell, strain and listener."""
        extended = neighbors.extended(positions, cell)
        return cls(
            extended=extended,
            rows=extended[: positions.shape[0]],
            index=neighbors.index,
            owners=neighbors.owners,
            numbers=numbers,
            all_numbers=numbers,
            first_row=0,
            cutoff=cutoff,
            dtype=dtype or positions.dtype,
            strain=strain,
            listener=listener,
            local=local,
            carried=max(carried, 2) if isinstance(listener, Recorder) else carried,
        )

    def with_edges(self, edges) -> Graph:
        """The same rows with their edge vectors as a free variable, to be differentiated."""
        return replace(self, free_edges=edges)

    @property
    def n_atoms(self) -> int:
        return self.index.shape[0]

    @cached_property
    def occupied(self):
        """(atoms, K) whether a slot holds a neighbour at all; an empty slot points at its own row."""
        rows = self.first_row + jnp.arange(self.index.shape[0], dtype=self.index.dtype)
        return self.index != rows[:, None]

    @cached_property
    def _delays(self):
        assert isinstance(self.listener, Displaced)
        if self.listener.delays is not None:
            return self.listener.delays
        return delays_along(take(self.extended, self.index) - self.rows[:, None], self.listener.shift)

    @cached_property
    def raw_edges(self):
        """(atoms, K, 3) in the precision of the positions; zero in empty slots."""
        if isinstance(self.listener, Displaced):
            there = time_shifted(self.extended, self._delays, self.listener.velocities, self.index)
        else:
            there = take(self.extended, self.index)
        edges = there - self.rows[:, None]
        return edges if self.strain is None else strained(edges, self.strain)

    @cached_property
    def edge_vectors(self):
        """(atoms, K, 3) Å, from each atom to its neighbours; empty slots hold a vector beyond every cutoff."""
        if self.free_edges is not None:
            return self.free_edges
        # Formed in the precision of the positions; only the small difference is rounded to the model's.
        far = jnp.array([PADDING * self.cutoff, 0.0, 0.0], self.raw_edges.dtype)
        return jnp.where(self.occupied[..., None], self.raw_edges, far).astype(self.dtype)

    @cached_property
    def distances_squared(self):
        """(atoms, K) Å^2."""
        return jnp.sum(self.edge_vectors**2, axis=-1)

    @cached_property
    def mask(self):
        """(atoms, K) whether a slot holds a neighbour within the cutoff."""
        return self.occupied & (self.distances_squared < self.cutoff**2)

    @cached_property
    def senders(self):
        """(atoms, K) atoms that the slots belong to."""
        return take(self.owners, self.index)

    @cached_property
    def neighbor_numbers(self):
        """(atoms, K) atomic numbers of the neighbours."""
        return take(self.all_numbers, self.senders)

    def within(self, cutoff: float) -> Graph:
        """The same edges, with the mask of a shorter cutoff."""
        if cutoff > self.cutoff:
            raise InputError(
                f"a graph made for {self.cutoff} Å cannot serve a cutoff of {cutoff} Å: build it for {cutoff} Å"
            )
        return self if cutoff == self.cutoff else replace(self, cutoff=cutoff)

    def gather(self, values):
        """(atoms, ...) quantity of the atoms -> (atoms, K, ...) quantity of their neighbours.

        The only door to the neighbours. In empty slots it holds some atom's values: multiply by `mask`, or by a
        function that vanishes at the cutoff.
        """
        if self.local:
            raise UnsupportedError(
                "this potential declares row_local = True but gathers a quantity of its neighbours: "
                "set row_local = False, so that forces and heat flux follow the message"
            )
        values = jnp.asarray(values)
        if not jnp.issubdtype(values.dtype, jnp.inexact):
            return take(values, self.senders)
        return self._gather(self._announce(values))

    def _announce(self, values):
        """Tell the listener of a gathered node quantity; returns it together with its rates, if they are asked for."""
        if values.shape[0] != self.all_numbers.shape[0]:
            raise InputError(
                f"gather takes a quantity of all {self.all_numbers.shape[0]} atoms, but got the shape {values.shape}"
            )
        if isinstance(self.listener, Recorder):
            self.listener.gathered.append(values)
        elif isinstance(self.listener, Displaced):
            rates = self.listener.rates[self.listener.used]
            self.listener.used += 1
            return values, rates
        return values, None

    def _gather(self, announced):
        values, rates = announced
        if rates is None:
            return take(values, self.senders)
        return time_shifted(values, self._delays, rates, self.senders)

    def block(self, start, size: int) -> Graph:
        """Graph of the rows start .. start + size; `start` may be traced."""

        def cut(x):
            return jax.lax.dynamic_slice_in_dim(x, start, size)

        listener = self.listener
        if isinstance(listener, Displaced) and listener.delays is not None:
            listener = replace(listener, delays=cut(listener.delays))
        return replace(
            self,
            listener=listener,
            free_edges=None if self.free_edges is None else cut(self.free_edges),
            rows=cut(self.rows),
            index=cut(self.index),
            numbers=cut(self.numbers),
            first_row=self.first_row + start,
        )

    def map_rows(self, function, gathered=(), rows=(), *, block: int | None = None):
        """`function(graph, *gathered, *rows)` on blocks of rows, recomputed in the backward pass.

        Memory then does not grow with edges times features. `gathered` are (atoms, ...) quantities that the function
        receives as (rows, K, ...) of the neighbours, `rows` are (atoms, ...) that it receives as (rows, ...). It must
        return arrays (or a pytree of them) with the rows as leading axis.
        """
        announced = [self._announce(jnp.asarray(x)) for x in gathered]
        n, block = self.n_atoms, rows_at_a_time(block)
        size = self.carried * jnp.dtype(self.dtype).itemsize
        if block is not None and size > BYTES and jax.default_backend() == "cpu":
            block = max(1, block * BYTES // size)  # what is carried beside the values fills the cache, too
        if block is None or block >= n:
            return function(self, *[self._gather(a) for a in announced], *rows)

        def one(start):
            part = self.block(start, block)
            # Taken, not sliced: the transpose is then an addition in place, not of an array of all rows.
            mine = [take(x, start + jnp.arange(block, dtype=start.dtype)) for x in rows]
            return function(part, *[part._gather(a) for a in announced], *mine)

        def loop():
            return map_blocks(jax.checkpoint(one), n, block)

        listener = self.listener
        if isinstance(listener, Displaced):
            listener.replayed += 1
            return replay(loop, listener.computed[listener.replayed - 1])
        out = loop()
        if isinstance(listener, Recorder):
            listener.computed.append(out)
        return out
