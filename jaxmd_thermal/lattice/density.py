"""Phonons on a regular grid and their density of states, total and by atom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.force_constants import ForceConstants
from jaxmd_thermal.lattice.grid import Grid, make_grid
from jaxmd_thermal.lattice.phonons import Phonons, phonons
from jaxmd_thermal.lattice.tetrahedron import gaussian, point_weight, vertex_table


@dataclass(frozen=True, eq=False)
class MeshPhonons:
    """Phonons at the symmetry-distinct points of a Gamma-centred grid.

    Attributes:
      grid: the grid; its `weights` count the points that each solved point stands for.
      phonons: solved at `grid.irreducible`.
      rotations: (g, 3, 3) Cartesian rotations of the point group (without time reversal).
    """

    grid: Grid
    phonons: Phonons
    rotations: np.ndarray

    @property
    def frequencies(self) -> np.ndarray:
        """(irreducible, bands) THz."""
        return self.phonons.frequencies

    @property
    def weights(self) -> np.ndarray:
        """(irreducible,) that sum to one."""
        return self.grid.weights / self.grid.weights.sum()


def mesh_phonons(
    force_constants: ForceConstants,
    mesh: Any,
    nac: bool | None = None,
    *,
    eigenvectors: bool = False,
    velocities: bool = False,
    symprec: float = symmetry.SYMPREC,
) -> MeshPhonons:
    """Phonons on a Gamma-centred grid of the primitive cell, reduced by symmetry and time reversal.

    Args:
      mesh: 3 whole numbers; other arguments as for `phonons`. Gamma is solved without the non-analytic field.
    """
    crystal = force_constants.crystal
    rotations = symmetry.point_group(crystal, symprec)
    grid = make_grid(crystal.lattice, mesh, rotations)
    solved = phonons(
        force_constants, grid.qpoints[grid.irreducible], nac, eigenvectors=eigenvectors, velocities=velocities
    )
    lattice = crystal.lattice.T
    return MeshPhonons(grid, solved, lattice @ rotations @ np.linalg.inv(lattice))


@dataclass(frozen=True, eq=False)
class DensityOfStates:
    """Density of states; integrates to the number of bands.

    Attributes:
      frequencies: (points,) THz.
      total: (points,) 1/THz per primitive cell.
      projected: (atoms, points) 1/THz of each atom of the primitive cell, summing to the total; None without eigenvectors.
      sigma: THz of the Gaussian smearing, None: linear tetrahedra.
    """

    frequencies: np.ndarray
    total: np.ndarray
    projected: np.ndarray | None
    sigma: float | None


def density_of_states(
    mesh: MeshPhonons, sigma: float | None = None, frequencies: Any = None, points: int = 201, projected: bool = False
) -> DensityOfStates:
    """Density of states by linear tetrahedra, or Gaussians of width `sigma` (THz).

    Args:
      frequencies: (points,) THz where it is wanted; None: `points` values over the whole range with a margin.
      projected: by atoms, sum over directions; the phonons need eigenvectors. Symmetry-equivalent atoms get equal shares.

    Raises:
      InputError: a sigma that is not positive, or no eigenvectors.

    Source: tetrahedra: Blöchl, Jepsen, Andersen, PRB 49, 16223 (1994) (without their correction).
    """
    f = mesh.frequencies
    if sigma is not None and not sigma > 0:
        raise InputError(f"sigma is {sigma} THz; it must be positive, or None for the tetrahedron method")
    if projected and mesh.phonons.eigenvectors is None:
        raise InputError("a projected density of states needs eigenvectors: mesh_phonons(..., eigenvectors=True)")
    if frequencies is None:
        margin = 0.05 * float(np.ptp(f)) + (5.0 * sigma if sigma else 0.0)
        at = np.linspace(f.min() - margin, f.max() + margin, points)
    else:
        at = np.asarray(frequencies, float)
    with double_precision():
        if sigma is None:
            weight = _tetrahedra(mesh.grid, f, at)
        else:
            weight = np.asarray(jax.vmap(lambda w: gaussian(w - jnp.asarray(f), sigma))(jnp.asarray(at)))
    weight = weight * mesh.weights[None, :, None]
    parts = None
    if projected:
        assert mesh.phonons.eigenvectors is not None
        share = np.sum(np.abs(mesh.phonons.eigenvectors.reshape(len(f), -1, 3, f.shape[1])) ** 2, axis=2)
        parts = np.einsum("wqb,qab->aw", weight, share)
        # Points of a star give equivalent atoms each other's share.
        for group in _equivalent(mesh):
            parts[group] = parts[group].mean(axis=0)
    return DensityOfStates(at, weight.sum(axis=(1, 2)), parts, sigma)


def _tetrahedra(grid: Grid, f: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(frequencies, irreducible, bands) 1/THz."""
    table, corners = vertex_table(grid.tetrahedra)
    neighbors = grid.index(grid.addresses[grid.irreducible][:, None] + table[None])  # (k, v)
    values = jnp.asarray(np.moveaxis(f[grid.star[neighbors]], 1, 0).reshape(len(table), -1))

    @jax.jit
    def run(w):
        return jax.lax.map(lambda x: point_weight(jnp.full(values.shape[1], x), values, corners), w)

    return np.asarray(run(jnp.asarray(at))).reshape(len(at), *f.shape)


def _equivalent(mesh: MeshPhonons) -> list[list[int]]:
    """Groups of symmetry-equivalent atoms of the primitive cell."""
    labels = symmetry.equivalent_atoms(mesh.phonons.crystal)
    return [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
