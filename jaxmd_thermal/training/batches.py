"""Batches of structures as one graph: disjoint unions of few shapes, packed anew for every epoch.

Structures are sorted by the neighbours of their atoms into a few buckets; all batches of a bucket have one shape, so few
programs are compiled. What is drawn (order, columns of the Hessian) depends on (seed, epoch, index) alone.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.training.data import Frame, check_frames
from jaxmd_thermal.training.neighborhoods import Neighborhood, neighborhood

ROOM = 1.1
"""A batch has room for this many times the mean atoms of its structures."""

KEPT = 4096
"""Neighbourhoods kept in memory."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Structures as one graph. A, G, H, K, C: atoms, structures, images, slots, columns; what pads has no mask.

    Attributes:
      positions: (A, 3) Å; cell: (G, 3, 3) Å; numbers, graph: (A,) atomic numbers, structure of each atom.
      index: (A, K) rows of (atoms, then images); an empty slot points at its own row.
      owner: (H,) atoms that the images repeat; shift: (H, 3) lattice vectors.
      atoms: (A,) whether an atom is real.
      sizes: (G,) atoms of each structure, 0 for one that is not there.
      energy: (G,), has_energy: (G,); forces: (A, 3), has_forces: (A,); stress: (G, 3, 3), has_stress: (G,).
      columns: (C, G) degrees of freedom, counted through the batch, has_columns: (C, G); hessian, third: (C, A, 3),
        has_hessian, has_third: (C, A).
    """

    positions: Any
    cell: Any
    numbers: Any
    graph: Any
    index: Any
    owner: Any
    shift: Any
    atoms: Any
    sizes: Any
    energy: Any
    has_energy: Any
    forces: Any
    has_forces: Any
    stress: Any
    has_stress: Any
    columns: Any
    has_columns: Any
    hessian: Any
    has_hessian: Any
    third: Any
    has_third: Any

    def extended(self, positions, cell):
        """(A + H, 3) places of atoms and images, Å; what `Graph.of` asks of a neighbour list."""
        lattice = cell[self.graph[self.owner]]
        images = positions[self.owner] + jnp.einsum("hx,hxy->hy", self.shift, lattice)
        return jnp.concatenate([positions, images])

    @property
    def owners(self):
        """(A + H,) atom of each row."""
        return jnp.concatenate([jnp.arange(self.numbers.shape[0], dtype=jnp.int32), self.owner])


@dataclass(frozen=True)
class Shape:
    """Room of a batch: structures, atoms, images, slots."""

    graphs: int
    atoms: int
    images: int
    slots: int


@dataclass(frozen=True)
class Pack:
    """Frames that form a batch, and the shape of their bucket."""

    shape: Shape
    frames: tuple[int, ...]


def _up(value: float, multiple: int) -> int:
    return max(multiple, math.ceil(value / multiple) * multiple)


def buckets_of(costs: Sequence[tuple[int, int]], count: int) -> list[list[int]]:
    """Indices sorted into at most `count` groups of similar (atoms, slots), so that padding costs least.

    A structure costs its atoms times the slots of its group. Groups are runs in the order of the slots; the best runs are
    found exactly, by dynamic programming over distinct numbers of slots.
    """
    slots = np.array([k for _, k in costs])
    atoms = np.array([n for n, _ in costs])
    levels = np.unique(slots)
    weight = np.array([atoms[slots == level].sum() for level in levels], float)
    below = np.concatenate([[0.0], np.cumsum(weight)])
    best = np.full((count + 1, len(levels) + 1), np.inf)
    cut = np.zeros((count + 1, len(levels) + 1), int)
    best[:, 0] = 0.0
    for groups in range(1, count + 1):
        for end in range(1, len(levels) + 1):
            options = best[groups - 1, :end] + (below[end] - below[:end]) * levels[end - 1]
            cut[groups, end] = int(np.argmin(options))
            best[groups, end] = options[cut[groups, end]]
    out: list[list[int]] = []
    end = len(levels)
    for groups in range(count, 0, -1):
        start = cut[groups, end]
        if start < end:
            inside = (slots >= levels[start]) & (slots <= levels[end - 1])
            out.append(np.flatnonzero(inside).tolist())
        end = start
    return out[::-1]


class Batches:
    """Batches of a data set.

    Args:
      frames: labelled structures.
      cutoff: Å, of the potential.
      batch_size: structures of a batch, at most; small ones fill it, large ones (more than `ROOM` times the mean) share less.
      buckets: shapes, at most.
      columns: columns of the Hessian drawn for every structure that has some.
      seed: of order and columns.
      species: atomic numbers that the potential knows.

    Raises:
      InputError: what `check_frames` finds, or numbers below one.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        cutoff: float,
        batch_size: int = 1,
        *,
        buckets: int = 3,
        columns: int = 1,
        seed: int = 0,
        species: Sequence[int] | None = None,
    ):
        if min(batch_size, buckets, columns) < 1:
            raise InputError(
                f"batch_size {batch_size}, buckets {buckets} and columns {columns} must be whole numbers of at least 1"
            )
        check_frames(frames, species)
        self.frames = list(frames)
        self.cutoff = cutoff
        self.columns = columns
        self.seed = seed
        self._neighborhood = lru_cache(maxsize=KEPT)(lambda i: neighborhood(self.frames[i], cutoff))
        sizes = [self._size(i) for i in range(len(self.frames))]
        groups = buckets_of([(n, _up(k, 4)) for n, _, k in sizes], min(buckets, len(self.frames)))
        self._shape_of: dict[int, Shape] = {}
        self._size_of = sizes
        for members in groups:
            atoms, images, slots = (np.array([sizes[i][part] for i in members]) for part in range(3))
            graphs = min(batch_size, len(members))

            def room(values: np.ndarray, graphs: int = graphs) -> int:
                tight = int(np.sort(values)[-graphs:].sum())  # never more than the largest together
                return _up(min(tight, max(values.max(), ROOM * graphs * values.mean())), 8)

            shape = Shape(graphs, room(atoms), room(images), _up(slots.max(), 4))
            self._shape_of.update(dict.fromkeys(members, shape))

    def _size(self, i: int) -> tuple[int, int, int]:
        around = self._neighborhood(i)
        return self.frames[i].n_atoms, len(around.owner), around.slots

    @property
    def shapes(self) -> list[Shape]:
        """The distinct shapes."""
        return sorted(set(self._shape_of.values()), key=lambda s: (s.slots, s.atoms))

    def plan(self, epoch: int | None) -> list[Pack]:
        """Batches of one epoch, as a function of (seed, epoch) only; None: in the order of the frames (validation)."""
        n = len(self.frames)
        order = np.arange(n) if epoch is None else np.random.default_rng([self.seed, epoch]).permutation(n)
        packs: list[Pack] = []
        open_packs: dict[Shape, list[int]] = {}
        for i in (int(x) for x in order):
            shape = self._shape_of[i]
            inside = open_packs.setdefault(shape, [])
            if inside and not self._fits(shape, [*inside, i]):
                packs.append(Pack(shape, tuple(inside)))
                inside = open_packs[shape] = []
            inside.append(i)
            if len(inside) == shape.graphs:
                packs.append(Pack(shape, tuple(inside)))
                open_packs[shape] = []
        packs += [Pack(shape, tuple(rest)) for shape, rest in open_packs.items() if rest]
        return packs

    def steps(self, epoch: int | None, parts: int = 1, accumulate: int = 1) -> list[list[tuple[Pack, ...]]]:
        """Steps of an epoch: each `accumulate` groups of up to `parts` packs of one shape (fewer at the end)."""
        groups: list[tuple[Pack, ...]] = []
        waiting: dict[Shape, list[Pack]] = {}
        for pack in self.plan(epoch):
            inside = waiting.setdefault(pack.shape, [])
            inside.append(pack)
            if len(inside) == parts:
                groups.append(tuple(inside))
                inside.clear()
        groups += [tuple(rest) for rest in waiting.values() if rest]
        return [groups[i : i + accumulate] for i in range(0, len(groups), accumulate)]

    def count(self, epochs: int, parts: int = 1, accumulate: int = 1) -> int:
        """Steps of so many epochs; each packs its structures in another order, and so maybe into more or fewer."""
        return sum(len(self.steps(epoch, parts, accumulate)) for epoch in range(epochs))

    def _fits(self, shape: Shape, members: list[int]) -> bool:
        atoms, images, _ = np.sum([self._size_of[i] for i in members], axis=0)
        return len(members) <= shape.graphs and atoms <= shape.atoms and images <= shape.images

    def assemble(self, pack: Pack, epoch: int | None = None) -> Batch:
        """The batch of a pack; columns are drawn from (seed, epoch, index of the frame), None: always the same ones."""
        drawn = [self._drawn(i, epoch) for i in pack.frames]
        return union(
            [self.frames[i] for i in pack.frames],
            [self._neighborhood(i) for i in pack.frames],
            pack.shape,
            drawn,
            self.columns,
        )

    def _drawn(self, i: int, epoch: int | None) -> np.ndarray:
        """Rows of `Frame.columns` that are used."""
        known = self.frames[i].columns
        if known is None:
            return np.zeros(0, int)
        words = [self.seed, 1, i] if epoch is None else [self.seed, 0, epoch, i]
        return np.random.default_rng(words).permutation(len(known))[: self.columns]

    def sources(self, pack: Pack) -> list[str]:
        """Where the structures of a pack came from, for messages."""
        return [self.frames[i].source for i in pack.frames]

    def parts(self, group: tuple[Pack, ...], epoch: int | None, parts: int) -> list[Batch]:
        """The batches of a group, filled up to `parts` with empty ones."""
        made = [self.assemble(pack, epoch) for pack in group]
        return made + [empty_like(made[0])] * (parts - len(made))

    def stream(self, epoch: int | None) -> Iterator[tuple[Pack, Batch]]:
        """Packs of an epoch with their batches; the next ones are made while the device works."""
        return prefetched((lambda p=p: (p, self.assemble(p, epoch))) for p in self.plan(epoch))


def prefetched(makers: Iterable[Callable[[], Any]], ahead: int = 2) -> Iterator[Any]:
    """Results of the makers in order, made on a thread up to `ahead` in advance; errors are raised where they are due."""
    results: queue.Queue = queue.Queue(maxsize=ahead)
    stop, done = threading.Event(), object()

    def work():
        try:
            for make in makers:
                if stop.is_set():
                    return
                results.put((make(), None))
            results.put((done, None))
        except BaseException as error:  # handed to the consumer
            results.put((done, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            value, error = results.get()
            if error is not None:
                raise error
            if value is done:
                return
            yield value
    finally:
        stop.set()
        while thread.is_alive():
            try:
                results.get(timeout=0.01)
            except queue.Empty:
                pass


def empty_like(batch: Batch) -> Batch:
    """A batch of the same shape in which nothing has a label."""
    masks = ("atoms", "has_energy", "has_forces", "has_stress", "has_columns", "has_hessian", "has_third")
    return replace(batch, **{name: np.zeros_like(getattr(batch, name)) for name in masks})


def union(
    frames: Sequence[Frame],
    around: Sequence[Neighborhood],
    shape: Shape,
    drawn: Sequence[np.ndarray] | None = None,
    columns: int = 0,
) -> Batch:
    """Disjoint union of structures, padded to a shape; NumPy arrays.

    Args:
      drawn: rows of each frame's `columns` that are used; None: all.
      columns: room for columns.
    """
    drawn = (
        [np.arange(len(f.columns)) if f.columns is not None else np.zeros(0, int) for f in frames]
        if drawn is None
        else drawn
    )
    columns = max([columns, *(len(d) for d in drawn)])
    n_graphs, n_atoms, n_images, n_slots = shape.graphs, shape.atoms, shape.images, shape.slots
    numbers = np.full(n_atoms, frames[0].numbers[0], np.int32)
    out: dict[str, np.ndarray] = {
        "positions": np.zeros((n_atoms, 3)),
        "cell": np.broadcast_to(np.eye(3), (n_graphs, 3, 3)).copy(),
        "graph": np.full(n_atoms, n_graphs - 1, np.int32),
        "index": np.broadcast_to(np.arange(n_atoms, dtype=np.int32)[:, None], (n_atoms, n_slots)).copy(),
        "owner": np.zeros(n_images, np.int32),
        "shift": np.zeros((n_images, 3)),
        "atoms": np.zeros(n_atoms, bool),
        "sizes": np.zeros(n_graphs, np.int32),
        "energy": np.zeros(n_graphs),
        "has_energy": np.zeros(n_graphs, bool),
        "forces": np.zeros((n_atoms, 3)),
        "has_forces": np.zeros(n_atoms, bool),
        "stress": np.zeros((n_graphs, 3, 3)),
        "has_stress": np.zeros(n_graphs, bool),
        "columns": np.zeros((columns, n_graphs), np.int32),
        "has_columns": np.zeros((columns, n_graphs), bool),
        "hessian": np.zeros((columns, n_atoms, 3)),
        "has_hessian": np.zeros((columns, n_atoms), bool),
        "third": np.zeros((columns, n_atoms, 3)),
        "has_third": np.zeros((columns, n_atoms), bool),
    }
    first, image = 0, 0
    for g, (frame, near, which) in enumerate(zip(frames, around, drawn, strict=True)):
        n, h = frame.n_atoms, len(near.owner)
        mine, its = slice(first, first + n), slice(image, image + h)
        out["positions"][mine], out["cell"][g] = near.positions, frame.cell
        numbers[mine] = frame.numbers
        out["graph"][mine], out["atoms"][mine], out["sizes"][g] = g, True, n
        for atom, row in enumerate(near.neighbors):
            # Images stand behind the atoms of the whole batch.
            out["index"][first + atom, : len(row)] = np.where(row < n, row + first, row - n + n_atoms + image)
        out["owner"][its], out["shift"][its] = near.owner + first, near.shift
        if frame.energy is not None:
            out["energy"][g], out["has_energy"][g] = frame.energy, True
        if frame.forces is not None:
            out["forces"][mine], out["has_forces"][mine] = frame.forces, True
        if frame.stress is not None:
            out["stress"][g], out["has_stress"][g] = frame.stress, True
        if frame.columns is not None and len(which):
            rows = np.arange(len(which))
            out["columns"][rows, g] = np.asarray(frame.columns)[which] + 3 * first
            out["has_columns"][rows, g] = True
            for name in ("hessian", "third"):
                if (values := getattr(frame, name)) is not None:
                    out[name][rows, mine], out[f"has_{name}"][rows, mine] = values[which], True
        first, image = first + n, image + h
    return Batch(numbers=numbers, **out)
