"""The compiled part of a run: steps, neighbour-list repair by skin, and sampling, all on the device.

The leading axis of every array is the replica. Nothing here talks to the host; what goes wrong is a bit in `status`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal.derivatives import calculate
from jaxmd_thermal.dynamics.base import Evaluation, kinetic_energy, kinetic_tensor
from jaxmd_thermal.dynamics.state import MDState
from jaxmd_thermal.errors import Status
from jaxmd_thermal.neighbors import NeighborList, refresh
from jaxmd_thermal.system import static
from jaxmd_thermal.units import ACCELERATION, BOLTZMANN

PER_ATOM = ("positions", "velocities", "driving_virial")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Simulation:
    """What is constant in a run. Arrays are arguments of the compiled program: new values recompile nothing.

    Attributes:
      potential, ensemble: pytrees.
      numbers: (atoms,).
      timestep: fs.
      field: (replicas, 3) 1/Å, driving field of HNEMD, or None.
      max_temperature: K; above it the status turns TOO_HOT.
      dtype: precision of the potential.
      sample_every: steps from one sample to the next.
      site_virials: (3, atoms, 3) transposed heat flux at the sites of the crystal, or None. With it a sample also
        holds the potential flux less `sum_i <W_i> . v_i`, the time derivative of something bounded in a solid.
      quantities: what a sample holds beyond energies: "heat_flux", "stress", "driving_virial", "trajectory".
    """

    potential: Any
    ensemble: Any
    numbers: Any
    timestep: Any
    field: Any
    max_temperature: Any
    site_virials: Any = None
    dtype: str = static("float64")
    sample_every: int = static(1)
    quantities: tuple[str, ...] = static(())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Carry:
    """What changes in a run: everything that a checkpoint must hold.

    Attributes:
      md: states of all replicas.
      neighbors: their neighbour lists.
      status: (replicas,) sticky bits beyond those of the lists.
      observers: accumulators of the observers, one pytree each.
    """

    md: MDState
    neighbors: NeighborList
    status: Any
    observers: Any = ()


def batched(n_replicas: int) -> bool:
    """Whether replicas advance as one batch.

    Accelerators need it to be filled; the test for a rebuild is then one for all, outside of the batch (inside, a
    conditional becomes a select and every list is rebuilt at every step). On a CPU replicas go one after the other:
    batching would only widen the working set, while so every replica keeps the bits of a run on its own.
    """
    return n_replicas > 1 and jax.default_backend() != "cpu"


def replicated(function, n_replicas: int):
    """`function` over a leading replica axis."""
    if batched(n_replicas):
        return jax.vmap(function)
    if n_replicas > 1:
        return lambda *arguments: jax.lax.map(lambda a: function(*a), arguments)

    def single(*arguments):
        return jax.tree.map(lambda x: x[None], function(*jax.tree.map(lambda x: x[0], arguments)))

    return single


def n_replicas_of(md: MDState) -> int:
    """Length of the replica axis."""
    return md.positions.shape[0]


def one_step(
    simulation: Simulation, md: MDState, neighbors: NeighborList, field, *, with_energy: bool = True
) -> MDState:
    """One time step of one replica, with a neighbour list that stays valid during it. Differentiable."""
    needs_stress = simulation.ensemble.needs_stress
    quantities = ("forces",) + (("energy",) if with_energy else ()) + (("stress",) if needs_stress else ())

    def evaluate(positions, cell, velocities=None):
        out = calculate(
            simulation.potential,
            positions,
            cell,
            simulation.numbers,
            neighbors,
            quantities if field is None else (*quantities, "driving_force"),
            velocities=velocities,
            masses=md.masses,
            field=field,
            dtype=jnp.dtype(simulation.dtype),
        )
        forces = out["forces"] if field is None else out["forces"] + out["driving_force"]
        return Evaluation(out.get("energy", md.energy), forces, out.get("stress"))

    return simulation.ensemble.step(md, evaluate, simulation.timestep)


def advance(simulation: Simulation, carry: Carry, *, with_energy: bool = True) -> Carry:
    """One time step of all replicas: repair the neighbour lists if the coming positions need it, then step."""

    def repair(md: MDState, neighbors: NeighborList) -> NeighborList:
        # Where velocity Verlet will put the atoms; a thermostat's extra displacement is caught as STALE in the next step.
        kick = 0.5 * simulation.timestep * ACCELERATION * md.forces / md.masses[..., None]
        coming = md.positions + simulation.timestep * (md.velocities + kick)
        return refresh(neighbors, md.positions, md.cell, coming)

    def step(md: MDState, neighbors: NeighborList, field):
        return one_step(simulation, md, neighbors, field, with_energy=with_energy)

    def repair_and_step(md: MDState, neighbors: NeighborList, field):
        neighbors = repair(md, neighbors)
        return step(md, neighbors, field), neighbors

    n = n_replicas_of(carry.md)
    if batched(n):
        neighbors = repair(carry.md, carry.neighbors)
        md = over_replicas(step, n, simulation.field)(carry.md, neighbors)
    else:
        md, neighbors = over_replicas(repair_and_step, n, simulation.field)(carry.md, carry.neighbors)
    return replace(carry, md=md, neighbors=neighbors)


def over_replicas(function, n_replicas: int, field):
    """`function(md, neighbors, field)` over replicas, with the driving field, if there is one, as a batched argument."""
    if field is None:
        return replicated(lambda md, neighbors: function(md, neighbors, None), n_replicas)
    mapped = replicated(function, n_replicas)
    return lambda md, neighbors: mapped(md, neighbors, field)


def observables(simulation: Simulation, carry: Carry, *, energy_known: bool = True) -> tuple[MDState, dict[str, Any]]:
    """Observables of the current state, each with the replicas as leading axis, and the states with their energy.

    potential_energy, kinetic_energy, conserved_energy (eV), temperature (K), volume (Å^3), positions, velocities, and as
    asked: heat_flux_potential, heat_flux_convective, heat_flux_reduced (3,) eV Å/fs; stress (3, 3) eV/Å^3 with its
    kinetic part; driving_virial (atoms, 3).
    """
    asked = () if energy_known else ("energy",)
    for name in ("heat_flux", "stress", "driving_virial"):
        if name in simulation.quantities:
            asked += ("heat_flux_potential", "heat_flux_convective") if name == "heat_flux" else (name,)

    def one(md: MDState, neighbors: NeighborList, field):
        more = {}
        if asked:
            more = calculate(
                simulation.potential,
                md.positions,
                md.cell,
                simulation.numbers,
                neighbors,
                asked,
                velocities=md.velocities,
                masses=md.masses,
                field=field,
                dtype=jnp.dtype(simulation.dtype),
            )
            md = replace(md, energy=more.pop("energy", md.energy))
        dof = simulation.ensemble.degrees_of_freedom(md)
        kinetic = kinetic_energy(md.velocities, md.masses)
        out = {
            "potential_energy": md.energy,
            "kinetic_energy": kinetic,
            "conserved_energy": simulation.ensemble.conserved(md),
            "temperature": 2.0 * kinetic / (dof * BOLTZMANN),
            "volume": jnp.abs(jnp.linalg.det(md.cell)),
            "positions": md.positions,
            "velocities": md.velocities,
        }
        if "trajectory" in simulation.quantities:
            out["cell"] = md.cell
        if "stress" in more:
            more["stress"] = more["stress"] - kinetic_tensor(md.velocities, md.masses) / out["volume"]
        out.update(more)
        if simulation.site_virials is not None and "heat_flux" in simulation.quantities:
            bounded = jnp.einsum("xna,na->x", simulation.site_virials, md.velocities)
            out["heat_flux_reduced"] = more["heat_flux_potential"] - bounded
        return md, out

    return over_replicas(one, n_replicas_of(carry.md), simulation.field)(carry.md, carry.neighbors)


def frame(simulation: Simulation, observers, carry: Carry) -> tuple[Carry, dict[str, Any]]:
    """`sample_every` steps and one sample.

    With several steps a sample, steps do without the energy, and the sample computes it: one copy of the step is
    compiled, not two.
    """
    every = simulation.sample_every
    if every == 1:
        carry = advance(simulation, carry)
    else:
        carry = jax.lax.fori_loop(0, every, lambda _, c: advance(simulation, c, with_energy=False), carry)
    md, row = observables(simulation, carry, energy_known=every == 1)
    hot = row["temperature"] > simulation.max_temperature
    finite = jnp.isfinite(row["potential_energy"]) & jnp.isfinite(row["kinetic_energy"])
    status = carry.status | jnp.where(hot, np.uint32(Status.TOO_HOT), np.uint32(0))
    status |= jnp.where(finite, np.uint32(0), np.uint32(Status.NON_FINITE))
    accumulated = tuple(o.update(state, row) for o, state in zip(observers, carry.observers, strict=True))
    carry = replace(carry, md=md, status=status, observers=accumulated)
    # Arrays over atoms are for observers; only a trajectory is stored.
    stored = ("positions", "velocities", "cell") if "trajectory" in simulation.quantities else ()
    return carry, {name: value for name, value in row.items() if name in stored or name not in PER_ATOM}


def chunk(simulation: Simulation, observers, carry: Carry, active, *, frames: int):
    """Up to `frames` frames; those from `active` on are skipped, so that the last chunk is no program of its own.

    Returns:
      the carry, and the samples with a leading axis `frames`.
    """
    n = n_replicas_of(carry.md)
    if n > 1 and not batched(n):

        def alone(arguments):
            piece, field = jax.tree.map(lambda x: x[None], arguments)
            after, rows = chunk(replace(simulation, field=field), observers, piece, active, frames=frames)
            return jax.tree.map(lambda x: x[0], after), jax.tree.map(lambda x: x[:, 0], rows)

        # One replica goes through the whole chunk before the next: taking turns at every step would copy the lists.
        after, rows = jax.lax.map(alone, (carry, simulation.field))
        return after, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), rows)
    body = partial(frame, simulation, observers)
    empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(body, carry)[1])

    def step(carry, i):
        return jax.lax.cond(i < active, body, lambda c: (c, empty), carry)

    return jax.lax.scan(step, carry, jnp.arange(frames))


def _run_chunk(simulation: Simulation, observers, carry: Carry, active, *, frames: int, mesh=None):
    if mesh is None:
        return chunk(simulation, observers, carry, active, frames=frames)
    from jax.sharding import PartitionSpec as P

    everything, per_replica = P(), P("replica")
    parts = replace(
        jax.tree.map(lambda _: everything, simulation), field=None if simulation.field is None else per_replica
    )

    def local(simulation, carry, active):
        return chunk(simulation, observers, carry, active, frames=frames)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(parts, per_replica, everything),
        out_specs=(per_replica, P(None, "replica")),
        check_vma=False,
    )(simulation, carry, active)


@cache
def compiled_chunk():
    """The jitted chunk. Its kernels gain a quarter on CPUs with 512-bit vectors, which XLA leaves unused by default."""
    options = None
    if jax.default_backend() == "cpu":
        wide: dict[str, Any] = {"xla_cpu_prefer_vector_width": 512}
        try:
            jax.jit(lambda x: x + 1.0, compiler_options=wide).lower(1.0).compile()
            options = wide
        except Exception:  # another XLA may not know the option; it is a preference, not a need
            options = None
    return jax.jit(_run_chunk, static_argnames=("observers", "frames", "mesh"), compiler_options=options)


def run_chunk(simulation: Simulation, observers, carry: Carry, active, *, frames: int, mesh=None):
    """`chunk`, compiled; with a mesh, replicas are shared out over its devices, each with its own rebuild decisions."""
    return compiled_chunk()(simulation, observers, carry, active, frames=frames, mesh=mesh)


@jax.jit
def initial_forces(simulation: Simulation, md: MDState, neighbors: NeighborList) -> MDState:
    """States with the energy and forces of their positions."""

    def one(md: MDState, neighbors: NeighborList, field):
        out = calculate(
            simulation.potential,
            md.positions,
            md.cell,
            simulation.numbers,
            neighbors,
            ("energy", "forces") + (() if field is None else ("driving_force",)),
            velocities=md.velocities,
            masses=md.masses,
            field=field,
            dtype=jnp.dtype(simulation.dtype),
        )
        forces = out["forces"] if field is None else out["forces"] + out["driving_force"]
        return replace(md, energy=out["energy"], forces=forces)

    return over_replicas(one, n_replicas_of(md), simulation.field)(md, neighbors)
