"""Forces of many displaced cells, and third derivatives of the energy, in batches on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import check_toolchain, double_precision
from jaxmd_thermal.derivatives import calculate, check_dtype, check_potential, required_cutoff
from jaxmd_thermal.errors import InputError, UnstableError
from jaxmd_thermal.neighbors import NeighborList, allocate
from jaxmd_thermal.potentials.base import Potential, neighbor_demands
from jaxmd_thermal.sites import check_sites
from jaxmd_thermal.system import System


def usual_batch(n_atoms: int) -> int:
    """Cells evaluated together: one on a CPU, whose cores a single cell keeps busy; about 4000 atoms on an accelerator."""
    return 1 if jax.default_backend() == "cpu" else max(1, 4096 // n_atoms)


def check_batch(batch_size: int | None, n_atoms: int) -> int:
    """The batch to use.

    Raises:
      InputError: not a positive whole number.
    """
    if batch_size is None:
        return usual_batch(n_atoms)
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; it must be a whole number of cells, at least 1")
    return int(batch_size)


@partial(jax.jit, static_argnames="dtype")
def _forces(potential, positions, cell, numbers, neighbors, *, dtype):
    def one(x):
        return calculate(potential, x, cell, numbers, neighbors, ("forces",), dtype=jnp.dtype(dtype))["forces"]

    return one(positions[0])[None] if positions.shape[0] == 1 else jax.vmap(one)(positions)


@partial(jax.jit, static_argnames="dtype")
def _third(potential, positions, cell, numbers, neighbors, first, second, *, dtype):
    def forces(x):
        return calculate(potential, x, cell, numbers, neighbors, ("forces",), dtype=jnp.dtype(dtype))["forces"]

    def unit(column):
        return jnp.zeros(positions.size).at[column].set(1.0).reshape(positions.shape)

    def one(a, b):
        def along_first(x):
            return jax.jvp(forces, (x,), (unit(a),))[1]

        return -jax.jvp(along_first, (positions,), (unit(b),))[1]

    return one(first[0], second[0])[None] if first.shape[0] == 1 else jax.vmap(one)(first, second)


def displaced_forces(
    potential: Potential, system: System, displacements, batch_size: int | None = None, dtype: str = "float64",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:  # fmt: skip
    """Forces of cells that differ by small displacements; one neighbour list and one compilation for all.

    Args:
      potential, system: as for `evaluate`; the undisplaced cell.
      displacements: (cells, atoms, 3) Å.
      batch_size: cells evaluated together; memory grows with it. None: what suits the device.
      progress: called with the number of cells that are done and of all, before each batch.

    Returns: (cells, atoms, 3) eV/Å; the mean force of every cell is subtracted (rounding of single precision).

    Raises:
      InputError: shapes, dtype, batch_size, unknown elements.
      UnstableError: forces that are not finite.
    """
    displacements = np.asarray(displacements, float)
    if displacements.ndim != 3 or displacements.shape[1:] != np.shape(system.positions):
        raise InputError(
            f"displacements have the shape {displacements.shape}; (cells, {system.n_atoms}, 3) in Å are needed"
        )
    if not len(displacements):
        return np.zeros((0, system.n_atoms, 3))
    furthest = float(np.max(np.linalg.norm(displacements, axis=-1)))
    with double_precision():
        neighbors = prepared_neighbors(potential, system, dtype, furthest)
        where = (system.cell, system.numbers, neighbors)

        def run(moves):
            return _forces(potential, system.positions + moves, *where, dtype=dtype)

        out = _in_batches(run, (displacements,), check_batch(batch_size, system.n_atoms), progress)
    if not np.all(np.isfinite(out)):
        bad = int(np.argmax(~np.all(np.isfinite(out), axis=(1, 2))))
        raise UnstableError(
            f"the forces of displaced cell {bad} are not finite: are atoms too close, or outside of what the potential knows?"
        )
    return out - out.mean(axis=1, keepdims=True)


def third_derivatives(
    potential: Potential, system: System, pairs, batch_size: int | None = None, dtype: str = "float64",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:  # fmt: skip
    """Third derivatives of the energy along pairs of displacements, by forward over forward over reverse differentiation.

    Args:
      pairs: (n, 2) columns 3 * atom + axis.
      batch_size: pairs evaluated together.
      progress: called with the number of pairs that are done and of all, before each batch.

    Returns: (n, atoms, 3) eV/Å^3.
    """
    pairs = np.asarray(pairs, np.int32).reshape(-1, 2)
    with double_precision():
        neighbors = prepared_neighbors(potential, system, dtype)
        where = (system.positions, system.cell, system.numbers, neighbors)

        def run(first, second):
            return _third(potential, *where, first, second, dtype=dtype)

        return _in_batches(run, (pairs[:, 0], pairs[:, 1]), check_batch(batch_size, system.n_atoms), progress)


def prepared_neighbors(potential: Potential, system: System, dtype: str, furthest: float = 0.0) -> NeighborList:
    """Neighbours that hold while atoms move by up to `furthest` Å; the arguments are checked."""
    check_dtype(dtype)
    check_potential(potential, system)
    check_toolchain()
    demands: dict[str, Any] = neighbor_demands(potential, moving=False)
    # In steps of 0.1 Å, so that displacements of about the same length share one compiled program.
    skin = 0.1 * math.ceil(20.0 * furthest + 0.1) if furthest else 0.0
    neighbors = allocate(system, required_cutoff(potential), **(demands | {"skin": skin}))
    check_sites(system, neighbors, potential)
    return neighbors


def _in_batches(run, arrays, batch: int, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
    """Stacked `run(*rows)`; the last batch is filled up with its first row, so that all have one shape."""
    n = len(arrays[0])
    out = []
    for start in range(0, n, batch):
        if progress is not None:
            progress(start, n)
        rows = [a[start : start + batch] for a in arrays]
        have = len(rows[0])
        rows = [np.concatenate([r, np.repeat(r[:1], batch - have, axis=0)]) if have < batch else r for r in rows]
        out.append(np.asarray(run(*rows))[:have])
    return np.concatenate(out)
