"""Force constants, and all that follows from them, as differentiable functions of a potential's parameters.

Forces of displaced cells go through a linear map into force constants (`solver`); its transpose turns cotangents of the force
constants into weights on those forces, and one force-training backward pass over the same cells gives the derivative with
respect to the parameters. No third derivative is ever differentiated. The relaxed cell follows by the implicit function
theorem (`equilibrium`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.derivatives import calculate, check_dtype
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice import equilibrium, symmetry
from jaxmd_thermal.lattice.displaced import check_batch, prepared_neighbors
from jaxmd_thermal.lattice.plans import displacement_plan
from jaxmd_thermal.lattice.solver import solve_fc2, solve_fc3
from jaxmd_thermal.potentials.base import Potential
from jaxmd_thermal.system import System


class Lattice(NamedTuple):
    """What lattice dynamics needs of a potential; the arguments of `kappa_function`'s functions in their order.

    Attributes:
      fc2: (P, S, 3, 3) eV/Å^2; fc3: (P, S, S, 3, 3, 3) eV/Å^3, or None.
      lattice: (3, 3) Å of the primitive cell. positions: (P, 3) fractions of it.
    """

    fc2: Any
    fc3: Any
    lattice: Any
    positions: Any


class _Cells(NamedTuple):
    """A supercell with its neighbours, the atom of the given cell that each of its atoms repeats, and the plan of its
    displacements with the function that makes force constants of their forces."""

    positions: Any
    lattice: Any
    numbers: Any
    repeats: np.ndarray
    neighbors: Any
    plan: Any
    solve: Callable


def differentiable_force_constants(
    potential: Potential,
    atoms: Any,
    supercell: Any,
    fc3_supercell: Any = None,
    displacement: float = 0.03,
    *,
    relaxed: bool = True,
    batch_size: int | None = None,
    primitive: Any = "auto",
    symprec: float = symmetry.SYMPREC,
    dtype: str = "float64",
) -> Callable[[Potential], Lattice]:
    """Force constants and the relaxed cell as a function of the potential, for `jax.grad` under `jax.enable_x64`.

    The value at `potential` equals that of `force_constants` with the same arguments. Changes of the parameters keep the
    space group, which is built in.

    Args:
      potential: the point at which derivatives are wanted; the function must not be called at another one if `relaxed`.
      atoms: the cell; with `relaxed` the minimum of `potential` (`relax(potential, atoms, "converged")`).
      supercell, fc3_supercell, displacement, batch_size, primitive, symprec, dtype: as in `force_constants`.
      relaxed: the cell follows the potential (implicit function theorem); False: the derivative at the given cell.

    Returns: function potential -> `Lattice`.

    Raises:
      InputError: as `force_constants`; the cell is no minimum.

    Source: force constants as linear functions of forces: Togo, J. Phys. Soc. Jpn. 92, 012001 (2023).
    """
    if not (np.isfinite(displacement) and 1e-5 <= displacement <= 0.5):
        raise InputError(f"displacement is {displacement} Å; it must lie between 1e-5 and 0.5")
    check_dtype(dtype)
    system = System.from_atoms(atoms)
    geometry = symmetry.geometry_of(system, supercell, fc3_supercell, primitive, symprec)
    primitive_cell, _ = symmetry.cells_of(geometry)
    crystal = symmetry.crystal_of(primitive_cell)
    orders = ((2, solve_fc2), (3, solve_fc3))
    with double_precision():
        cells = []
        for order, solve in orders[: 1 if geometry.fc3_supercell_matrix is None else 2]:
            big = symmetry.system_of(symmetry.cells_of(geometry, order)[1])
            repeats = _repeats(system, big)
            neighbors = prepared_neighbors(potential, big, dtype, displacement)
            cells.append(
                _Cells(jnp.asarray(big.positions), jnp.asarray(big.cell), jnp.asarray(big.numbers), repeats, neighbors,
                       displacement_plan(geometry, order, displacement)[1], solve)
            )  # fmt: skip
        freedom = equilibrium.freedom_of(system, symprec)
        coordinates = None
        if relaxed:
            cell = equilibrium.cell_of(potential, system)
            equilibrium.require_relaxed(potential, cell)
            coordinates = equilibrium.relaxed_coordinates(potential, cell, freedom)
    of_primitive = _repeats(system, symmetry.system_of(primitive_cell))
    inverse = np.linalg.inv(crystal.lattice)

    def function(potential: Potential) -> Lattice:
        y = jnp.zeros(len(freedom.strains)) if coordinates is None else coordinates(potential)
        found = [_constants(potential, c, freedom, y, batch_size, dtype) for c in cells]
        deformation = jnp.eye(3) + jnp.tensordot(y, jnp.asarray(freedom.strains), 1)
        shift = jnp.tensordot(y, jnp.asarray(freedom.shifts), 1)
        return Lattice(
            found[0], found[1] if len(found) > 1 else None, jnp.asarray(crystal.lattice) @ deformation,
            jnp.asarray(crystal.positions) + shift[of_primitive] @ inverse,
        )  # fmt: skip

    return function


def _constants(potential, cells: _Cells, freedom, coordinates, batch_size, dtype: str):
    repeated = freedom._replace(shifts=jnp.asarray(freedom.shifts)[:, cells.repeats])
    positions, lattice = equilibrium.placed(repeated, cells.positions, cells.lattice, coordinates)
    batch = check_batch(batch_size, len(cells.numbers))
    moves = jnp.asarray(cells.plan.moves)
    forces = _forces(potential, positions, lattice, cells.numbers, cells.neighbors, moves, batch=batch, dtype=dtype)
    return cells.solve(forces, cells.plan)


@partial(jax.jit, static_argnames=("batch", "dtype"))
def _forces(potential, positions, lattice, numbers, neighbors, moves, *, batch, dtype):
    """(cells, atoms, 3) eV/Å, recomputed batch by batch in the backward pass: its memory is that of one batch."""

    @jax.checkpoint
    def one(move):
        out = calculate(potential, positions + move, lattice, numbers, neighbors, ("forces",), dtype=jnp.dtype(dtype))
        return out["forces"] - jnp.mean(out["forces"], axis=0)

    return jax.lax.map(one, moves, batch_size=None if batch == 1 else batch)


def _repeats(small: System, big: System) -> np.ndarray:
    """(atoms of big,) the atom of the small cell that each atom of a supercell (or of its primitive cell) repeats."""
    inverse = np.linalg.inv(np.asarray(small.cell))
    gap = (np.asarray(big.positions)[:, None] - np.asarray(small.positions)[None]) @ inverse
    far = np.linalg.norm((gap - np.rint(gap)) @ np.asarray(small.cell), axis=-1)
    found = np.argmin(far, axis=1)
    if np.max(np.min(far, axis=1)) > 1e-3:
        raise InputError("the supercell does not repeat the given cell: were its positions changed?")
    return found
