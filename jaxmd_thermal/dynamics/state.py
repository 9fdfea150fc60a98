"""The state that a simulation carries from step to step: one pytree, so that scan, vmap, checkpoints and gradients see
all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MDState:
    """One replica; the run loop adds a leading axis. Floating-point fields are float64.

    `forces` and `energy` always belong to `positions` and `cell`, so a step begins without an evaluation.
    """

    positions: jax.Array
    """(atoms, 3) Å, not wrapped: an ensemble never folds atoms back, so displacements stay meaningful."""
    velocities: jax.Array
    """(atoms, 3) Å/fs."""
    cell: jax.Array
    """(3, 3) Å, rows are lattice vectors."""
    forces: jax.Array
    """(atoms, 3) eV/Å."""
    masses: jax.Array
    """(atoms,) amu."""
    thermostat: Any
    """What the ensemble's `init` returned: chain variables, heat exchanged so far, barostat."""
    key: jax.Array
    """Typed PRNG key (`jax.random.key`); the only source of randomness."""
    step: jax.Array
    """() int64, steps made so far."""
    energy: jax.Array
    """() eV, potential energy."""
