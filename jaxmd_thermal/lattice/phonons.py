"""Phonons from second-order force constants: frequencies, eigenvectors, velocities, bands and densities of states.

Smooth phase convention throughout: D(q)_jj' = sum_l Phi(0j, lj') exp(i q.(r_lj' - r_0j))/sqrt(m m'), averaged over equally
short vectors. Frequencies are ordinary ones in THz; imaginary ones are negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import check_toolchain, double_precision
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.crystal import Crystal, Images
from jaxmd_thermal.lattice.dipoles import Dipoles, dipole_matrix, make_dipoles
from jaxmd_thermal.lattice.eigen import eigh
from jaxmd_thermal.lattice.force_constants import ForceConstants
from jaxmd_thermal.units import THZ

IMAGINARY = -1e-2
"""THz. Acoustic modes at Gamma above this count as zero; elsewhere every negative frequency is imaginary."""


class Interpolation(NamedTuple):
    """What the Fourier interpolation of fc2 needs besides fc2 itself; arrays, made once by `interpolation`.

    Attributes:
      vectors: (supercell atoms, primitive atoms, m, 3) Å, from the primitive atom to the equally short images.
      shares: (supercell atoms, primitive atoms, m) 1/multiplicity, zero for padding.
      groups: (primitive atoms, copies) supercell atoms that repeat each primitive atom.
      inverse_root: (primitive atoms,) 1/sqrt(amu).
      reciprocal: (3, 3) 1/Å, rows, without 2 pi.
      dipoles: the non-analytic correction, or None.
    """

    vectors: Any
    shares: Any
    groups: Any
    inverse_root: Any
    reciprocal: Any
    dipoles: Dipoles | None


def interpolation(crystal: Crystal, images: Images, nac: bool = False) -> Interpolation:
    """Arrays of the Fourier interpolation (host).

    Raises:
      InputError: `nac` without Born charges.
    """
    count, begin = images.multiplicity[..., 0], images.multiplicity[..., 1]
    slots = np.arange(int(count.max()))
    used = slots < count[..., None]
    vectors = images.vectors[np.where(used, begin[..., None] + slots, 0)] @ crystal.lattice
    n_prim = len(crystal.numbers)
    return Interpolation(
        vectors=vectors,
        shares=used / count[..., None],
        groups=np.argsort(images.primitive_of, kind="stable").reshape(n_prim, -1),
        inverse_root=1.0 / np.sqrt(crystal.masses),
        reciprocal=crystal.reciprocal,
        dipoles=make_dipoles(crystal, images) if nac else None,
    )


def dynamical_matrix(fc2, at: Interpolation, q, direction=None):
    """(3 atoms, 3 atoms) complex, THz^2: eigenvalues are squares of ordinary frequencies. Pure, differentiable.

    Args:
      fc2: (primitive, supercell atoms, 3, 3) eV/Å^2.
      q: (3,) Cartesian, 1/Å without 2 pi.
      direction: (3,) along which Gamma is approached (non-analytic correction); None or zero: from nowhere.
    """
    if at.dipoles is not None:
        fc2 = fc2 - at.dipoles.removed
    angle = 2.0 * jnp.pi * jnp.einsum("sjmc,c->sjm", at.vectors, q)
    phase = jnp.sum(at.shares * (jnp.cos(angle) + 1j * jnp.sin(angle)), axis=-1)
    matrix = jnp.einsum("ijcab,jci->ijab", fc2[:, at.groups], phase[at.groups])
    if at.dipoles is not None:
        matrix = matrix + dipole_matrix(at.dipoles, q, jnp.zeros(3) if direction is None else direction)
    matrix = matrix * (at.inverse_root[:, None] * at.inverse_root * THZ**2)[:, :, None, None]
    n = 3 * len(at.inverse_root)
    matrix = matrix.transpose(0, 2, 1, 3).reshape(n, n)
    return 0.5 * (matrix + matrix.conj().T)


def matrix_slope(fc2, at: Interpolation, q, direction=None):
    """(3, 3 atoms, 3 atoms) complex, THz^2 Å: dD/dq along x, y, z, with q in 1/Å without 2 pi."""
    return jnp.moveaxis(jax.jacfwd(lambda x: dynamical_matrix(fc2, at, x, direction))(q), -1, 0)


def frequencies_of(eigenvalues):
    """THz from THz^2; imaginary ones as negative. Below 1e-4 THz, where acoustic modes at Gamma are rounding, the slope is
    taken as zero."""
    size = jnp.abs(eigenvalues)
    some = size > 1e-8
    root = jnp.where(some, jnp.sqrt(jnp.where(some, size, 1.0)), jnp.sqrt(jax.lax.stop_gradient(size)))
    return jnp.sign(eigenvalues) * root


def modes(fc2, at: Interpolation, q, direction=None):
    """(bands,) THz and (3 atoms, bands) eigenvectors (columns) at one Cartesian q. Differentiable (`eigen.eigh`)."""
    values, vectors = eigh(dynamical_matrix(fc2, at, q, direction))
    return frequencies_of(values), vectors


def velocities(fc2, at: Interpolation, q, direction=None):
    """Frequencies, eigenvectors and the velocity operator <s|dD/dq|s'>/(omega_s + omega_s') at one Cartesian q.

    Degenerate blocks of the diagonal hold the group velocities only after rotation inside the block; `Phonons` does that.

    Returns: (bands,) THz, (3 atoms, bands), (3, bands, bands) complex THz Å; zero where a mode lies below 1e-4 THz.

    Source: Simoncelli, Marzari and Mauri, Nat. Phys. 15, 809 (2019); PRX 12, 041011 (2022), eq. 13.
    """
    f, e = modes(fc2, at, q, direction)
    inner = e.conj().T @ matrix_slope(fc2, at, q, direction) @ e
    both = (f[:, None] > 1e-4) & (f[None, :] > 1e-4)
    return f, e, jnp.where(both, inner / jnp.where(both, f[:, None] + f[None, :], 1.0), 0.0)


@partial(jax.jit, static_argnames=("wanted", "batch"))
def _solve(fc2, at, q, directions, *, wanted, batch):
    function = {"frequencies": lambda *a: (modes(*a)[0],), "modes": modes, "velocities": velocities}[wanted]
    return jax.lax.map(lambda x: function(fc2, at, *x), (q, directions), batch_size=batch)


@dataclass(frozen=True, eq=False)
class Phonons:
    """Phonons at a list of q-points.

    Attributes:
      qpoints: (n, 3) in fractions of the reciprocal vectors.
      frequencies: (n, bands) THz, ordinary, ascending; imaginary ones negative.
      eigenvectors: (n, 3 atoms, bands) columns, smooth phase convention; None if not asked for.
      velocity_operator: (n, 3, bands, bands) complex, THz Å (= 100 m/s); None if not asked for.
      crystal: the primitive cell.
    """

    qpoints: np.ndarray
    frequencies: np.ndarray
    eigenvectors: np.ndarray | None
    velocity_operator: np.ndarray | None
    crystal: Crystal

    @property
    def group_velocities(self) -> np.ndarray:
        """(n, bands, 3) THz Å. In a degenerate block (1e-4 THz) the eigenvalues of the velocity along (1, 2, 3).

        That direction lies in no symmetry plane, so it picks one basis of the block, in which all three are given.

        Raises:
          InputError: the velocities were not asked for.
        """
        if self.velocity_operator is None:
            raise InputError("these phonons were solved without velocities: ask for them with velocities=True")
        out = np.real(np.diagonal(self.velocity_operator, axis1=2, axis2=3)).transpose(0, 2, 1).copy()
        direction = np.array([1.0, 2.0, 3.0]) / np.sqrt(14.0)
        for k, f in enumerate(self.frequencies):
            for block in degenerate_blocks(f):
                if len(block) > 1:
                    inside = self.velocity_operator[k][:, block][:, :, block]
                    _, basis = np.linalg.eigh(np.einsum("c,cst->st", direction, inside))
                    out[k, block] = np.real(np.einsum("si,cst,ti->ic", basis.conj(), inside, basis))
        return out

    @property
    def imaginary(self) -> list[tuple[tuple[float, float, float], int, float]]:
        """(q, band, frequency) of every imaginary mode; acoustic modes at Gamma above -0.01 THz count as zero."""
        found = []
        for q, f in zip(self.qpoints, self.frequencies, strict=True):
            gamma = bool(np.all(np.abs(q - np.rint(q)) < 1e-8))
            for band in np.flatnonzero(f < lowest_real(f, gamma)):
                found.append(((float(q[0]), float(q[1]), float(q[2])), int(band), float(f[band])))
        return found

    def describe_imaginary(self) -> str:
        """One sentence for messages: how many imaginary modes, and the worst of them; empty if there are none."""
        found = self.imaginary
        if not found:
            return ""
        q, band, value = min(found, key=lambda x: x[2])
        return (
            f"{len(found)} of {self.frequencies.size} modes are imaginary, the worst is band {band} at "
            f"q = ({q[0]:.4g}, {q[1]:.4g}, {q[2]:.4g}) with {value:.3f}i THz: the structure is not a minimum of this potential"
        )


def lowest_real(frequencies: Any, gamma: bool, xp: Any = np) -> Any:
    """(bands,) THz below which a mode at one q-point is imaginary: the three nearest to zero at Gamma may be so by rounding."""
    if not gamma:
        return xp.zeros_like(frequencies)
    rank = xp.argsort(xp.argsort(xp.abs(frequencies)))
    return xp.where(rank < 3, IMAGINARY, -1e-6)


def degenerate_blocks(frequencies: np.ndarray, tolerance: float = 1e-4) -> list[np.ndarray]:
    """Runs of bands of which each lies within `tolerance` THz of the one before."""
    cuts = np.flatnonzero(np.diff(frequencies) > tolerance) + 1
    return np.split(np.arange(len(frequencies)), cuts)


def phonons(
    force_constants: ForceConstants,
    qpoints: Any,
    nac: bool | None = None,
    *,
    directions: Any = None,
    eigenvectors: bool = True,
    velocities: bool = False,
    batch_size: int = 64,
) -> Phonons:
    """Phonons at q-points, on the device, in batches.

    Args:
      force_constants: second order is used.
      qpoints: (n, 3) in fractions of the reciprocal vectors of the primitive cell.
      nac: non-analytic correction (Gonze and Lee, as phonopy's default); None: where Born charges are known.
      directions: (n, 3) fractions: how q-points at Gamma are approached with `nac`; zero: without the field.
      eigenvectors, velocities: whether to keep them; `velocities` keeps both.
      batch_size: q-points solved together.

    Raises:
      InputError: shapes, values that are not finite, `nac` without Born charges.
    """
    fc = force_constants
    q = np.atleast_2d(np.asarray(qpoints, float))
    if q.ndim != 2 or q.shape[1] != 3 or not np.all(np.isfinite(q)):
        raise InputError(
            f"qpoints have the shape {q.shape} (finite: {bool(np.all(np.isfinite(q)))}); (n, 3) are needed"
        )
    along = np.zeros_like(q) if directions is None else np.broadcast_to(np.asarray(directions, float), q.shape)
    at = interpolation(fc.crystal, fc.images2, fc.crystal.born is not None if nac is None else nac)
    wanted = "velocities" if velocities else "modes" if eigenvectors else "frequencies"
    with double_precision():
        check_toolchain()
        at = jax.tree.map(jnp.asarray, at)
        reciprocal = fc.crystal.reciprocal
        out = _solve(
            jnp.asarray(fc.fc2),
            at,
            q @ reciprocal,
            along @ reciprocal,
            wanted=wanted,
            batch=min(batch_size, max(len(q), 1)),
        )
        out = [np.asarray(x) for x in out] + [None, None]
    return Phonons(q, out[0], out[1], out[2], fc.crystal)


@dataclass(frozen=True, eq=False)
class Bands:
    """Phonons along the standard path.

    Attributes:
      segments: label and q of both ends of each segment.
      distances: per segment (points,) 1/Å without 2 pi, counted through.
      phonons: per segment.
    """

    segments: list[tuple[str, np.ndarray, str, np.ndarray]]
    distances: list[np.ndarray]
    phonons: list[Phonons]


def bands(
    force_constants: ForceConstants, nac: bool | None = None, points: int = 101, velocities: bool = False
) -> Bands:
    """Bands along seekpath's path; Gamma is approached along each segment. `points` on the longest one.

    Source of the path: Hinuma et al., Comput. Mater. Sci. 128, 140 (2017).
    """
    crystal = force_constants.crystal
    segments = symmetry.band_path(crystal)
    lengths = np.array([np.linalg.norm((b - a) @ crystal.reciprocal) for _, a, _, b in segments])
    counts = np.maximum(2, np.rint(points * lengths / lengths.max()).astype(int))
    q = np.concatenate([np.linspace(a, b, n) for (_, a, _, b), n in zip(segments, counts, strict=True)])
    along = np.concatenate([np.tile(b - a, (n, 1)) for (_, a, _, b), n in zip(segments, counts, strict=True)])
    solved = phonons(force_constants, q, nac, directions=along, velocities=velocities)
    parts, distances, start, far = [], [], 0, 0.0
    for n, length in zip(counts, lengths, strict=True):
        rows = slice(start, start + n)
        vectors, operators = solved.eigenvectors, solved.velocity_operator
        parts.append(
            Phonons(
                solved.qpoints[rows],
                solved.frequencies[rows],
                None if vectors is None else vectors[rows],
                None if operators is None else operators[rows],
                crystal,
            )
        )
        distances.append(far + np.linspace(0.0, length, n))
        start, far = start + n, far + length
    return Bands(segments, distances, parts)
