"""Scattering by natural isotopes and by boundaries."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxmd_thermal._arrays import buffer_length, take
from jaxmd_thermal.errors import CapacityError, InputError
from jaxmd_thermal.lattice.strength import CUTOFF, KEPT_BYTES, degenerate_mean
from jaxmd_thermal.lattice.tetrahedron import gaussian, point_weight

# fmt: off
MASS_VARIANCE = {
    1: 0.00011460743, 2: 8.1410176e-08, 3: 0.0014588235, 4: 0.0, 5: 0.0013539153, 6: 7.3872305e-05, 7: 1.8376661e-05,
    8: 3.3588049e-05, 9: 0.0, 10: 0.00082783153, 11: 0.0, 12: 0.00073988258, 13: 0.0, 14: 0.00020070046, 15: 0.0,
    16: 0.00016512817, 17: 0.00058270126, 18: 3.5099226e-05, 19: 0.00016400133, 20: 0.00029756388, 21: 0.0,
    22: 0.00028645597, 23: 9.5483141e-07, 24: 0.00013287024, 25: 0.0, 26: 8.2444086e-05, 27: 0.0, 28: 0.00043070907,
    29: 0.00021093334, 30: 0.00059818256, 31: 0.00019712673, 32: 0.00058673073, 33: 0.0, 34: 0.00046279012,
    35: 0.00015627732, 36: 0.00024880744, 37: 0.00010969667, 38: 6.0996985e-05, 39: 0.0, 40: 0.00034262886, 41: 0.0,
    42: 0.0005976523, 44: 0.00040666545, 45: 0.0, 46: 0.00030947678, 47: 8.5798415e-05, 48: 0.00027160302,
    49: 1.2455883e-05, 50: 0.00033408479, 51: 6.6075042e-05, 52: 0.00028393346, 53: 0.0, 54: 0.000267557, 55: 0.0,
    56: 6.237012e-05, 57: 4.6532179e-08, 58: 2.249555e-05, 59: 0.0, 60: 0.00023159939, 62: 0.00033468601,
    63: 4.3279482e-05, 64: 0.00012767493, 65: 0.0, 66: 5.1980704e-05, 67: 0.0, 68: 7.2324835e-05, 69: 0.0,
    70: 8.5455777e-05, 71: 8.2728232e-07, 72: 5.2538458e-05, 73: 3.6684481e-09, 74: 6.9667933e-05, 75: 2.708498e-05,
    76: 7.4523585e-05, 77: 2.5378692e-05, 78: 3.3920521e-05, 79: 0.0, 80: 6.5251912e-05, 81: 1.996435e-05,
    82: 1.9437787e-05, 83: 0.0, 90: 0.0, 91: 0.0, 92: 1.1564616e-06,
}
# fmt: on
"""Sum over isotopes of abundance times (1 - m/mean)^2 by atomic number; natural composition of the elements (de Laeter
et al., Pure Appl. Chem. 75, 683 (2003)). Elements without a natural composition are left out."""

ACTIVE = 0.1
"""First guess of the share of (q', b, b') whose tetrahedra contain the frequency."""

KEPT = "active pairs and their weights"
"""Name of what a gradient had better keep of the tetrahedra."""

EITHER_SIDE = 1e-6
"""THz. Weights are means of those so much above and below the frequency of q. It is that of all points of its star, so vertices
of tetrahedra have it, where the weight is not defined, and whole faces, where it jumps: rounding would decide."""


def mass_variances(numbers) -> np.ndarray:
    """(atoms,) relative mass variances of the natural elements.

    Raises:
      InputError: an element without a natural composition.
    """
    unknown = sorted({int(z) for z in numbers} - set(MASS_VARIANCE))
    if unknown:
        raise InputError(f"no natural isotopic composition of atomic number {unknown[0]} is known: use isotopes=False")
    return np.array([MASS_VARIANCE[int(z)] for z in numbers])


@partial(jax.jit, static_argnames=("sigma", "blocks", "capacity"))
def isotope_linewidths(modes, variances, points, plus, corners, *, sigma=None, blocks=False, capacity=0):
    """Half widths of elastic scattering by mass disorder, and how many places the buffer needs.

    gamma = pi/4 f^2/N sum_q's' sum_k g_k |e_k*(q, s).e_k(q', s')|^2 delta(f - f'), Tamura, Phys. Rev. B 27, 858 (1983).

    Args:
      modes: phonons of all points of the grid. variances: (P,) `mass_variances`.
      points: (k,) grid indices of q. plus: (n, v) points of the tetrahedra round each point. corners: (24, 3).
      sigma: THz, Gaussian; None: tetrahedra. capacity: buffer of active pairs (tetrahedra).
      blocks: average |e.e'|^2 over degenerate modes, so that tetrahedra give the same for any choice of eigenvectors.

    Returns: (k, bands) THz, averaged over degenerate modes; needed places.
    """
    f, bands = modes.frequencies, modes.frequencies.shape[1]
    n = len(f)
    split = modes.eigenvectors.reshape(n, -1, 3, bands)
    means = degenerate_mean(f)
    around = take(jnp.maximum(f, 0.0), plus)  # (n, v, bands)
    low, high = (jax.lax.stop_gradient(g(around, 1))[:, None] for g in (jnp.min, jnp.max))

    def one(point):
        f0, e0 = f[point], split[point]
        overlap = jnp.einsum("kca,nkcb->nkab", e0.conj(), split)
        amount = jnp.einsum("nkab,k->nab", overlap.real**2 + overlap.imag**2, variances)
        amount = jnp.where((f > CUTOFF)[:, None], amount, 0.0)
        if blocks:
            amount = jnp.einsum("ax,nxb,nby->nay", means[point], amount, means)
        if sigma is not None:
            return jnp.sum(amount * gaussian(f0[:, None] - f[:, None], sigma), (0, 2)), jnp.zeros((), jnp.int32)
        at = jax.lax.stop_gradient(f0)[:, None]
        active = (low < at + EITHER_SIDE) & (at - EITHER_SIDE < high)
        seen = jnp.cumsum(active.reshape(-1), dtype=jnp.int32)
        slot = jnp.minimum(jnp.searchsorted(seen, jnp.arange(1, capacity + 1, dtype=jnp.int32)), len(seen) - 1)
        there = jnp.arange(capacity) < checkpoint_name(seen[-1], KEPT)
        slot = checkpoint_name(slot, KEPT)
        rest, b = slot // bands, slot % bands
        t, a = rest // bands, rest % bands
        values = around.at[t, :, b].get(mode="promise_in_bounds").T
        sides = (point_weight(f0[a] + x, values, corners) for x in (EITHER_SIDE, -EITHER_SIDE))
        weight = checkpoint_name(0.5 * sum(sides), KEPT)
        weight = weight * amount.at[t, a, b].get(mode="promise_in_bounds") * there
        return jax.ops.segment_sum(weight, a, num_segments=bands), seen[-1]

    names = (KEPT,) if 12 * capacity * len(points) <= KEPT_BYTES else ()
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    total, needed = jax.lax.map(jax.checkpoint(one, policy=policy), points)
    f0 = f[points]
    gamma = 0.25 * math.pi / n * jnp.where(f0 > CUTOFF, f0, 0.0) ** 2 * total
    return jnp.einsum("kab,kb->ka", means[points], gamma), jnp.max(needed)


def solved_isotope_linewidths(modes, variances, points, plus, corners, sigma=None, blocks=False):
    """`isotope_linewidths`, with the buffer grown until it holds what is active. Returns: (k, bands) THz, and the capacity that
    was enough.

    Raises:
      CapacityError: the buffer did not converge.
    """
    n, bands = modes.frequencies.shape
    capacity = 0 if sigma is not None else buffer_length(ACTIVE * n * bands**2)
    for _ in range(4):
        gamma, needed = isotope_linewidths(
            modes, variances, points, plus, corners, sigma=sigma, blocks=blocks, capacity=capacity
        )
        needed = int(needed)
        if needed <= capacity:
            return gamma, capacity
        capacity = buffer_length(1.05 * needed)
    raise CapacityError(f"the buffer of isotope scattering needs {needed} places and has {capacity}")


def boundary_linewidths(speeds, length: float):
    """|v|/(4 pi L): half widths, THz, of speeds (k, bands) in THz Å (100 m/s) and a mean free path L in Å.

    Raises:
      InputError: a length that is not positive.
    """
    if not length > 0:
        raise InputError(f"boundary is {length!r}: give a positive length in Å (1 micrometre is 1e4), or None for none")
    return speeds / (4 * math.pi * length)
