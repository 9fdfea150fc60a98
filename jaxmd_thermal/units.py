"""Units of the package: eV, Å, amu, K, fs. The only place with physical constants.

Energies and temperatures use the SI values of e and k_B (exact since 2019). The unit of mass is the amu of ASE's
unit table, so that velocities and kinetic energies convert to and from ASE without rounding noise; the next
revision of the amu moved it by 1e-8, which no result here can see.
"""

from __future__ import annotations

import math

ELEMENTARY_CHARGE = 1.602176634e-19
"""J per eV (exact)."""

BOLTZMANN = 1.380649e-23 / ELEMENTARY_CHARGE
"""eV/K (exact)."""

PLANCK_REDUCED = 6.62607015e-34 / (2.0 * math.pi) / ELEMENTARY_CHARGE * 1e15
"""eV fs (exact)."""

THZ_ENERGY = 2e-3 * math.pi * PLANCK_REDUCED
"""eV per THz, h."""

ASE_TIME = 10.180505671156725
"""fs per ASE unit of time, Å sqrt(amu/eV)."""

AMU_A2_FS2 = ASE_TIME**2
"""eV per amu Å^2/fs^2, so that the kinetic energy is 0.5 * m * v^2 * AMU_A2_FS2."""

ACCELERATION = 1.0 / AMU_A2_FS2
"""Å/fs^2 per (eV/Å)/amu."""

THZ = 1e3 / (2.0 * math.pi * ASE_TIME)
"""THz (ordinary frequency) per sqrt(eV/Å^2/amu)."""

COULOMB = ELEMENTARY_CHARGE / (4.0 * math.pi * 8.8541878128e-12) * 1e10
"""eV Å, e^2/(4 pi epsilon_0) (CODATA 2018)."""

KJ_PER_MOL = ELEMENTARY_CHARGE * 6.02214076e23 * 1e-3
"""kJ/mol per eV (exact)."""

GPA = 1e9 * 1e-30 / ELEMENTARY_CHARGE
"""eV/Å^3 per GPa."""

BAR = 1e-4 * GPA
"""eV/Å^3 per bar."""


def green_kubo_prefactor(volume: float, temperature: float) -> float:
    """Factor from the time integral of <J(0) J(t)>, (eV Å/fs)^2 fs, to W/(m K).

    `kappa_ab = 1/(k_B T^2 V) integral <J_a(0) J_b(t)> dt` with the extensive flux J, `volume` in Å^3, `temperature` in K.
    """
    # eV^2 Å^2 / fs / (eV/K K^2 Å^3) = eV / (fs K Å) = e * 1e15 * 1e10 W/(m K).
    return ELEMENTARY_CHARGE * 1e25 / (BOLTZMANN * temperature**2 * volume)


def hnemd_prefactor(volume: float, temperature: float) -> float:
    """Factor from <J_a>/F_b, eV Å/fs over 1/Å, to W/(m K): `kappa_ab = <J_a> / (V T F_b)`."""
    return ELEMENTARY_CHARGE * 1e25 / (volume * temperature)
