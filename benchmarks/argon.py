"""The benchmark's model and initial states: fcc argon near 70 K. NumPy only, because every worker imports it."""

from __future__ import annotations

import numpy as np

EPSILON = 0.0103206594
"""eV."""
SIGMA = 3.4
"""Å."""
CUTOFF = 8.5
"""Å, 2.5 sigma; plain truncation, unshifted, the same in every program."""
SKIN = 1.0
"""Å. Each program rebuilds its own list by its own displacement test."""
TIMESTEP = 4.0
"""fs."""
MASS = 39.948
"""amu."""
LATTICE_CONSTANT = 5.3749
"""Å."""
TEMPERATURE = 70.0
"""K."""

BOLTZMANN = 8.617333262e-5
"""eV/K."""
AMU_A2_FS2 = 103.6426965
"""eV per amu Å^2/fs^2."""

RATTLE = 0.14
"""Å. Gives uncorrelated displacements the potential energy of 70 K: runs start near equilibrium, with forces."""


def repeats_of(n_atoms: int) -> int:
    """Repetitions of the cubic cell. Raises ValueError if `n_atoms` is not 4 m^3."""
    repeats = round((n_atoms / 4) ** (1 / 3))
    if 4 * repeats**3 != n_atoms:
        raise ValueError(f"{n_atoms} atoms are not 4 m^3: the nearest size is {4 * repeats**3}")
    return repeats


def initial_state(n_atoms: int, seed: int = 0) -> dict[str, np.ndarray]:
    """positions (atoms, 3) Å in the cell, velocities (atoms, 3) Å/fs without drift, side () Å of the cubic cell."""
    repeats = repeats_of(n_atoms)
    side = repeats * LATTICE_CONSTANT
    basis = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]])
    cells = np.stack(np.meshgrid(*[np.arange(repeats)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    positions = ((cells + basis) * LATTICE_CONSTANT).reshape(-1, 3)
    rng = np.random.default_rng(seed)
    positions = (positions + rng.normal(0.0, RATTLE, positions.shape)) % side
    velocities = rng.normal(0.0, np.sqrt(BOLTZMANN * TEMPERATURE / (MASS * AMU_A2_FS2)), positions.shape)
    velocities -= velocities.mean(axis=0)
    return {"positions": positions, "velocities": velocities, "side": np.array(side)}
