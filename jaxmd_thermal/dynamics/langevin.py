"""Constant temperature by friction and noise: Langevin dynamics in the BAOAB splitting."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from ..units import ACCELERATION, BOLTZMANN
from .base import (
    Evaluate,
    advance,
    as_floats,
    degrees_of_freedom,
    evaluate_at,
    kick,
    kinetic_energy,
    remove_drift,
    require,
)
from .state import MDState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Langevin:
    """BAOAB: half kick, half drift, exact Ornstein-Uhlenbeck step, half drift, evaluation, half kick.

    Positions are sampled to second order in the time step, exactly for a harmonic potential; velocities at full steps
    are not (their variance is too small by (w dt)^2/4 for a mode of frequency w).

    Args:
      temperature: K.
      damping: fs, inverse of the friction coefficient.
      zero_momentum: project the motion of the centre of mass out of the noise. Friction is the same for all atoms, so
        the projected process samples the ensemble of zero total momentum exactly, with 3N - 3 degrees of freedom. Use
        False for atoms in an external field, where 3N fluctuate.

    Raises:
      InputError: a temperature or damping that is not positive.

    Source: Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34 (2013).
    """

    temperature: float
    damping: float = 100.0
    zero_momentum: bool = field(default=True, metadata={"static": True})

    def __post_init__(self) -> None:
        require(self.temperature, "temperature", "K", remedy="use the ensemble 'nve' for no thermostat")
        require(self.damping, "damping", "fs")
        as_floats(self, "temperature", "damping")

    @property
    def name(self) -> str:
        return "langevin"

    @property
    def needs_stress(self) -> bool:
        return False

    def init(self, state: MDState) -> jax.Array:
        """() eV: heat taken up so far."""
        return jnp.zeros((), state.positions.dtype)

    def thermalise(
        self, velocities: jax.Array, masses: jax.Array, key: jax.Array, time: float | jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Exact friction and noise over `time` fs. Returns the velocities and the heat that the bath gave (eV)."""
        noise = jax.random.normal(key, velocities.shape, velocities.dtype)
        spread = jnp.sqrt(BOLTZMANN * ACCELERATION * self.temperature / masses)[:, None]
        # -expm1 keeps the noise accurate where time << damping and 1 - exp(-2x) would cancel.
        amplitude = jnp.sqrt(-jnp.expm1(-2.0 * time / self.damping))
        new = jnp.exp(-time / self.damping) * velocities + amplitude * spread * noise
        if self.zero_momentum:
            new = remove_drift(new, masses)
        return new, kinetic_energy(new, masses) - kinetic_energy(velocities, masses)

    def step(self, state: MDState, evaluate: Evaluate, timestep: float | jax.Array) -> MDState:
        key, noise = jax.random.split(state.key)
        half = kick(state.velocities, state.forces, state.masses, 0.5 * timestep)
        middle = state.positions + 0.5 * timestep * half
        half, heat = self.thermalise(half, state.masses, noise, timestep)
        positions = middle + 0.5 * timestep * half
        new = evaluate_at(evaluate, positions, state.cell, half, state, timestep)
        velocities = kick(half, new.forces, state.masses, 0.5 * timestep)
        return advance(
            state,
            positions=positions,
            velocities=velocities,
            forces=new.forces,
            energy=new.energy,
            thermostat=state.thermostat + heat,
            key=key,
        )

    def conserved(self, state: MDState) -> jax.Array:
        """() eV: total energy minus the heat from the bath (Bussi and Parrinello, Phys. Rev. E 75, 056707 (2007)): the
        O step obeys detailed balance exactly, so only the error of the deterministic steps is left."""
        return kinetic_energy(state.velocities, state.masses) + state.energy - state.thermostat

    def degrees_of_freedom(self, state: MDState) -> int:
        return degrees_of_freedom(state.masses.shape[-1], self.zero_momentum)
