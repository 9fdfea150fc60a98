"""Non-analytic correction: the dipole-dipole part of the dynamical matrix, by a sum over reciprocal vectors.

Source: Gonze and Lee, PRB 55, 10355 (1997), eqs. 71 to 77: the reciprocal part alone; what its Gaussian cuts off is short-ranged
and stays in the interpolated force constants. The same choice as phonopy's default, with its number of reciprocal
vectors (about 300) and its width, so that results agree.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice.commensurate import commensurate_points
from jaxmd_thermal.lattice.crystal import Crystal, Images
from jaxmd_thermal.units import COULOMB

GAMMA = 1e-5
"""1/Å. A reciprocal vector shorter than this counts as zero, and its term as direction dependent (phonopy's tolerance)."""


class Dipoles(NamedTuple):
    """Arrays of the correction of one crystal.

    Attributes:
      reciprocal: (n, 3) 1/Å without 2 pi, zero included.
      phases: (n, atoms) exp(2 pi i G.r).
      born: (atoms, 3, 3) first index is that of the field; `dielectric` (3, 3); `positions` (atoms, 3) Å.
      width: 4 Lambda^2, 1/Å^2.
      scale: 4 pi e^2/(4 pi epsilon_0)/V, eV/Å^2.
      self_term: (atoms, 3, 3) what the sum rule takes off the diagonal blocks.
      removed: (primitive, supercell atoms, 3, 3) eV/Å^2: the part of fc2 that the sum gives at the supercell's own q.
    """

    reciprocal: Any
    phases: Any
    born: Any
    dielectric: Any
    width: Any
    scale: Any
    self_term: Any
    removed: Any


def make_dipoles(crystal: Crystal, images: Images) -> Dipoles:
    """The correction of a crystal with Born charges.

    Raises:
      InputError: the crystal has no Born charges, or the dielectric tensor is not positive.
    """
    if crystal.born is None or crystal.dielectric is None:
        raise InputError(
            "the non-analytic correction needs Born charges and a dielectric tensor: these force constants have none"
        )
    dielectric = np.asarray(crystal.dielectric, float)
    if not np.all(np.isfinite(dielectric)) or np.min(np.linalg.eigvalsh(0.5 * (dielectric + dielectric.T))) <= 0:
        raise InputError(
            f"the dielectric tensor is {dielectric.tolist()}; it must be positive definite: check the file"
        )
    radius = (3.0 * 300 / (4.0 * math.pi) / crystal.volume) ** (1.0 / 3.0)
    width = radius**2 * np.trace(dielectric) / 3.0 / -math.log(1e-10)
    reach = np.ceil(radius * np.linalg.norm(crystal.lattice, axis=1)).astype(int)
    whole = np.array(list(itertools.product(*(range(-n, n + 1) for n in reach))))
    reciprocal = whole @ crystal.reciprocal
    reciprocal = reciprocal[np.sum(reciprocal**2, axis=1) < radius**2]
    positions = crystal.positions @ crystal.lattice
    made = Dipoles(
        reciprocal=reciprocal,
        phases=np.exp(2j * np.pi * reciprocal @ positions.T),
        born=np.asarray(crystal.born, float),
        dielectric=dielectric,
        width=float(width),
        scale=4.0 * math.pi * COULOMB / crystal.volume,
        self_term=np.zeros((len(positions), 3, 3)),
        removed=np.zeros(()),
    )
    at_zero = np.asarray(_lattice_sum(made, np.zeros(3), np.zeros(3), np)).sum(axis=1)
    made = made._replace(self_term=0.5 * (at_zero + at_zero.conj().swapaxes(-1, -2)))
    return made._replace(removed=_in_supercell(made, crystal, images))


def _lattice_sum(dipoles: Dipoles, q, direction, xp: Any = jnp):
    """(atoms, atoms, 3, 3) eV/Å^2; q and direction Cartesian, 1/Å without 2 pi."""
    k = dipoles.reciprocal + q
    zero = (xp.sum(k**2, axis=1) < GAMMA**2)[:, None]
    approached = xp.sum(direction**2) > 0
    # Where the term is left out, any other vector keeps the division and its derivative finite.
    k = xp.where(zero, xp.where(approached, direction, 1.0), k)
    kek = xp.einsum("gx,xy,gy->g", k, dipoles.dielectric, k)
    damping = xp.where(zero[:, 0], xp.where(approached, 1.0, 0.0), xp.exp(-kek / dipoles.width))
    charge = xp.einsum("gx,jxa->gja", k, dipoles.born) * dipoles.phases[:, :, None]
    return dipoles.scale * xp.einsum("g,gia,gjb->ijab", damping / kek, charge, charge.conj())


def dipole_matrix(dipoles: Dipoles, q, direction, xp: Any = jnp):
    """(atoms, atoms, 3, 3) complex, eV/Å^2: the dipole-dipole part at one q, before division by masses.

    Args:
      q: (3,) Cartesian, 1/Å without 2 pi.
      direction: (3,) along which Gamma is approached; zero: Gamma without the field of longitudinal modes.
    """
    out = _lattice_sum(dipoles, q, direction, xp)
    n = len(dipoles.born)
    return out - xp.eye(n)[:, :, None, None] * dipoles.self_term[:, None]


def _in_supercell(dipoles: Dipoles, crystal: Crystal, images: Images) -> np.ndarray:
    """The Fourier sum over the q that are commensurate with the supercell, as force constants."""
    points = commensurate_points(images.matrix)
    n_prim, n_super = len(crystal.numbers), len(images.primitive_of)
    out = np.zeros((n_prim, n_super, 3, 3))
    of, rows = images.primitive_of, images.primitive_rows
    for q in points:
        near = _shortest(q, crystal.reciprocal)
        for star in near:  # equally short ones: the truncated sum depends a little on which is taken
            matrix = dipole_matrix(dipoles, star @ crystal.reciprocal, np.zeros(3), np)
            # Any image serves: q is commensurate, and lattice phases do not depend on the choice.
            first = images.vectors[images.multiplicity[:, :, 1]]  # (supercell, primitive, 3)
            phase = np.exp(-2j * np.pi * first @ star)
            out += (matrix[:, of] * phase.T[:, :, None, None]).real / (len(points) * len(near))
    assert out.shape == (len(rows), n_super, 3, 3)
    return out


def _shortest(q: np.ndarray, reciprocal: np.ndarray) -> np.ndarray:
    """The equivalents of q (fractions) that are shortest, 1e-6 relative."""
    shifts = np.array(list(itertools.product(range(-2, 3), repeat=3)))
    lengths = np.linalg.norm((q + shifts) @ reciprocal, axis=1)
    return (q + shifts)[lengths <= lengths.min() * (1 + 1e-6) + 1e-9]
