"""How close atoms may stand: what the entry points ask of a structure before they compute."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.neighbors import NeighborList
from jaxmd_thermal.potentials.base import terms_of
from jaxmd_thermal.system import System

COINCIDENCE = 1e-3
"""Å. Atoms closer than this sit on one site."""
OVERLAP = 0.4
"""Of the sum of covalent radii: nearer atoms are no structure that a network has seen; bonds begin at 0.8 or so."""


def closest_distance(system: System, neighbors: NeighborList) -> float:
    """Å between the two closest atoms (of the first replica); infinite if no two are within reach."""
    least = np.zeros(system.n_atoms)
    return float(_closest(neighbors, jnp.asarray(system.positions), jnp.asarray(system.cell), jnp.asarray(least))[0])


def check_sites(system: System, neighbors: NeighborList, potential: Any = None) -> None:
    """Refuse two atoms on one site and, for networks, atoms that overlap.

    A network has no repulsion of cores: below the shortest bonds of its training data its energies look plausible and
    mean nothing. A sum with a pair potential may have a repulsion, so only networks by themselves are held to it.

    Raises:
      InputError: names the two atoms, their distance and the limit.
    """
    numbers = np.asarray(system.numbers)
    numbers = numbers[0] if numbers.ndim == 2 else numbers
    least = np.zeros(len(numbers))
    if potential is not None and all(getattr(term, "costly_edges", False) for term in terms_of(potential)):
        from ase.data import covalent_radii

        least = OVERLAP * covalent_radii[numbers]
    closest = _closest(neighbors, jnp.asarray(system.positions), jnp.asarray(system.cell), jnp.asarray(least))
    distance, atom, other = (np.asarray(x) for x in closest)
    i, j, limit = int(atom), int(other), float(least[atom] + least[other])
    if distance < COINCIDENCE:
        raise InputError(
            f"atoms {i} and {j} are {float(distance):.2e} Å apart; anything under {COINCIDENCE} Å "
            "means two atoms on one site: delete one of them"
        )
    if distance < limit:
        from ase.data import chemical_symbols

        raise InputError(
            f"atoms {i} ({chemical_symbols[numbers[i]]}) and {j} ({chemical_symbols[numbers[j]]}) overlap: they are "
            f"{float(distance):.3f} Å apart, and a network, which has no repulsion of cores, says nothing of anything under "
            f"{limit:.3f} Å ({OVERLAP:g} of the covalent radii): look at the units of the cell and the positions, relax the "
            "structure with another potential, or add a repulsive pair potential"
        )


@jax.jit
def _closest(neighbors, positions, cell, least):
    """Distance and atoms of the pair that is nearest to, or furthest under, its limit least_i + least_j."""
    if positions.ndim == 3:
        neighbors, positions, cell = jax.tree.map(lambda x: x[0], (neighbors, positions, cell))
    extended = neighbors.extended(positions, cell)
    rows = jnp.arange(positions.shape[0])[:, None]
    d2 = jnp.sum((extended[neighbors.index] - extended[: positions.shape[0], None]) ** 2, axis=-1)
    d2 = jnp.where(neighbors.index == rows, jnp.inf, d2)
    limits = jnp.maximum(least[:, None] + least[neighbors.owners[neighbors.index]], COINCIDENCE)
    place = jnp.argmin(d2 / limits**2)
    atom = place // neighbors.index.shape[1]
    return jnp.sqrt(d2.ravel()[place]), atom, neighbors.owners[neighbors.index.ravel()[place]]
