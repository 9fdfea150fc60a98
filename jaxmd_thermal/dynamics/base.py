"""What all ensembles share: the protocol, kinetic quantities, initial velocities and the half steps of velocity Verlet.

jax_md.simulate has integrators too; none is used here. Its time steps are cast to float32 even in a 64-bit program, its
thermostats count 3N degrees of freedom for a momentum that they conserve, its stochastic rescaling draws two variates
from one key, two of its Suzuki-Yoshida tables are not of the order they stand for, and importing it compiles for
seconds and claims the device. The algebra of its Nosé-Hoover chain is right and serves as an oracle in tests/dynamics.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..units import ACCELERATION, AMU_A2_FS2, BOLTZMANN
from .state import MDState


class Evaluation(NamedTuple):
    """Result of one force evaluation. Any object with these attributes will do."""

    energy: jax.Array
    """() eV."""
    forces: jax.Array
    """(atoms, 3) eV/Å."""
    stress: jax.Array | None = None
    """(3, 3) eV/Å^3, positive in tension: dU/d(strain)/V, configurational part only (no kinetic term)."""


class Evaluate(Protocol):
    """`evaluate(positions, cell, velocities)`; velocities matter only to driven dynamics (HNEMD)."""

    def __call__(self, positions: jax.Array, cell: jax.Array, velocities: jax.Array | None = None) -> Evaluation: ...


class Ensemble(Protocol):
    """An integrator as a frozen pytree: float parameters are leaves (a new temperature recompiles nothing).

    `step` calls `evaluate` exactly once and is a pure function of its arguments, so it runs under scan, vmap, jit and
    grad.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs_stress(self) -> bool: ...

    def init(self, state: MDState) -> Any:
        """The pytree for `state.thermostat`; the field itself is ignored."""
        ...

    def step(self, state: MDState, evaluate: Evaluate, timestep: float | jax.Array) -> MDState:
        """The state one time step (fs) later."""
        ...

    def conserved(self, state: MDState) -> jax.Array:
        """() eV: constant up to the error of the integrator, so its drift tells whether the time step is too long."""
        ...

    def degrees_of_freedom(self, state: MDState) -> int: ...


def degrees_of_freedom(n_atoms: int, zero_momentum: bool = True) -> int:
    """Velocity components that fluctuate: 3N - 3 when the total momentum is kept at zero, else 3N.

    Raises:
      InputError: no degree of freedom is left.
    """
    count = 3 * n_atoms - (3 if zero_momentum else 0)
    if count < 1:
        raise InputError(
            f"{n_atoms} atom(s) at zero total momentum have no degree of freedom, so no temperature; "
            "use at least 2 atoms (a supercell) or zero_momentum=False"
        )
    return count


def kinetic_energy(velocities: jax.Array, masses: jax.Array) -> jax.Array:
    """() eV, from (atoms, 3) Å/fs and (atoms,) amu."""
    return 0.5 * AMU_A2_FS2 * jnp.sum(masses[:, None] * velocities**2)


def kinetic_tensor(velocities: jax.Array, masses: jax.Array) -> jax.Array:
    """(3, 3) eV: sum_i m_i v_i v_i. Its trace is twice the kinetic energy; divided by -V it is the kinetic stress."""
    return AMU_A2_FS2 * jnp.sum((masses[:, None] * velocities)[:, :, None] * velocities[:, None, :], axis=0)


def temperature(velocities: jax.Array, masses: jax.Array, zero_momentum: bool = True) -> jax.Array:
    """() K: 2 K / (k_B f) with f = `degrees_of_freedom(atoms, zero_momentum)`."""
    dof = degrees_of_freedom(masses.shape[0], zero_momentum)
    return 2.0 * kinetic_energy(velocities, masses) / (dof * BOLTZMANN)


def remove_drift(velocities: jax.Array, masses: jax.Array) -> jax.Array:
    """Velocities with the velocity of the centre of mass subtracted: the orthogonal projection in the metric of the
    masses, so a Maxwell-Boltzmann sample becomes one of the ensemble with zero total momentum."""
    return velocities - jnp.sum(masses[:, None] * velocities, axis=0) / jnp.sum(masses)


def maxwell_boltzmann_velocities(
    key: jax.Array,
    masses: jax.Array,
    temperature_K: float | jax.Array,
    *,
    zero_momentum: bool = True,
    exact: bool = False,
) -> jax.Array:
    """Random velocities of a system at `temperature_K`.

    Args:
      key: typed PRNG key.
      masses: (atoms,) amu.
      temperature_K: K.
      zero_momentum: remove the motion of the centre of mass; 3N - 3 degrees of freedom are left.
      exact: rescale so that `temperature` gives exactly `temperature_K`. The default leaves the kinetic energy its
        canonical fluctuation, which replicas of an NVE ensemble need.

    Returns: (atoms, 3) Å/fs.

    Raises:
      InputError: negative temperature, or a single atom with `zero_momentum`.
    """
    require(temperature_K, "temperature", "K", minimum=0.0, strict=False)
    masses = jnp.asarray(masses)
    degrees_of_freedom(masses.shape[0], zero_momentum)
    noise = jax.random.normal(key, (masses.shape[0], 3), masses.dtype) / jnp.sqrt(masses)[:, None]
    if zero_momentum:
        noise = remove_drift(noise, masses)
    if exact:
        # Unit-variance noise is rescaled before the temperature enters, so that T = 0 is no division by zero.
        dof = degrees_of_freedom(masses.shape[0], zero_momentum)
        noise = noise * jnp.sqrt(dof / jnp.sum(masses[:, None] * noise**2))
    return noise * jnp.sqrt(BOLTZMANN * ACCELERATION * jnp.asarray(temperature_K, masses.dtype))


def kick(velocities: jax.Array, forces: jax.Array, masses: jax.Array, time: float | jax.Array) -> jax.Array:
    """Velocities after `time` fs under constant forces."""
    return velocities + time * ACCELERATION * forces / masses[:, None]


def evaluate_at(
    evaluate: Evaluate, positions: jax.Array, cell: jax.Array, half_step: jax.Array, state: MDState, timestep: Any
) -> Evaluation:
    """The step's one evaluation, cast to the precision of the state (a float32 potential is allowed).

    `half_step` are the velocities before the closing kick. The forces of driven dynamics depend on the velocities at
    the end of the step, which the old forces predict to second order.
    """
    predicted = kick(half_step, state.forces, state.masses, 0.5 * timestep)
    result = evaluate(positions, cell, predicted)
    dtype = state.positions.dtype
    stress = None if result.stress is None else jnp.asarray(result.stress, dtype)
    return Evaluation(jnp.asarray(result.energy, dtype), jnp.asarray(result.forces, dtype), stress)


def require(value: Any, name: str, unit: str, *, minimum: float = 0.0, strict: bool = True, remedy: str = "") -> None:
    """Raise InputError unless a concrete number is finite and above `minimum` (or equal to it when not `strict`).

    Anything else (a traced value, an array, a placeholder that JAX puts into a pytree) passes: only the host can
    complain.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        return
    if not np.isfinite(value) or value < minimum or (strict and value == minimum):
        bound = f"above {minimum:g}" if strict else f"at least {minimum:g}"
        raise InputError(f"{name} is {value:g} {unit}, it must be {bound} {unit}{'; ' + remedy if remedy else ''}")


def as_floats(instance: Any, *names: str) -> None:
    """Turn integers in the named fields of a frozen dataclass into floats: 300 and 300.0 must be one compiled
    program."""
    for name in names:
        value = getattr(instance, name)
        if isinstance(value, (int, np.integer, np.floating)) and not isinstance(value, bool):
            object.__setattr__(instance, name, float(value))


def advance(state: MDState, **changes: Any) -> MDState:
    """`state` with the given fields replaced and the step counter increased."""
    return dataclasses.replace(state, step=state.step + 1, **changes)
