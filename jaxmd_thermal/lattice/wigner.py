"""The Wigner conductivity of a crystal: populations, coherences, and what each mode contributes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmd_thermal import units
from jaxmd_thermal.lattice.occupation import heat_capacity
from jaxmd_thermal.lattice.strength import CUTOFF, degenerate_mean

CONDUCTIVITY = units.ELEMENTARY_CHARGE * 1e22 / (2 * math.pi)
"""W/(m K) per eV/K (THz Å)^2/THz/Å^3, for half widths in ordinary frequency."""


class Conductivity(NamedTuple):
    """W/(m K). `populations` and `coherences` (temperatures, 3, 3); `modes` (temperatures, k, bands), averaged over
    directions, star weights included: their sum divided by that of the weights is the mean of the diagonal."""

    populations: Any
    coherences: Any
    modes: Any


def squared_velocity(velocity, rotations):
    """Re[v^a conj(v^b)], averaged over the point group: (k, 3, bands, bands), (r, 3, 3) Cartesian -> (k, bands, bands, 3, 3)."""
    product = jnp.real(jnp.einsum("kast,kbst->kstab", velocity, velocity.conj()))
    r = jnp.asarray(rotations)
    # The average of R x R over the group acts on the 9 components at once.
    average = (jnp.einsum("rac,rbd->abcd", r, r) / len(r)).reshape(9, 9)
    return (product.reshape(*product.shape[:3], 9) @ average.T).reshape(product.shape)


def speeds(velocity, frequencies):
    """|group velocity| (k, bands), THz Å: root of the mean square over each degenerate block, free of the gauge."""
    mean = degenerate_mean(frequencies)
    squared = jnp.sum(jnp.real(velocity * velocity.conj()), 1)
    squared = jnp.sum(jnp.where(mean > 0, squared, 0.0), -1)
    squared = jnp.einsum("kst,kt->ks", mean, squared)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


class Pairs(NamedTuple):
    """Conductivity per velocity^2 of pairs of modes, W/(m K) over (THz Å)^2, `amount` (temperatures, k, bands, bands), star
    weights and 1/(V N) included; which of them are populations, `same` (k, bands, bands); and `share`, 2 C_s/(C_s + C_s'),
    by which a coherence counts for its first mode, in the shape of `amount`."""

    amount: Any
    same: Any
    share: Any


def pairs(frequencies, gamma, weights, volume, temperatures, classical: bool = False) -> Pairs:
    """What stands before the velocities in the Wigner conductivity. Arguments as in `conductivity`."""
    f = frequencies
    some = f > CUTOFF
    both = some[:, :, None] & some[:, None, :]
    safe = jnp.where(some, f, 1.0)
    c = jnp.swapaxes(heat_capacity(f, temperatures, classical), 0, 1)  # (T, k, bands)
    half = gamma[..., :, None] + gamma[..., None, :]
    gap = f[:, :, None] - f[:, None, :]
    broad = both & (half > 0)
    lorentz = jnp.where(broad, half / jnp.where(broad, gap**2 + half**2, 1.0), 0.0)
    ratio = c / safe
    prefactor = 0.25 * (f[:, :, None] + f[:, None, :]) * (ratio[..., :, None] + ratio[..., None, :])
    amount = prefactor * lorentz * (CONDUCTIVITY / (volume * jnp.sum(weights))) * weights[:, None, None]
    same = jax.lax.stop_gradient(jnp.abs(gap)) < CUTOFF
    total = c[..., :, None] + c[..., None, :]
    share = 2 * c[..., :, None] / jnp.where(total > 0, total, 1.0)
    return Pairs(amount, same, share)


def conductivity(frequencies, velocity2, gamma, weights, volume, temperatures, classical: bool = False) -> Conductivity:
    """Equation (48) of Simoncelli, Marzari and Mauri, Phys. Rev. X 12, 041011 (2022), with linewidths Gamma = 4 pi gamma.

    Pairs of modes closer than 1e-4 THz count as populations, all others as coherences.

    Args:
      frequencies: (k, bands) THz of the irreducible points.
      velocity2: (k, bands, bands, 3, 3) of `squared_velocity`.
      gamma: (temperatures, k, bands) THz, half widths of all processes.
      weights: (k,) points of the grid that each stands for.
      volume: Å^3 of the primitive cell. temperatures: (temperatures,) K.
      classical: heat capacity k_B of every mode.
    """
    amount, same, share = pairs(frequencies, gamma, weights, volume, temperatures, classical)
    populations = jnp.einsum("Tkst,kstab->Tab", jnp.where(same, amount, 0.0), velocity2)
    coherences = jnp.einsum("Tkst,kstab->Tab", jnp.where(same, 0.0, amount), velocity2)
    pair = amount * jnp.trace(velocity2, axis1=-2, axis2=-1) * (jnp.sum(weights) / 3)
    modes = jnp.sum(jnp.where(same, pair, pair * share), -1)
    return Conductivity(populations, coherences, modes)
