"""What a fine-tuning has moved elsewhere, put back by the smallest change of the weights.

While second derivatives of a few crystals are fitted, energies and forces of all others drift. A network has far more weights
than there are structures to ask about, so many changes of the weights undo the drift and leave alone what was learnt; the
smallest of them is taken. It is a linear regression whose features are the gradients of the potential's answers by its weights,

    minimise  sum_r ((f_r + J_r . d - target_r) / error_r)^2 + |d|^2 / spread^2,

solved for one unknown a row, d = J^T a: the matrix J J^T is the neural tangent kernel (Jacot et al., NeurIPS 2018,
arXiv:1806.07572), and what is said of structures that were not asked about follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import available_memory, double_precision, forget_programs
from jaxmd_thermal.derivatives import required_cutoff
from jaxmd_thermal.errors import InputError, UnstableError
from jaxmd_thermal.training.batches import Batch, Shape, buckets_of, union
from jaxmd_thermal.training.data import Frame, check_frames
from jaxmd_thermal.training.losses import paired
from jaxmd_thermal.training.neighborhoods import neighborhood
from jaxmd_thermal.training.optimizers import Partition, is_weight
from jaxmd_thermal.training.steps import PRECISIONS

SIZES, WIDTHS = 3, 2
"""Shapes of batches: so many numbers of atoms, and for each so many of neighbours, where there are `MANY` structures; else two
numbers of atoms. Each is compiled once, which takes as long as some hundred rows."""
MANY = 200

CHUNK = 65_536
"""Weights that are multiplied at a time, so that sums in single precision are short."""

UNITS = {"energy": ("energy_meV_atom", 1e3), "forces": ("forces_meV_A", 1e3), "hessian": ("hessian_meV_A2", 1e3)}


@dataclass(frozen=True)
class Errors:
    """How closely the rows shall be met, and how far a weight may go for it.

    Attributes:
      energy: eV/atom.
      forces: eV/Å.
      hessian: eV/Å^2, of the second derivatives that are kept.
      spread: of a weight.
    """

    energy: float = 2e-3
    forces: float = 5e-3
    hessian: float = 8e-3
    spread: float = 3e-3

    def __post_init__(self):
        for name, value in vars(self).items():
            if not (np.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}; it must be positive")


@dataclass(frozen=True)
class Restoration:
    """What `restored` returns.

    Attributes:
      potential: with the changed weights.
      history: root mean square distances from the targets before the first round and after each one: `energy_meV_atom`,
        `forces_meV_A` (along the directions that were drawn), `hessian_meV_A2` (change of what is kept).
      rows: how many numbers were asked for.
      change: root mean square change of a weight.
    """

    potential: Any
    history: list[dict[str, float]]
    rows: int
    change: float


@dataclass(frozen=True)
class _Row:
    """One number that a potential says, `sum of adjoint x prediction`; `label` is None where it shall stay as it is."""

    kind: str
    batch: Batch
    adjoint: dict[str, Any]
    label: float | None
    source: str


def restored(
    potential: Any,
    frames: Sequence[Frame],
    kept: Sequence[Frame] = (),
    *,
    errors: Errors | None = None,
    forces_kept: float = 0.0,
    directions: int = 1,
    columns: int = 6,
    rounds: int = 2,
    trained: Callable[[Any, Any], bool] = is_weight,
    precision: str = "float32",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Restoration:
    """Bring energies and forces of structures back to their labels by the smallest change of the weights.

    Args:
      potential: what a training ended with.
      frames: structures with the labels that are wanted, those of the potential before the training (`replay`): energies, forces,
        or both; what has none is free to stay moved.
      kept: structures of the training with columns of the Hessian, which stay what the potential says of them now; their labels
        are not looked at.
      errors: how closely all this is meant.
      forces_kept: share of the change of forces that shall stay.
      directions: of the forces of each frame, drawn at random.
      columns: of each frame of `kept`, drawn at random, each along a random direction.
      rounds: the rows are linear in the weights only nearly; each round begins at what the potential says after the one before.
        The gradients are those of the first. A round that makes it worse is taken back.
      trained: rule for the weights that may change (`Partition.of`).
      precision: "float32", "mixed" (weights and gradients in double precision) or "float64", as in `fit`.
      seed: of what is drawn.
      progress: called with the rows done and all of them.

    Raises:
      InputError: nothing to bring back, numbers that make no sense, or more gradients than the memory holds.
      UnstableError: what the potential says is not finite; names the structure.
    """
    errors = errors or Errors()
    for name, count in (("directions", directions), ("columns", columns), ("rounds", rounds)):
        if count < 1:
            raise InputError(f"{name} is {count}; it must be at least 1")
    if not 0.0 <= forces_kept <= 1.0:
        raise InputError(f"forces_kept is {forces_kept}; it must lie between 0 (none of the change) and 1 (all of it)")
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    of_weights, dtype = PRECISIONS[precision]
    forget_programs()
    with double_precision():
        partition = Partition.of(potential, trained)
        start, others = partition.split(potential, of_weights)
        rows = _rows_of(potential, frames, kept, directions, columns, seed)
        size = sum(np.size(w) for w in start.values())
        check_memory(len(rows), size, precision)
        say = {"partition": partition, "dtype": dtype}
        gradients = np.empty((len(rows), size), of_weights)
        said = np.empty(len(rows))
        for r, row in enumerate(rows):
            value, slope = jax.device_get(_value_and_slope(start, others, row.batch, row.adjoint, **say))
            said[r], gradients[r] = value, np.concatenate([np.ravel(slope[name]) for name in start])
            if progress is not None:
                progress(r + 1, len(rows))
        _check_finite(rows, said, gradients)

        error = np.array([getattr(errors, row.kind) for row in rows])
        share = np.array([1.0 - forces_kept if row.kind == "forces" else 1.0 for row in rows])
        labels = np.array([value if row.label is None else row.label for row, value in zip(rows, said, strict=True)])
        target = said + share * (labels - said)
        kernel = _kernel(gradients) / np.outer(error, error)
        damping = errors.spread**-2
        solve = _solver(kernel, damping, np.finfo(dtype).eps)

        def cost(a: np.ndarray, found: np.ndarray) -> float:
            return float(np.sum(((found - target) / error) ** 2) + damping * a @ kernel @ a)

        a, weights, change = np.zeros(len(rows)), start, np.zeros(size)
        history, best = [_distances(rows, said - target)], cost(a, said)
        for _ in range(rounds):
            wanted = (target - said) / error + kernel @ a
            next_a = solve(wanted)
            next_change = _transposed(gradients, next_a / error)
            moved = _moved(start, next_change)
            found = np.array([float(_value(moved, others, row.batch, row.adjoint, **say)) for row in rows])
            if not cost(next_a, found) < best:
                break
            a, said, weights, change, best = next_a, found, moved, next_change, cost(next_a, found)
            history.append(_distances(rows, said - target))
        made = partition.merge(jax.device_get(weights), others)
    return Restoration(made, history, len(rows), float(np.sqrt(np.mean(change**2))))


def _rows_of(potential, frames, kept, directions: int, columns: int, seed: int) -> list[_Row]:
    rows: list[_Row] = []
    for number, frame, batch in _single(potential, frames):
        # Rows of both kinds have adjoints of both, so that one program serves them.
        none = {"energy": np.zeros(1), "forces": np.zeros(batch.positions.shape)}
        if frame.energy is not None:
            per_atom = none | {"energy": np.array([1.0 / frame.n_atoms])}
            rows.append(_Row("energy", batch, per_atom, frame.energy / frame.n_atoms, frame.source))
        for k in range(directions if frame.forces is not None else 0):
            way = np.zeros(batch.positions.shape)
            way[: frame.n_atoms] = np.random.default_rng([seed, 0, number, k]).standard_normal((frame.n_atoms, 3))
            way /= np.linalg.norm(way)
            along = float(np.vdot(way, batch.forces))
            rows.append(_Row("forces", batch, none | {"forces": way}, along, frame.source))
    if not rows:
        raise InputError(f"none of the {len(frames)} structures has an energy or forces: label them (replay)")
    for number, frame, batch in _single(potential, [f for f in kept if f.columns is not None]):
        rng = np.random.default_rng([seed, 1, number])
        for k in rng.permutation(len(frame.columns))[:columns]:
            way = np.zeros((1, *batch.positions.shape))
            way[0, : frame.n_atoms] = rng.choice([-1.0, 1.0], (frame.n_atoms, 3)) / np.sqrt(3 * frame.n_atoms)
            rows.append(_Row("hessian", _column(batch, k), {"hessian": way}, None, frame.source))
    return rows


def _single(potential, frames: Sequence[Frame]):
    """(number, frame, its batch) for every frame; those of similar size and density have one shape."""
    if not frames:
        return
    check_frames(frames, getattr(potential, "species", None))
    around = [neighborhood(frame, required_cutoff(potential)) for frame in frames]
    sizes, widths = (SIZES, WIDTHS) if len(frames) > MANY else (2, 1)
    for of_size in buckets_of([(1, f.n_atoms) for f in frames], sizes):
        for part in buckets_of([(frames[i].n_atoms, around[i].slots) for i in of_size], widths):
            group = [of_size[k] for k in part]
            atoms, images, slots, width = (
                max(numbers)
                for numbers in zip(
                    *[
                        (f.n_atoms, len(near.owner), near.slots, 0 if f.columns is None else len(f.columns))
                        for f, near in ((frames[i], around[i]) for i in group)
                    ],
                    strict=True,
                )
            )
            for i in group:
                yield i, frames[i], union([frames[i]], [around[i]], Shape(1, atoms, images, slots), columns=width)


def _column(batch: Batch, k: int) -> Batch:
    """The batch with one of its columns."""
    named = ("columns", "has_columns", "hessian", "has_hessian", "third", "has_third")
    return replace(batch, **{name: getattr(batch, name)[k : k + 1] for name in named})


def _answer(weights, others, batch, adjoint, partition, dtype):
    return paired(partition.merge(weights, others), batch, adjoint, dtype)


@partial(jax.jit, static_argnames=("partition", "dtype"))
def _value(weights, others, batch, adjoint, *, partition, dtype):
    return _answer(weights, others, batch, adjoint, partition, dtype)


@partial(jax.jit, static_argnames=("partition", "dtype"))
def _value_and_slope(weights, others, batch, adjoint, *, partition, dtype):
    return jax.value_and_grad(_answer)(weights, others, batch, adjoint, partition, dtype)


def check_memory(rows: int, weights: int, precision: str) -> float:
    """GB that the gradients of so many rows take.

    Raises:
      InputError: more than there is.
    """
    needed = (rows * weights * np.dtype(PRECISIONS[precision][0]).itemsize + 4 * 8 * rows**2) / 1e9
    free = available_memory() / 1e9
    if needed > 0.8 * free:
        raise InputError(
            f"{rows} rows with {weights} weights need {needed:.1f} GB, and {free:.1f} GB are free: take fewer structures or "
            "copies, directions or columns"
        )
    return needed


def _check_finite(rows: list[_Row], said: np.ndarray, gradients: np.ndarray) -> None:
    odd = [row.source for row, value, slope in zip(rows, said, gradients, strict=True)
           if not (np.isfinite(value) and np.all(np.isfinite(slope)))]  # fmt: skip
    if odd:
        raise UnstableError(
            f"what the potential says of {'; '.join(dict.fromkeys(odd))}, or its gradient, is not finite: leave them out, or "
            "begin with another potential"
        )


def _kernel(gradients: np.ndarray) -> np.ndarray:
    """(rows, rows) products of the gradients."""
    out = np.zeros((len(gradients),) * 2)
    for first in range(0, gradients.shape[1], CHUNK):
        part = gradients[:, first : first + CHUNK]
        out += part @ part.T
    return out


def _solver(kernel: np.ndarray, damping: float, rounding: float) -> Callable[[np.ndarray], np.ndarray]:
    """Solution of (kernel + damping) a = b; along what is zero but for rounding, no change of the weights does anything."""
    values, vectors = np.linalg.eigh(kernel)
    there = values > rounding * values[-1]
    values, vectors = values[there], vectors[:, there]
    return lambda b: vectors @ ((vectors.T @ b) / (values + damping))


def _transposed(gradients: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """(weights,) sum of the gradients with these factors."""
    out = np.empty(gradients.shape[1])
    for first in range(0, len(out), CHUNK):
        out[first : first + CHUNK] = factors @ gradients[:, first : first + CHUNK]
    return out


def _moved(start: dict[str, Any], change: np.ndarray) -> dict[str, Any]:
    out, first = {}, 0
    for name, value in start.items():
        part = change[first : first + value.size].reshape(value.shape)
        out[name] = jnp.asarray(np.asarray(value, float) + part, value.dtype)
        first += value.size
    return out


def _distances(rows: list[_Row], distance: np.ndarray) -> dict[str, float]:
    out = {}
    for kind, (name, factor) in UNITS.items():
        its = [d for row, d in zip(rows, distance, strict=True) if row.kind == kind]
        if its:
            out[name] = factor * float(np.sqrt(np.mean(np.square(its))))
    return out
