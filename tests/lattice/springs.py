"""Crystals whose pairs of atoms are springs of their own: energy, pressure and force constants written out, for tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.force_constants import empty_force_constants

CUTOFF = 4.8
"""Å."""


def pair_energy(vector, size):
    """eV of two atoms of a mean size (Å), with three continuous derivatives at the cutoff."""
    squared = jnp.sum(vector**2)
    ratio = (size**2 / squared) ** 3
    return 5.0 * (ratio**2 - ratio) * jnp.maximum(1.0 - squared / CUTOFF**2, 0.0) ** 4


SLOPES = [pair_energy]
for _ in range(3):
    SLOPES.append(jax.jacfwd(SLOPES[-1]))
SLOPES = [jax.jit(jax.vmap(f)) for f in SLOPES]


def slopes(order, vectors, sizes):
    """(pairs, 3, ...) derivatives of the energies of pairs by the second atom's position."""
    with double_precision():
        return np.asarray(SLOPES[order](jnp.asarray(vectors), jnp.asarray(sizes)))


def size_of(numbers, others):
    """Å of each pair: 3.7 (Ar), 3.4 (others) and the mean."""
    return 3.4 + 0.15 * ((np.asarray(numbers) == 18).astype(float) + (np.asarray(others) == 18))


def neighbors(atoms):
    """All pairs of a small cell: atoms, vectors to their neighbours, mean sizes."""
    shifts = (np.array(list(np.ndindex(5, 5, 5))) - 2) @ np.asarray(atoms.cell)
    vectors = atoms.positions[None, :, None] + shifts - atoms.positions[:, None, None]
    i, j, k = np.nonzero((np.linalg.norm(vectors, axis=-1) > 0.1) & (np.linalg.norm(vectors, axis=-1) < CUTOFF))
    return i, vectors[i, j, k], size_of(atoms.numbers[i], atoms.numbers[j])


def energy(atoms):
    """eV of a cell at rest."""
    _, vectors, sizes = neighbors(atoms)
    return 0.5 * float(np.sum(slopes(0, vectors, sizes)))


def pressure(atoms):
    """eV/Å^3 of a cell at rest."""
    _, vectors, sizes = neighbors(atoms)
    return -0.5 * float(np.sum(vectors * slopes(1, vectors, sizes))) / (3.0 * atoms.get_volume())


def constants(atoms, supercell, third=True):
    """Force constants of a primitive cell; the supercell is wider than two cutoffs."""
    geometry = symmetry.geometry_of(atoms, supercell, supercell if third else None, primitive="P")
    phonopy = symmetry.phonopy_object(geometry)
    cell, positions, rows = phonopy.supercell.cell, phonopy.supercell.positions, phonopy.primitive.p2s_map
    n, numbers = len(positions), phonopy.supercell.numbers
    vectors = positions[None] - positions[rows][:, None]
    vectors -= np.rint(vectors @ np.linalg.inv(cell)) @ cell  # all neighbours are nearer than half the supercell
    i, j = np.nonzero((np.linalg.norm(vectors, axis=2) < CUTOFF) & (np.arange(n) != rows[:, None]))
    # Each index counts -1 at the atom itself and +1 at its neighbour.
    ends = ((rows[i], -1.0), (j, 1.0))
    pairs = vectors[i, j], size_of(numbers[rows[i]], numbers[j])
    fc2, fc3, h = np.zeros((len(rows), n, 3, 3)), None, slopes(2, *pairs)
    for at, sign in ends:
        np.add.at(fc2, (i, at), -sign * h)
    if third:
        fc3, t = np.zeros((len(rows), n, n, 3, 3, 3)), slopes(3, *pairs)
        for at, sign in ends:
            for also, other in ends:
                np.add.at(fc3, (i, at, also), -sign * other * t)
    return empty_force_constants(geometry, fc2, fc3)
