"""Constant temperature by stochastic velocity rescaling: canonical, with little disturbance of the dynamics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..units import BOLTZMANN
from .base import Evaluate, advance, as_floats, degrees_of_freedom, evaluate_at, kick, kinetic_energy, require
from .state import MDState

_NO_MOTION = 1e-30
"""eV; keeps the rescaling factor finite for atoms at rest (they stay at rest: there is nothing to rescale)."""


_PROPOSALS = 16
"""Marsaglia and Tsang reject at most 4.9 % of proposals: all 16 fail once in 1e21 draws."""


def chi_square(key: jax.Array, dof: int, dtype: Any) -> jax.Array:
    """() sum of squares of `dof` standard normals at a cost that does not grow with `dof`.

    Proposals side by side instead of jax.random.gamma's loop, whose data-dependent end makes an accelerator wait for
    the host at every step and a batch of replicas wait for its slowest.

    Source: Marsaglia and Tsang, ACM Trans. Math. Softw. 26, 363 (2000).
    """
    normal_key, uniform_key = jax.random.split(key)
    if dof < 2:
        return jax.random.normal(key, (dof,), dtype).sum() ** 2
    x = jax.random.normal(normal_key, (_PROPOSALS,), dtype)
    u = 1.0 - jax.random.uniform(uniform_key, (_PROPOSALS,), dtype)
    d = 0.5 * dof - 1.0 / 3.0
    v = jnp.maximum(1.0 + x / np.sqrt(9.0 * d), 1e-30) ** 3
    accepted = jnp.log(u) < 0.5 * x**2 + d * (1.0 - v + jnp.log(v))
    return 2.0 * d * v[jnp.argmax(accepted)]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CSVR:
    """All velocities are scaled by one random factor, the exact propagator of the kinetic energy, in the middle of a
    step.

    Args:
      temperature: K.
      damping: fs, relaxation time of the kinetic energy.
      zero_momentum: 3N - 3 degrees of freedom; the start must have zero total momentum, which rescaling keeps. Use
        False for atoms in an external field.

    Raises:
      InputError: a temperature or damping that is not positive.

    Source: Bussi, Donadio, Parrinello, J. Chem. Phys. 126, 014101 (2007), eq. A7; sign of the factor after Bussi and
    Parrinello, Comput. Phys. Commun. 179, 26 (2008).
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
        return "csvr"

    @property
    def needs_stress(self) -> bool:
        return False

    def init(self, state: MDState) -> jax.Array:
        """() eV: heat taken up so far."""
        return jnp.zeros((), state.positions.dtype)

    def thermalise(
        self, velocities: jax.Array, masses: jax.Array, key: jax.Array, time: float | jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Exact stochastic rescaling over `time` fs. Returns the velocities and the heat that the bath gave (eV).

        In the direction of motion the factor is an Ornstein-Uhlenbeck step of one component, a = c + q R; the other f
        - 1 components only add their squared noise, so K'/K = a^2 + q^2 S with S chi-square of f - 1 degrees of
        freedom.
        """
        dof = degrees_of_freedom(masses.shape[0], self.zero_momentum)
        dtype = velocities.dtype
        along_key, others_key = jax.random.split(key)
        along = jax.random.normal(along_key, (), dtype)
        others = chi_square(others_key, dof - 1, dtype)
        kinetic = kinetic_energy(velocities, masses) + _NO_MOTION
        q = jnp.sqrt(-jnp.expm1(-time / self.damping) * BOLTZMANN * self.temperature / (2.0 * kinetic))
        a = jnp.exp(-0.5 * time / self.damping) + q * along
        scale = jnp.where(a < 0.0, -1.0, 1.0) * jnp.sqrt(a**2 + q**2 * others)
        return scale * velocities, kinetic * (scale**2 - 1.0)

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
        """() eV: total energy minus the heat from the bath; the rescaling itself obeys detailed balance exactly."""
        return kinetic_energy(state.velocities, state.masses) + state.energy - state.thermostat

    def degrees_of_freedom(self, state: MDState) -> int:
        return degrees_of_freedom(state.masses.shape[-1], self.zero_momentum)
