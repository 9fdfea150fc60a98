"""Harmonic thermodynamics: free energy, entropy, heat capacity and mean-square displacements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.density import MeshPhonons
from jaxmd_thermal.lattice.occupation import heat_capacity, occupation
from jaxmd_thermal.units import AMU_A2_FS2, BOLTZMANN, KJ_PER_MOL, PLANCK_REDUCED, THZ_ENERGY

CUTOFF = 1e-2
"""THz. Slower modes are left out: acoustic ones at Gamma are zero up to rounding, and would add k_B T ln of that rounding."""


def free_energy(frequencies, temperature):
    """Free energy of harmonic modes, eV each, zero-point energy included; pure, differentiable. THz above zero, K >= 0."""
    energy = THZ_ENERGY * frequencies
    warm = temperature > 0
    kt = BOLTZMANN * jnp.where(warm, temperature, 1.0)
    return 0.5 * energy + jnp.where(warm, kt * jnp.log(-jnp.expm1(-energy / kt)), 0.0)


def entropy(frequencies, temperature):
    """k_B [x n - ln(1 - e^-x)] in eV/K each."""
    warm = temperature > 0
    x = THZ_ENERGY * frequencies / (BOLTZMANN * jnp.where(warm, temperature, 1.0))
    each = x * jnp.exp(-x) / -jnp.expm1(-x) - jnp.log(-jnp.expm1(-x))
    return jnp.where(warm, BOLTZMANN * each, 0.0)


@dataclass(frozen=True, eq=False)
class Thermodynamics:
    """Harmonic thermodynamics per mole of primitive cells (phonopy's convention).

    Attributes:
      temperatures: (n,) K.
      free_energy: (n,) kJ/mol, with zero-point energy.
      entropy: (n,) J/(mol K).
      heat_capacity: (n,) J/(mol K), at constant volume.
      zero_point: kJ/mol.
      excluded: share of the modes that is left out (at or below the cutoff, imaginary ones included).
      imaginary: what is imaginary, in words; empty if nothing is.
    """

    temperatures: np.ndarray
    free_energy: np.ndarray
    entropy: np.ndarray
    heat_capacity: np.ndarray
    zero_point: float
    excluded: float
    imaginary: str


def thermodynamics(mesh: MeshPhonons, temperatures: Any, cutoff: float = CUTOFF) -> Thermodynamics:
    """Free energy, entropy and heat capacity.

    Args:
      mesh: phonons on a grid.
      temperatures: K, zero or more.
      cutoff: THz; modes at or below it are left out.

    Raises:
      InputError: a temperature or cutoff that is negative or not finite.
    """
    t = _checked(temperatures, cutoff)
    f = mesh.frequencies
    some = f > cutoff
    with double_precision():
        weight = jnp.asarray(np.where(some, mesh.weights[:, None], 0.0))
        safe = jnp.asarray(np.where(some, f, 1.0))

        def total(function):
            return np.array([float(jnp.sum(weight * function(safe, float(x)))) for x in t])

        return Thermodynamics(
            temperatures=t,
            free_energy=KJ_PER_MOL * total(free_energy),
            entropy=1e3 * KJ_PER_MOL * total(entropy),
            heat_capacity=1e3 * KJ_PER_MOL * np.asarray(jnp.einsum("kb,ktb->t", weight, heat_capacity(safe, t))),
            zero_point=KJ_PER_MOL * float(jnp.sum(weight * 0.5 * THZ_ENERGY * safe)),
            excluded=float(np.sum(np.where(some, 0.0, mesh.weights[:, None])) / f.shape[1]),
            imaginary=mesh.phonons.describe_imaginary(),
        )


def mean_square_displacements(mesh: MeshPhonons, temperatures: Any, cutoff: float = CUTOFF) -> np.ndarray:
    """<u_a u_b> of every atom, (temperatures, atoms, 3, 3) Å^2: hbar/(2 m N) sum_qs (2 n + 1) e_a conj(e_b)/omega.

    The sum over the irreducible points is completed by the space group's rotations.

    Args: as for `thermodynamics`; the phonons need eigenvectors.

    Raises:
      InputError: no eigenvectors, or arguments as above.
    """
    t = _checked(temperatures, cutoff)
    vectors = mesh.phonons.eigenvectors
    if vectors is None:
        raise InputError("mean-square displacements need eigenvectors: mesh_phonons(..., eigenvectors=True)")
    f, crystal = mesh.frequencies, mesh.phonons.crystal
    some = f > cutoff
    safe = np.where(some, f, 1.0)
    omega = 2e-3 * math.pi * safe  # 1/fs
    e = vectors.reshape(len(f), -1, 3, f.shape[1])
    with double_precision():
        n = np.asarray(occupation(jnp.asarray(safe), t))
    square = (
        np.where(some, PLANCK_REDUCED / (2.0 * omega), 0.0)[:, None] * (2.0 * n + 1.0) * mesh.weights[:, None, None]
    )
    out = np.stack([np.einsum("qs,qjas,qjbs->jab", x, e, e.conj()).real for x in np.moveaxis(square, 1, 0)])
    out /= (crystal.masses * AMU_A2_FS2)[None, :, None, None]
    rotations, permutations = symmetry.primitive_operations(crystal)
    turned = np.zeros_like(out)
    for r, p in zip(rotations, permutations, strict=True):
        turned[:, p] += np.einsum("ax,by,tjxy->tjab", r, r, out)
    return turned / len(rotations)


def _checked(temperatures: Any, cutoff: float) -> np.ndarray:
    t = np.atleast_1d(np.asarray(temperatures, float))
    if t.ndim != 1 or not np.all(np.isfinite(t)) or np.any(t < 0):
        raise InputError(f"temperatures are {temperatures!r}; they must be numbers in K, zero or more")
    if not (np.isfinite(cutoff) and cutoff >= 0):
        raise InputError(f"cutoff is {cutoff} THz; it must be zero or more")
    return t
