"""Occupation and heat capacity of harmonic modes."""

from __future__ import annotations

import jax.numpy as jnp

from jaxmd_thermal import units
from jaxmd_thermal.lattice.strength import CUTOFF


def _ratio(frequencies, temperatures):
    """Which modes count at which temperature, and hf/(k_B T) of those; (..., temperatures, bands)."""
    f, t = frequencies[..., None, :], jnp.asarray(temperatures)[:, None]
    some = (f > CUTOFF) & (t > 0)
    return some, jnp.where(some, f, 1.0) * units.THZ_ENERGY / (units.BOLTZMANN * jnp.where(some, t, 1.0))


def occupation(frequencies, temperatures, classical: bool = False):
    """(..., bands) THz and (temperatures,) K -> (..., temperatures, bands), zero at or below 1e-4 THz and at 0 K.

    Bose-Einstein; or kT/hf for classical waves, which stands for n + 1/2.
    """
    some, x = _ratio(frequencies, temperatures)
    return jnp.where(some, 1 / x if classical else jnp.exp(-x) / -jnp.expm1(-x), 0.0)


def heat_capacity(frequencies, temperatures, classical: bool = False):
    """eV/K of each mode at constant volume, (..., temperatures, bands), zero at or below 1e-4 THz and at 0 K.

    k_B x^2 e^x/(e^x - 1)^2 with x = hf/(k_B T); k_B for classical waves.
    """
    some, x = _ratio(frequencies, temperatures)
    # (x / (2 sinh(x/2)))^2 without overflow
    each = 1.0 if classical else (x * jnp.exp(-0.5 * x) / -jnp.expm1(-x)) ** 2
    return jnp.where(some, units.BOLTZMANN * each, 0.0)


def inverse_sinh(frequencies, temperatures, classical: bool = False):
    """1/sinh(x/2), which is 2 sqrt(n(n+1)), with x = hf/(k_B T); 2/x for classical waves. Shapes as in `occupation`."""
    some, x = _ratio(frequencies, temperatures)
    return jnp.where(some, 2 / x if classical else 2 * jnp.exp(-0.5 * x) / -jnp.expm1(-x), 0.0)
