"""The minimum of the energy of a crystal over what its symmetry leaves free, and how it moves with the potential."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import check_toolchain, double_precision
from jaxmd_thermal.derivatives import calculate, check_potential, required_cutoff
from jaxmd_thermal.errors import InputError, UnstableError
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.neighbors import NeighborList, allocate
from jaxmd_thermal.potentials.base import Potential, neighbor_demands
from jaxmd_thermal.sites import check_sites
from jaxmd_thermal.system import System

LARGEST_FORCE, LARGEST_STRESS = 1e-6, 1e-8
"""eV/Å and eV/Å^3 of a cell that counts as relaxed in derivatives."""

SKIN = 0.3
"""Å that atoms may move before the neighbour list of a cell is renewed."""


class Freedom(NamedTuple):
    """Strains and displacements that keep the space group, as an orthonormal basis; rigid shifts left out.

    Attributes:
      strains: (n, 3, 3) symmetric.
      shifts: (n, atoms, 3) in Å for a unit of the coordinate.
    """

    strains: Any
    shifts: Any


class Cell(NamedTuple):
    """A cell and its neighbours; coordinates are counted from here."""

    positions: Any
    lattice: Any
    numbers: Any
    neighbors: NeighborList


def freedom_of(system: System, symprec: float = symmetry.SYMPREC) -> Freedom:
    """Invariant strains and displacements of a cell (host): cubic crystals have one strain, wurtzite two and one shift."""
    rotations, permutations = symmetry.primitive_operations(symmetry.crystal_of(symmetry.cell_of(system)), symprec)
    n = system.n_atoms
    average = np.zeros((9 + 3 * n, 9 + 3 * n))
    for r, to in zip(rotations, permutations, strict=True):
        average[:9, :9] += np.einsum("ac,bd->abcd", r, r).reshape(9, 9)
        moved = np.zeros((n, 3, n, 3))
        moved[to, :, np.arange(n)] = r
        average[9:, 9:] += moved.reshape(3 * n, 3 * n)
    average /= len(rotations)
    turn = np.einsum("ac,bd->abdc", np.eye(3), np.eye(3)).reshape(9, 9)
    average[:9, :9] = 0.5 * (np.eye(9) + turn) @ average[:9, :9]
    rest = np.kron(np.eye(n) - 1.0 / n, np.eye(3))
    average[9:, 9:] = rest @ average[9:, 9:] @ rest
    values, vectors = np.linalg.eigh(0.5 * (average + average.T))
    basis = vectors[:, values > 0.5].T
    # Coordinates of pure strain and pure shift come apart again when both have eigenvalue one.
    strain_part = basis[:, :9] @ basis[:, :9].T
    basis = np.linalg.eigh(strain_part)[1].T @ basis
    return Freedom(basis[:, :9].reshape(-1, 3, 3), basis[:, 9:].reshape(-1, n, 3))


def placed(freedom: Freedom, positions, lattice, coordinates):
    """Positions and lattice at coordinates of the freedom: shifts first, then the strain of everything."""
    deformation = jnp.eye(3) + jnp.tensordot(coordinates, jnp.asarray(freedom.strains), 1)
    shift = jnp.tensordot(coordinates, jnp.asarray(freedom.shifts), 1)
    return (positions + shift) @ deformation, lattice @ deformation


def _energy(potential, cell: Cell, freedom: Freedom, coordinates):
    positions, lattice = placed(freedom, cell.positions, cell.lattice, coordinates)
    return calculate(potential, positions, lattice, cell.numbers, cell.neighbors, ("energy",))["energy"]


@jax.jit
def slopes(potential, cell: Cell, freedom: Freedom):
    """Gradient and Hessian of the energy in the coordinates, at zero."""
    zero = jnp.zeros(len(freedom.strains))
    gradient = jax.grad(partial(_energy, potential, cell, freedom))
    hessian = jax.lax.map(lambda v: jax.jvp(gradient, (zero,), (v,))[1], jnp.eye(len(zero)))
    return gradient(zero), 0.5 * (hessian + hessian.T)


@jax.jit
def _parameter_slope(potential, cell: Cell, freedom: Freedom, direction):
    """Gradient, with respect to the potential, of the energy's slope along a direction of the coordinates."""

    def slope(potential):
        zero = jnp.zeros(len(freedom.strains))
        return jax.jvp(partial(_energy, potential, cell, freedom), (zero,), (direction,))[1]

    return jax.grad(slope, allow_int=True)(potential)


def cell_of(potential: Potential, system: System) -> Cell:
    """The cell with neighbours, under `double_precision`."""
    check_potential(potential, system)
    check_toolchain()
    demands: dict[str, Any] = neighbor_demands(potential, moving=False)
    neighbors = allocate(system, required_cutoff(potential), **(demands | {"skin": SKIN}))
    check_sites(system, neighbors, potential)
    return Cell(
        jnp.asarray(system.positions), jnp.asarray(system.cell), jnp.asarray(system.numbers), neighbors
    )  # fmt: skip


def minimum(potential: Potential, system: System, steps: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Positions (atoms, 3) Å and lattice (3, 3) Å of the minimum next to a cell that is nearly relaxed, by Newton's method
    with exact second derivatives in the coordinates that keep the space group.

    Raises:
      UnstableError: the curvature is not positive, or the steps do not converge.
    """
    freedom = freedom_of(system)
    positions, lattice = np.asarray(system.positions, float), np.asarray(system.cell, float)
    with double_precision():
        for _ in range(steps):
            cell = cell_of(potential, system)
            gradient, hessian = (np.asarray(x) for x in slopes(potential, cell, freedom))
            curvature = np.linalg.eigvalsh(hessian)
            if not len(curvature) or np.abs(gradient).max() < 1e-11 * max(1.0, np.abs(curvature).max()):
                return positions, lattice
            if curvature.min() <= 0:
                raise UnstableError(
                    f"the energy falls along a deformation that keeps the symmetry (curvature {curvature.min():.2e} eV): "
                    "the structure is no minimum of this potential"
                )
            step = -np.linalg.solve(hessian, gradient)
            step *= min(1.0, 0.05 / np.abs(step).max())
            positions, lattice = (np.asarray(x) for x in placed(freedom, positions, lattice, step))
            system = system.replace(positions=positions, cell=lattice)
    raise UnstableError(
        f"Newton's method did not converge in {steps} steps, the last one was {np.abs(step).max():.1e} (strain or Å): relax "
        "the structure before, and take a potential without a jump at its cutoff"
    )


def require_relaxed(potential: Potential, cell: Cell) -> None:
    """Raises InputError unless forces and stress are those of a minimum: only then has the relaxed cell a derivative."""
    out = calculate(potential, *cell, quantities=("forces", "stress"))
    force, stress = float(jnp.max(jnp.abs(out["forces"]))), float(jnp.max(jnp.abs(out["stress"])))
    if force > LARGEST_FORCE or stress > LARGEST_STRESS:
        raise InputError(
            f"the derivative of the relaxed cell needs a minimum: the largest force is {force:.1e} eV/Å and the largest stress "
            f"{stress:.1e} eV/Å^3, at most {LARGEST_FORCE:.0e} and {LARGEST_STRESS:.0e} are accepted; use relax(potential, "
            'atoms, "converged") (the other protocols stop short of it), or relaxed=False for the derivative at a fixed cell'
        )


def relaxed_coordinates(potential: Potential, cell: Cell, freedom: Freedom):
    """Function of the potential that gives the coordinates of its minimum, for reverse differentiation.

    The value is zero: `cell` is the minimum (`require_relaxed`). The derivative is that of the implicit function: with the
    Hessian H and gradient g of the energy in the coordinates, dy = -H^-1 dg.
    """

    @jax.custom_vjp
    def coordinates(potential):
        return jnp.zeros(len(freedom.strains))

    def forward(potential):
        return coordinates(potential), potential

    def backward(potential, cotangent):
        _, hessian = slopes(potential, cell, freedom)
        direction = -jnp.linalg.solve(hessian, cotangent) if len(freedom.strains) else cotangent
        return (_parameter_slope(potential, cell, freedom, direction),)

    coordinates.defvjp(forward, backward)
    return coordinates
