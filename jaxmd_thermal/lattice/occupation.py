"""Occupation and heat capacity of harmonic modes."""

from __future__ import annotations

import math

import jax.numpy as jnp

from jaxmd_thermal import units
from jaxmd_thermal.lattice.strength import CUTOFF

THZ_ENERGY = 2e-3 * math.pi * units.PLANCK_REDUCED
"""eV per THz."""


def _ratio(frequencies, temperatures):
    f = frequencies[..., None, :]
    safe = jnp.where(f > CUTOFF, f, 1.0)
    return f > CUTOFF, safe * THZ_ENERGY / (units.BOLTZMANN * jnp.asarray(temperatures)[:, None])


def occupation(frequencies, temperatures, classical: bool = False):
    """(..., bands) THz and (temperatures,) K -> (..., temperatures, bands), zero at or below 1e-4 THz.

    Bose-Einstein; or kT/hf for classical waves, which stands for n + 1/2.
    """
    some, x = _ratio(frequencies, temperatures)
    return jnp.where(some, 1 / x if classical else 1 / jnp.expm1(x), 0.0)


def heat_capacity(frequencies, temperatures, classical: bool = False):
    """eV/K of each mode, (..., temperatures, bands), zero at or below 1e-4 THz; k_B for classical waves."""
    some, x = _ratio(frequencies, temperatures)
    # x^2 e^x/(e^x - 1)^2 = (x / (2 sinh(x/2)))^2 without overflow for the x that occur
    each = 1.0 if classical else (0.5 * x / jnp.sinh(jnp.minimum(0.5 * x, 300.0))) ** 2
    return jnp.where(some, units.BOLTZMANN * each, 0.0)
