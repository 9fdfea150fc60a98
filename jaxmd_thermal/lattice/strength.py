"""Strength |V|^2 of three-phonon processes: the Fourier transform of the third-order force constants."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxmd_thermal import units
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice.crystal import Crystal, Images

CUTOFF = 1e-4
"""THz. Modes below it take part in nothing; modes closer than it count as degenerate."""

KEPT = ("half transform at its triplet", "amplitude before its last two eigenvectors")
"""Names of what a gradient had better keep of `amplitudes`: all other steps are cheap to repeat."""

KEPT_BYTES = 1 << 30
"""Memory for what a gradient keeps of the forward pass; what would need more is computed once more instead."""

LINEWIDTH_UNIT = math.pi / 16 * units.PLANCK_REDUCED / (2 * math.pi) ** 5 / units.AMU_A2_FS2**3 * 1e15
"""THz per (eV/Å^3)^2/(amu^3 THz^4): 18 pi/hbar^2 (hbar/2)^3/36 in the units of fc3, masses and ordinary frequencies."""


class Paths(NamedTuple):
    """How phases between atoms are formed; the atoms of the supercell are grouped by the primitive atom they repeat.

    `vectors` (P, P, n, M, 3) in fractions of the primitive vectors and `shares` (P, P, n, M), which sum to one over the
    equally short vectors, belong to: reference atom, repeated atom, copy, shortest vector. `order` (P, n) are the rows
    of the supercell.
    """

    vectors: Any
    shares: Any
    order: np.ndarray


def make_paths(images: Images) -> Paths:
    """Shortest vectors of `images` in the layout that the transforms need (host)."""
    n_primitive = len(images.primitive_rows)
    n_super = len(images.primitive_of)
    if n_super % n_primitive or np.any(np.bincount(images.primitive_of) * n_primitive != n_super):
        raise InputError(f"{n_super} atoms of the supercell do not repeat {n_primitive} atoms of the primitive cell")
    order = np.argsort(images.primitive_of, kind="stable").reshape(n_primitive, -1)
    count, begin = images.multiplicity[..., 0], images.multiplicity[..., 1]
    slots = np.arange(int(count.max()))
    used = slots < count[..., None]
    vectors = images.vectors[np.where(used, begin[..., None] + slots, 0)]
    shares = used / count[..., None]
    # (supercell, reference, M) -> (reference, repeated, copy, M)
    return Paths(np.moveaxis(vectors[order], 2, 0), np.moveaxis(shares[order], 2, 0), order)


def phase_factors(paths: Paths, qpoints):
    """(n, 3) fractional q -> (n, P, P, copies): exp(i q.(r_copy - r_reference)), averaged over equally short vectors."""
    angle = jnp.einsum("ijsmc,qc->qijsm", jnp.asarray(paths.vectors), qpoints)
    return jnp.einsum("qijsm,ijsm->qijs", jnp.exp(2j * jnp.pi * angle), jnp.asarray(paths.shares))


def grouped(fc3, paths: Paths):
    """Compact third-order force constants (P, S, S, 3, 3, 3) -> (P, P, n, P, n, 27), atoms grouped as in `paths`."""
    n_primitive, copies = paths.order.shape
    rows = paths.order.reshape(-1)
    fc3 = jnp.asarray(fc3)[:, rows][:, :, rows]
    return fc3.reshape(n_primitive, n_primitive, copies, n_primitive, copies, 27)


def half_transform(fc3, phases):
    """Sum over the third atom for each q: (q, reference i, atom j, atom k, copies of j, 27), complex.

    Shared by all triplets with this q in the third place; it is the large table (16 bytes times P^2 S 27 for each q).
    """
    return jnp.einsum("ijskty,qikt->qijksy", fc3, phases)


class First(NamedTuple):
    """What a triplet needs of its first phonon alone: the transforms for the two other choices of the reference atom,
    projected on its eigenvectors, (j, k, 2 copies, bands, 3, 3); phases-free; and the eigenvectors over sqrt(mass)."""

    others: Any
    eigenvectors: Any


def first_phonon(fc3, phases, eigenvectors, inverse_root):
    """`First` of one q. phases (P, P, n), eigenvectors (3P, bands), inverse_root (P,) 1/sqrt(amu)."""
    n_primitive = fc3.shape[0]
    e0 = eigenvectors.reshape(n_primitive, 3, -1) * inverse_root[:, None, None]
    split = fc3.reshape(*fc3.shape[:-1], 3, 3, 3)
    # Reference atom j of q': first phonon on the second atom of fc3, third phonon on its third atom.
    second = jnp.einsum("jisktmln,jis->jkitlmn", split, phases)
    # Reference atom k of q'': q' on the second atom, the first phonon on the third.
    third = jnp.einsum("kjsitnml,kit->jkislmn", split, phases)
    both = jnp.concatenate([second, third], axis=3)
    return First(jnp.einsum("jkitlmn,ila->jktamn", both, e0), e0)


def amplitudes(first: First, transform, phases1, phases2, e1, e2, shift):
    """Phi3 contracted with three eigenvectors over sqrt(m m' m''), mean of the three choices of the reference atom.

    Args:
      first: of q, without a triplet axis.
      transform: (t, i, j, k, copies, 27) half transforms of q''.
      phases1, phases2: (t, P, P, copies) of q' and q''.
      e1, e2: (t, 3P, bands) eigenvectors over sqrt(mass).
      shift: (t, P) exp(2 pi i (q + q' + q'').x) at the primitive atoms.

    Returns: (t, bands, bands, bands) complex, eV/Å^3/amu^1.5.
    """
    t, n = len(transform), e1.shape[1] // 3
    # Written as a product and a sum so that the compiler fuses the gather of `transform`: twice as fast as a dot here.
    one = jnp.sum(transform * (phases1 * shift[:, :, None, None])[:, :, :, None, :, None], 4)
    one = checkpoint_name(one, KEPT[0])
    one = jnp.einsum("tijklw,ila->tajkw", one.reshape(t, n, n, n, 3, 9), first.eigenvectors)
    at_second = phases2 * shift[:, :, None, None]
    at_third = jnp.swapaxes(phases1 * shift[:, :, None, None], 1, 2)
    both = jnp.concatenate([at_second, at_third], axis=3)
    two = jnp.einsum("jksamn,tjks->jktamn", first.others, both)
    total = one.reshape(t, -1, n, n, 3, 3) + jnp.einsum("jktamn->tajkmn", two)
    total = checkpoint_name(jnp.swapaxes(total, 3, 4).reshape(t, -1, 3 * n, 3 * n), KEPT[1])
    half = jnp.einsum("tapr,tpb->tabr", total, e1)
    return jnp.einsum("tabr,trc->tabc", half, e2) / 3


def strengths(amplitude, f0, f1, f2):
    """|amplitude|^2/(f f' f''), zero where a mode lies below `CUTOFF`. f0 (bands,), f1 and f2 (t, bands), THz.

    Returns: (t, bands, bands, bands), (eV/Å^3)^2/(amu THz)^3.
    """

    def inverse(f):
        return jnp.where(f > CUTOFF, 1 / jnp.where(f > CUTOFF, f, 1.0), 0.0)

    squared = amplitude.real**2 + amplitude.imag**2
    return squared * (inverse(f0)[:, None, None] * inverse(f1)[:, None, :, None] * inverse(f2)[:, None, None, :])


def block_mean(values, *means):
    """Average of (t, a, b, c) over degenerate blocks of each of the three phonons; means from `degenerate_mean`.

    It does not depend on which eigenvectors were taken inside a block. First mean (a, a), the others (t, b, b), (t, c, c).
    """
    m0, m1, m2 = means
    values = jnp.einsum("tabc,ax->txbc", values, m0)
    values = jnp.einsum("tabc,tby->tayc", values, m1)
    return jnp.einsum("tabc,tcz->tabz", values, m2)


def degenerate_mean(frequencies):
    """(..., bands) THz -> (..., bands, bands): matrix that averages over modes closer than `CUTOFF`; no derivative."""
    f = jax.lax.stop_gradient(frequencies)
    same = (jnp.abs(f[..., :, None] - f[..., None, :]) < CUTOFF).astype(f.dtype)
    return same / jnp.sum(same, -1, keepdims=True)


def kept_bytes(triplets: int, bands: int, dtype) -> int:
    """Memory of the intermediate results called `KEPT` for so many triplets."""
    return 2 * triplets * bands**3 * jnp.dtype(dtype).itemsize


def transform_bytes(crystal: Crystal, images: Images) -> int:
    """Memory of one q in the table of half transforms."""
    n = len(crystal.masses)
    return 16 * 27 * n * n * len(images.primitive_of)
