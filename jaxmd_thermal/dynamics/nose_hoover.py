"""Constant temperature, deterministic: Nosé-Hoover chains with Suzuki-Yoshida factorisation.

Why not jax_md.simulate.nose_hoover_chain: its weights for 3 and 5 substeps leave the third-order error in place (their
cubes sum to 0.85 and 0.10 instead of 0; only 1 and 7 are right), it casts every weighted time step to float32, rescales
all momenta at every substep instead of once, counts 3N degrees of freedom, and its import compiles for seconds. Where
its numbers are right, tests/dynamics compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..errors import InputError
from ..units import BOLTZMANN
from .base import Evaluate, advance, as_floats, degrees_of_freedom, evaluate_at, kick, kinetic_energy, require
from .state import MDState


def suzuki_yoshida_weights(order: int) -> tuple[float, ...]:
    """Weights of sum 1 that make a symmetric second-order step one of order 2 (1), 4 (3 or 5 weights) or 6 (7).

    Source: Suzuki, J. Math. Phys. 32, 400 (1991); Yoshida, Phys. Lett. A 150, 262 (1990), solution A for 7.
    """
    if order == 1:
        return (1.0,)
    if order in (3, 5):
        w = 1.0 / (order - 1 - (order - 1) ** (1.0 / 3.0))
        outer = (w,) * ((order - 1) // 2)
    elif order == 7:
        outer = (0.784513610477560, 0.235573213359357, -1.17767998417887)
    else:
        raise InputError(f"suzuki_yoshida is {order}, it must be 1, 3, 5 or 7")
    return (*outer, 1.0 - 2.0 * sum(outer), *reversed(outer))


class ChainState(NamedTuple):
    """Variables of the thermostat chain."""

    positions: jax.Array
    """(chain,) dimensionless."""
    velocities: jax.Array
    """(chain,) 1/fs."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoseHoover:
    """Nosé-Hoover chain around velocity Verlet; time-reversible, momentum-conserving.

    Args:
      temperature: K.
      damping: fs; the chain masses are f k_B T damping^2 for the first link and k_B T damping^2 for the others, so the
        first link oscillates with period pi sqrt(2) damping.
      chain: number of links. One link is not ergodic for small or stiff systems.
      substeps: repetitions of the factorisation in a half step.
      suzuki_yoshida: number of weights, 1, 3, 5 or 7.
      zero_momentum: 3N - 3 degrees of freedom; the start must have zero total momentum. Use False in an external field.

    Raises:
      InputError: a temperature or damping that is not positive, an unknown number of weights, no links or substeps.

    Source: Martyna, Tuckerman, Tobias, Klein, Mol. Phys. 87, 1117 (1996).
    """

    temperature: float
    damping: float = 100.0
    chain: int = field(default=3, metadata={"static": True})
    substeps: int = field(default=1, metadata={"static": True})
    suzuki_yoshida: int = field(default=3, metadata={"static": True})
    zero_momentum: bool = field(default=True, metadata={"static": True})

    def __post_init__(self) -> None:
        require(self.temperature, "temperature", "K", remedy="use the ensemble 'nve' for no thermostat")
        require(self.damping, "damping", "fs")
        require(self.chain, "chain", "links")
        require(self.substeps, "substeps", "")
        suzuki_yoshida_weights(self.suzuki_yoshida)
        as_floats(self, "temperature", "damping")

    @property
    def name(self) -> str:
        return "nose-hoover"

    @property
    def needs_stress(self) -> bool:
        return False

    def init(self, state: MDState) -> ChainState:
        zeros = jnp.zeros((self.chain,), state.positions.dtype)
        return ChainState(zeros, zeros)

    def _masses(self, n_atoms: int) -> jax.Array:
        """(chain,) eV fs^2."""
        dof = degrees_of_freedom(n_atoms, self.zero_momentum)
        weights = jnp.ones((self.chain,), jnp.result_type(float)).at[0].set(dof)
        return weights * BOLTZMANN * self.temperature * self.damping**2

    def _half_step(self, chain: ChainState, kinetic: jax.Array, n_atoms: int, time: float | jax.Array):
        """The chain over half of `time` fs, from the last link to the atoms and back.

        Returns the chain and the factor by which all velocities shrink; only the kinetic energy enters, so the atoms
        are touched once.
        """
        dof = degrees_of_freedom(n_atoms, self.zero_momentum)
        kT = BOLTZMANN * self.temperature
        Q = self._masses(n_atoms)
        links, last = self.chain, self.chain - 1
        v = [chain.velocities[k] for k in range(links)]
        scale = jnp.ones_like(kinetic)
        positions = chain.positions

        def force(k: int) -> jax.Array:
            driving = 2.0 * kinetic * scale**2 - dof * kT if k == 0 else Q[k - 1] * v[k - 1] ** 2 - kT
            return driving / Q[k]

        def push(k: int, d: float | jax.Array) -> jax.Array:
            if k == last:
                return v[k] + 0.25 * d * force(k)
            drag = jnp.exp(-0.125 * d * v[k + 1])
            return drag * (drag * v[k] + 0.25 * d * force(k))

        for _ in range(self.substeps):
            for weight in suzuki_yoshida_weights(self.suzuki_yoshida):
                d = weight * time / self.substeps
                for k in range(last, -1, -1):
                    v[k] = push(k, d)
                scale = scale * jnp.exp(-0.5 * d * v[0])
                positions = positions + 0.5 * d * jnp.stack(v)
                for k in range(links):
                    v[k] = push(k, d)
        return ChainState(positions, jnp.stack(v)), scale

    def step(self, state: MDState, evaluate: Evaluate, timestep: float | jax.Array) -> MDState:
        masses, n_atoms = state.masses, state.masses.shape[0]
        chain, scale = self._half_step(state.thermostat, kinetic_energy(state.velocities, masses), n_atoms, timestep)
        half = kick(scale * state.velocities, state.forces, masses, 0.5 * timestep)
        positions = state.positions + timestep * half
        new = evaluate_at(evaluate, positions, state.cell, half, state, timestep)
        velocities = kick(half, new.forces, masses, 0.5 * timestep)
        chain, scale = self._half_step(chain, kinetic_energy(velocities, masses), n_atoms, timestep)
        return advance(
            state,
            positions=positions,
            velocities=scale * velocities,
            forces=new.forces,
            energy=new.energy,
            thermostat=chain,
        )

    def conserved(self, state: MDState) -> jax.Array:
        """() eV: energy of the extended system."""
        n_atoms = state.masses.shape[0]
        chain = state.thermostat
        weights = jnp.ones_like(chain.positions).at[0].set(self.degrees_of_freedom(state))
        return (
            kinetic_energy(state.velocities, state.masses)
            + state.energy
            + 0.5 * jnp.sum(self._masses(n_atoms) * chain.velocities**2)
            + BOLTZMANN * self.temperature * jnp.sum(weights * chain.positions)
        )

    def degrees_of_freedom(self, state: MDState) -> int:
        return degrees_of_freedom(state.masses.shape[-1], self.zero_momentum)
