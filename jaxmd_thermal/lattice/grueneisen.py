"""Mode Grüneisen parameters and the thermal expansion that follows from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.derivatives import evaluate
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice.crystal import Crystal, Images
from jaxmd_thermal.lattice.density import MeshPhonons, mesh_phonons
from jaxmd_thermal.lattice.force_constants import ForceConstants, force_constants
from jaxmd_thermal.lattice.occupation import heat_capacity
from jaxmd_thermal.lattice.phonons import degenerate_blocks, dynamical_matrix, interpolation
from jaxmd_thermal.system import System
from jaxmd_thermal.units import GPA

CUTOFF = 1e-3
"""THz. Modes at or below it have no Grüneisen parameter."""


@dataclass(frozen=True, eq=False)
class Grueneisen:
    """Mode Grüneisen parameters -(V/omega) d omega/dV on a grid.

    Attributes:
      gamma: (irreducible, bands); zero for modes at or below 1e-3 THz and for imaginary ones.
      mesh: the phonons at the volume in the middle.
      volume: Å^3 of the primitive cell.
    """

    gamma: np.ndarray
    mesh: MeshPhonons
    volume: float

    def mean(self, temperatures: Any) -> np.ndarray:
        """(temperatures,) the average of gamma with the heat capacities as weights."""
        capacity = self._capacities(temperatures)
        return np.sum(capacity * self.gamma, axis=(1, 2)) / np.sum(capacity, axis=(1, 2))

    def heat_capacity(self, temperatures: Any) -> np.ndarray:
        """(temperatures,) eV/K per primitive cell, at constant volume."""
        return np.sum(self._capacities(temperatures), axis=(1, 2))

    def linear_expansion(self, temperatures: Any, bulk_modulus: float) -> np.ndarray:
        """(temperatures,) 1/K: gamma C_V/(3 B V), for cubic crystals; a third of the volumetric expansion otherwise.

        Args:
          bulk_modulus: GPa (`bulk_modulus`).
        """
        if not (np.isfinite(bulk_modulus) and bulk_modulus > 0):
            raise InputError(f"the bulk modulus is {bulk_modulus} GPa; it must be positive")
        return self.mean(temperatures) * self.heat_capacity(temperatures) / (3.0 * bulk_modulus * GPA * self.volume)

    def _capacities(self, temperatures: Any) -> np.ndarray:
        t = np.atleast_1d(np.asarray(temperatures, float))
        if np.any(~(t > 0)):
            raise InputError(f"temperatures are {temperatures!r}; averages of Grüneisen parameters need them above 0 K")
        some = self.mesh.frequencies > CUTOFF
        with double_precision():
            safe = jnp.asarray(np.where(some, self.mesh.frequencies, 1.0))
            each = np.moveaxis(np.asarray(heat_capacity(safe, t)), -2, 0)
        return np.where(some, each, 0.0) * self.mesh.weights[:, None]


@partial(jax.jit, static_argnames="batch")
def _matrices(fc2, at, q, *, batch):
    return jax.lax.map(lambda x: dynamical_matrix(fc2, at, x), q, batch_size=batch)


def grueneisen_from_volumes(
    smaller: ForceConstants, middle: ForceConstants, larger: ForceConstants, mesh: Any, nac: bool | None = None
) -> Grueneisen:
    """Mode Grüneisen parameters from the change of the dynamical matrix between two volumes.

    gamma_s = -(V/2 omega_s^2) <s|dD/dV|s>, dD/dV by the central difference at the same fractional q. Inside degenerate blocks
    dD is diagonalised, so parameters do not depend on the choice of eigenvectors.

    Raises:
      InputError: volumes that are not ascending, or cells that do not match.

    Source: Togo, Chaput, Tanaka, Hug, PRB 81, 174301 (2010), eq. 8.
    """
    v = [fc.crystal.volume for fc in (smaller, middle, larger)]
    if not v[0] < v[1] < v[2]:
        raise InputError(f"the volumes are {v} Å^3; give force constants of ascending volumes")
    if len({np.shape(fc.fc2) for fc in (smaller, middle, larger)}) != 1:
        raise InputError("the three force constants are of different cells or supercells: use the same for all volumes")
    solved = mesh_phonons(middle, mesh, nac, eigenvectors=True)
    q = solved.phonons.qpoints
    d = [matrices_on(fc, q, nac) for fc in (smaller, larger)]
    return from_slope(solved, (d[1] - d[0]) / (v[2] - v[0]), v[1])


def grueneisen_from_fc3(force_constants: ForceConstants, mesh: Any, nac: bool | None = None) -> Grueneisen:
    """Mode Grüneisen parameters from third order: dPhi/d strain = sum_k Phi3 (r_k + u_k) for isotropic strain.

    u is the internal strain, by which the atoms follow the cell; zero where symmetry fixes them. Needs the same supercell for
    second and third order. The non-analytic part is taken as constant.

    Raises:
      InputError: no third order, or different supercells.

    Source: Fabian and Allen, PRL 79, 1885 (1997).
    """
    fc = force_constants
    if fc.fc3 is None or fc.images3 is None:
        raise InputError(
            "Grüneisen parameters from third order need fc3: give fc3_supercell, or use volume differences"
        )
    if np.shape(fc.fc3)[1] != np.shape(fc.fc2)[1]:
        raise InputError(
            f"the supercells of second and third order hold {np.shape(fc.fc2)[1]} and {np.shape(fc.fc3)[1]} atoms; this needs "
            "the same one: use volume differences"
        )
    images = fc.images3
    moved = _mean_vectors(fc.crystal, images) + _internal_strain(fc)[images.primitive_of][:, None]
    slope = np.einsum("ijkabc,kic->ijab", np.asarray(fc.fc3), moved)
    solved = mesh_phonons(fc, mesh, nac, eigenvectors=True)
    matrices = matrices_on(replace(fc, fc2=slope), solved.phonons.qpoints, False)
    volume = fc.crystal.volume
    return from_slope(solved, matrices / (3.0 * volume), volume)


def _mean_vectors(crystal: Crystal, images: Images) -> np.ndarray:
    """(supercell atoms, primitive atoms, 3) Å, from the primitive atom, averaged over the equally short images."""
    vectors = [[images.vectors[b : b + n].mean(axis=0) for n, b in row] for row in images.multiplicity]
    return np.array(vectors) @ crystal.lattice


def _internal_strain(fc: ForceConstants) -> np.ndarray:
    """(primitive atoms, 3) Å for a unit of isotropic strain: how far the atoms move, beyond what the cell takes along, until
    the forces that the strain causes vanish again. Without a macroscopic field.

    Source: Born and Huang, Dynamical Theory of Crystal Lattices (Oxford, 1954).
    """
    fc2, n = np.asarray(fc.fc2), len(fc.crystal.numbers)
    force = -np.einsum("ijab,jib->ia", fc2, _mean_vectors(fc.crystal, fc.images2)).ravel()
    curvature = np.zeros((n, 3, n, 3))
    np.add.at(curvature.transpose(2, 0, 1, 3), fc.images2.primitive_of, fc2.transpose(1, 0, 2, 3))
    # Rigid shifts cost nothing; they are taken out exactly, as sum rules of files hold to a few digits only.
    rest = np.kron(np.eye(n) - 1.0 / n, np.eye(3))
    inverse = np.linalg.pinv(rest @ curvature.reshape(3 * n, 3 * n) @ rest, rcond=1e-10, hermitian=True)
    return (inverse @ force).reshape(n, 3)


def matrices_on(fc: ForceConstants, q: np.ndarray, nac: bool | None = None) -> np.ndarray:
    """(n, bands, bands) THz^2, dynamical matrices at fractional q-points."""
    at = interpolation(fc.crystal, fc.images2, fc.crystal.born is not None if nac is None else nac)
    with double_precision():
        at = jax.tree.map(jnp.asarray, at)
        return np.asarray(_matrices(jnp.asarray(fc.fc2), at, q @ fc.crystal.reciprocal, batch=min(64, len(q))))


def from_slope(solved: MeshPhonons, slope: np.ndarray, volume: float) -> Grueneisen:
    """Grüneisen parameters of the phonons of a grid and the slope (points, bands, bands) of their dynamical matrices."""
    f, e = solved.frequencies, solved.phonons.eigenvectors
    assert e is not None
    gamma = np.zeros_like(f)
    for k in range(len(f)):
        inside = e[k].conj().T @ slope[k] @ e[k]
        for block in degenerate_blocks(f[k]):
            values = np.linalg.eigvalsh(inside[np.ix_(block, block)])
            some = f[k, block] > CUTOFF
            gamma[k, block] = np.where(some, -volume * values / (2.0 * np.where(some, f[k, block], 1.0) ** 2), 0.0)
    return Grueneisen(gamma, solved, volume)


def scaled(atoms: Any, volume_factor: float) -> System:
    """The structure at another volume, with fractional coordinates kept."""
    system = System.from_atoms(atoms)
    length = volume_factor ** (1.0 / 3.0)
    return system.replace(positions=np.asarray(system.positions) * length, cell=np.asarray(system.cell) * length)


def grueneisen(
    potential: Any,
    atoms: Any,
    supercell: Any,
    mesh: Any,
    *,
    change: float = 0.01,
    displacement: float | None = None,
    relax_positions: bool = True,
    batch_size: int | None = None,
) -> Grueneisen:
    """Mode Grüneisen parameters of a potential by volume differences.

    Args:
      atoms: relaxed (`relax` with "converged").
      supercell, displacement, batch_size: as for `force_constants`.
      mesh: 3 whole numbers.
      change: relative change of volume to either side.
      relax_positions: relax internal coordinates at the changed volumes.

    Raises:
      InputError: a change that is not between 1e-5 and 0.1, and as `force_constants`.
    """
    if not 1e-5 <= change <= 0.1:
        raise InputError(f"change is {change}; the relative change of volume must lie between 1e-5 and 0.1")
    found = []
    for factor in (1.0 - change, 1.0, 1.0 + change):
        system: Any = scaled(atoms, factor)
        if relax_positions and factor != 1.0:
            from jaxmd_thermal.io.relax import relaxed_positions

            system = relaxed_positions(potential, system)
        found.append(force_constants(potential, system, supercell, displacement=displacement, batch_size=batch_size))
    return grueneisen_from_volumes(found[0], found[1], found[2], mesh)


def bulk_modulus(potential: Any, atoms: Any, change: float = 1e-3, relax_positions: bool = True) -> float:
    """-V dp/dV of a relaxed structure under isotropic strain, GPa, by the central difference of the pressure."""
    pressures = []
    for factor in (1.0 - change, 1.0 + change):
        system: Any = scaled(atoms, factor)
        if relax_positions:
            from jaxmd_thermal.io.relax import relaxed_positions

            system = relaxed_positions(potential, system)
        pressures.append(-np.trace(evaluate(potential, system, "stress")["stress"]) / 3.0)
    return float((pressures[0] - pressures[1]) / (2.0 * change) / GPA)
