"""Quasi-harmonic approximation: the volume that minimises the free energy at each temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from jaxmd_thermal.derivatives import evaluate
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice.density import mesh_phonons
from jaxmd_thermal.lattice.force_constants import force_constants
from jaxmd_thermal.lattice.grueneisen import scaled
from jaxmd_thermal.lattice.thermodynamics import Thermodynamics, thermodynamics
from jaxmd_thermal.potentials.base import Potential
from jaxmd_thermal.units import GPA, KJ_PER_MOL

POINTS = 11
"""Volumes between the smallest and the largest."""


def vinet(volume, energy, modulus, slope, minimum):
    """Energy of the equation of state, eV: minimum `energy` at the volume `minimum` Å^3, bulk modulus eV/Å^3, its slope.

    Source: Vinet et al., J. Phys. Condens. Matter 1, 1941 (1989).
    """
    x = (np.asarray(volume) / minimum) ** (1.0 / 3.0)
    eta = 1.5 * (slope - 1.0)
    growth = 1.0 - (1.0 - eta * (1.0 - x)) * np.exp(eta * (1.0 - x))
    return energy + 9.0 * modulus * minimum / eta**2 * growth


def fit_vinet(volumes: Any, energies: Any) -> np.ndarray:
    """(energy, modulus, slope, volume of the minimum) by least squares; eV and Å^3.

    Raises:
      InputError: fewer than 5 volumes, values that are not finite, or no minimum between the volumes.
    """
    v, e = np.asarray(volumes, float), np.asarray(energies, float)
    if v.ndim != 1 or v.shape != e.shape or len(v) < 5 or not np.all(np.isfinite([v, e])):
        raise InputError(f"{v.shape} volumes and {e.shape} energies: at least 5 pairs of finite numbers are needed")
    # In x = V/V_mean and E - E_min, so that all parameters are of order one.
    middle = float(v.mean())
    c2, c1, c0 = np.polyfit(v / middle - 1.0, e, 2)
    if not c2 > 0:
        raise InputError("the energies have no minimum over these volumes (the parabola through them opens downwards)")
    start = np.array([c0 - c1**2 / (4 * c2), 2.0 * c2 / middle, 4.0, middle * (1.0 - c1 / (2.0 * c2))])
    scale = np.array([max(np.ptp(e), 1e-12), start[1], 1.0, middle])

    def residual(p):
        return (vinet(v, *(p * scale)) - e) / scale[0]

    found = least_squares(residual, start / scale, xtol=1e-15, ftol=1e-15, gtol=1e-15).x * scale
    if not v.min() < found[3] < v.max():
        raise InputError(
            f"the free energy is lowest at {found[3]:.4g} Å^3, outside of the volumes {v.min():.4g} to {v.max():.4g} Å^3: add "
            "volumes on that side, or lower the temperature"
        )
    return found


@dataclass(frozen=True, eq=False)
class QuasiHarmonic:
    """Properties at zero pressure, per primitive cell.

    Attributes:
      temperatures: (n,) K.
      volume: (n,) Å^3.
      free_energy: (n,) eV.
      bulk_modulus: (n,) GPa, isothermal.
      expansion: (n,) 1/K, volumetric; a third of it is the linear one of a cubic crystal.
    """

    temperatures: np.ndarray
    volume: np.ndarray
    free_energy: np.ndarray
    bulk_modulus: np.ndarray
    expansion: np.ndarray


def quasi_harmonic_from_volumes(volumes: Any, energies: Any, thermal: list[Thermodynamics]) -> QuasiHarmonic:
    """Minimise E(V) + F_vib(V, T) with Vinet's equation of state.

    The expansion is (dS/dV)_T/B_T (Maxwell), with a cubic through the entropies: no difference between temperatures.

    Args:
      volumes: (m,) Å^3 of the primitive cell; 11 between 95 % and 105 % are usual.
      energies: (m,) eV per primitive cell of the crystal at rest.
      thermal: harmonic thermodynamics at each volume, all at the same temperatures.

    Raises:
      InputError: shapes, imaginary modes at a volume, or a minimum outside of the volumes.
    """
    if len(thermal) != len(np.atleast_1d(volumes)):
        raise InputError(
            f"{len(np.atleast_1d(volumes))} volumes and {len(thermal)} sets of thermodynamics: one for each"
        )
    bad = [f"{v:.4g} Å^3: {t.imaginary}" for v, t in zip(volumes, thermal, strict=True) if t.imaginary]
    if bad:
        raise InputError(f"imaginary modes have no free energy; {bad[0]}")
    temperatures = thermal[0].temperatures
    if any(not np.array_equal(t.temperatures, temperatures) for t in thermal):
        raise InputError("the thermodynamics must be at the same temperatures for all volumes")
    vibrational = np.array([t.free_energy for t in thermal]) / KJ_PER_MOL
    entropies = np.array([t.entropy for t in thermal]) / (1e3 * KJ_PER_MOL)
    fits, slopes = [], []
    for k, temperature in enumerate(temperatures):
        try:
            fits.append(fit_vinet(volumes, np.asarray(energies, float) + vibrational[:, k]))
        except InputError as error:
            raise InputError(f"at {temperature:g} K: {error}") from None
        slopes.append(np.polynomial.Polynomial.fit(volumes, entropies[:, k], 3).deriv()(fits[-1][3]))
    found = np.array(fits)
    return QuasiHarmonic(
        temperatures=temperatures,
        volume=found[:, 3],
        free_energy=found[:, 0],
        bulk_modulus=found[:, 1] / GPA,
        expansion=np.array(slopes) / found[:, 1],
    )


def volume_factors(volumes: tuple[float, float], points: int = POINTS) -> np.ndarray:
    """(points,) from the smallest to the largest volume, in units of that of the crystal.

    Raises:
      InputError: a range that is not ascending or not within 0.5 to 2, fewer than 5 points.
    """
    low, high = volumes
    if not (0.5 <= low < high <= 2.0 and points >= 5):
        raise InputError(
            f"volumes are {low:g} to {high:g} with {points} points; give an ascending range within 0.5 and 2 (units of the "
            "volume of the crystal) and at least 5 points"
        )
    return np.linspace(low, high, points)


def quasi_harmonic(
    potential: Potential,
    atoms: Any,
    supercell: Any,
    mesh: Any,
    temperatures: Any = (300.0,),
    *,
    volumes: tuple[float, float] = (0.95, 1.05),
    points: int = POINTS,
    displacement: float | None = None,
    batch_size: int | None = None,
) -> QuasiHarmonic:
    """Volume, bulk modulus and thermal expansion of a potential; positions and shape of the cell follow each volume.

    Args:
      atoms: relaxed (`relax` with "converged").
      supercell, displacement, batch_size: as for `force_constants`.
      mesh: 3 whole numbers.
      temperatures: K, zero or more.
      volumes: smallest and largest volume, in units of that of the atoms.
      points: volumes between them, 5 or more.

    Raises:
      InputError: as `volume_factors`, `quasi_harmonic_from_volumes` and `force_constants`.
      UnstableError: positions or shape do not relax at a volume.
    """
    from jaxmd_thermal.io.relax import relaxed_positions

    sizes, energies, thermal = [], [], []
    for factor in volume_factors(volumes, points):
        moved: Any = relaxed_positions(potential, scaled(atoms, float(factor)), shape=True)
        fc = force_constants(potential, moved, supercell, displacement=displacement, batch_size=batch_size)
        cells = moved.get_volume() / fc.crystal.volume
        sizes.append(fc.crystal.volume)
        energies.append(float(evaluate(potential, moved, "energy")["energy"]) / cells)
        thermal.append(thermodynamics(mesh_phonons(fc, mesh), temperatures))
    return quasi_harmonic_from_volumes(sizes, energies, thermal)
