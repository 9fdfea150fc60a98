"""Thermal expansion of crystals of any symmetry, from strain Grüneisen parameters and the elastic stiffness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import InputError, UnstableError
from jaxmd_thermal.lattice import equilibrium
from jaxmd_thermal.lattice.density import mesh_phonons
from jaxmd_thermal.lattice.force_constants import force_constants
from jaxmd_thermal.lattice.grueneisen import Grueneisen, from_slope, matrices_on
from jaxmd_thermal.potentials.base import Potential
from jaxmd_thermal.system import System
from jaxmd_thermal.units import GPA


@dataclass(frozen=True, eq=False)
class ThermalExpansion:
    """Linear thermal expansion.

    Attributes:
      temperatures: (T,) K.
      expansion: (T, 3, 3) 1/K, Cartesian; its trace is the volumetric expansion.
      strains: (n, 3, 3) orthonormal basis of the strains that keep the space group.
      stiffness: (n, n) GPa, second derivatives of the energy density along them, positions relaxed.
      gamma: for each strain, -(1/omega) d omega/d strain.
    """

    temperatures: np.ndarray
    expansion: np.ndarray
    strains: np.ndarray
    stiffness: np.ndarray
    gamma: tuple[Grueneisen, ...]

    @property
    def volumetric(self) -> np.ndarray:
        """(T,) 1/K."""
        return np.trace(self.expansion, axis1=1, axis2=2)

    @property
    def bulk_modulus(self) -> float:
        """GPa under hydrostatic pressure: shape and positions follow."""
        dilation = np.trace(self.strains, axis1=1, axis2=2)
        return float(1.0 / (dilation @ np.linalg.solve(self.stiffness, dilation)))


def thermal_expansion(
    potential: Potential,
    atoms: Any,
    supercell: Any,
    mesh: Any,
    temperatures: Any = (300.0,),
    *,
    change: float = 0.003,
    displacement: float | None = None,
    batch_size: int | None = None,
) -> ThermalExpansion:
    """alpha = sum over strains S^-1 (sum C gamma)/V: the strain that minimises the quasi-harmonic free energy, to first order.

    Args:
      atoms: relaxed (`relax` with "converged").
      supercell, displacement, batch_size: as for `force_constants`.
      mesh: 3 whole numbers.
      temperatures: K.
      change: strain to either side for the differences of dynamical matrices; positions are relaxed at each.

    Raises:
      InputError: atoms that are not relaxed, a change that is not between 1e-5 and 0.05, and as `force_constants`.
      UnstableError: an elastic stiffness that is not positive.

    Source: Barron, Collins and White, Adv. Phys. 29, 609 (1980), eqs. 2.21 and 2.22.
    """
    from jaxmd_thermal.io.relax import relaxed_positions

    if not 1e-5 <= change <= 0.05:
        raise InputError(f"change is {change}; the strain must lie between 1e-5 and 0.05")
    system = System.from_atoms(atoms)
    strains, stiffness = _stiffness(potential, system)
    middle = force_constants(potential, system, supercell, displacement=displacement, batch_size=batch_size)
    solved = mesh_phonons(middle, mesh, eigenvectors=True)
    gamma = []
    for strain in strains:
        matrices = []
        for sign in (-1.0, 1.0):
            deformation = np.eye(3) + sign * change * strain
            moved: Any = system.replace(
                positions=np.asarray(system.positions) @ deformation, cell=np.asarray(system.cell) @ deformation
            )
            moved = relaxed_positions(potential, moved)
            fc = force_constants(potential, moved, supercell, displacement=displacement, batch_size=batch_size)
            matrices.append(matrices_on(fc, solved.phonons.qpoints))
        gamma.append(from_slope(solved, (matrices[1] - matrices[0]) / (2.0 * change), 1.0))
    t = np.atleast_1d(np.asarray(temperatures, float))
    push = np.stack([g.mean(t) * g.heat_capacity(t) for g in gamma]) / (middle.crystal.volume * GPA)
    coordinates = np.linalg.solve(stiffness, push)
    return ThermalExpansion(t, np.einsum("kt,kab->tab", coordinates, strains), strains, stiffness, tuple(gamma))


def _stiffness(potential: Potential, system: System) -> tuple[np.ndarray, np.ndarray]:
    """Invariant strains and their stiffness in GPa: internal coordinates follow."""
    freedom = equilibrium.freedom_of(system)
    with double_precision():
        cell = equilibrium.cell_of(potential, system)
        equilibrium.require_relaxed(potential, cell)
        hessian = np.asarray(equilibrium.slopes(potential, cell, freedom)[1])
    strained = np.linalg.norm(freedom.strains, axis=(1, 2)) > 0.5
    inner, cross = hessian[~strained][:, ~strained], hessian[~strained][:, strained]
    relaxed = hessian[strained][:, strained]
    if (~strained).any():
        relaxed = relaxed - cross.T @ np.linalg.solve(inner, cross)
    stiffness = relaxed / (abs(np.linalg.det(np.asarray(system.cell))) * GPA)
    if np.linalg.eigvalsh(stiffness).min() <= 0:
        raise UnstableError(
            f"the elastic stiffness has the eigenvalue {np.linalg.eigvalsh(stiffness).min():.3g} GPa along a strain that keeps "
            "the symmetry: the structure is no minimum of this potential"
        )
    return freedom.strains[strained], stiffness
