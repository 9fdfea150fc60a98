"""The driver: runs chunks on the device, and between them looks at the status, repairs, records and reports.

A run is a list of stages (for Green-Kubo: equilibrate, produce). Chunk boundaries do not touch the trajectory, so their
length follows the measured speed, and a resumed run is bit-identical to an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import check_toolchain, double_precision, versions
from jaxmd_thermal.derivatives import check_dtype, check_potential, required_cutoff
from jaxmd_thermal.dynamics.base import maxwell_boltzmann_velocities, remove_drift, require
from jaxmd_thermal.dynamics.loop import Carry, Simulation, batched, initial_forces, observables, replicated, run_chunk
from jaxmd_thermal.dynamics.repair import check_memory, give_up, repair
from jaxmd_thermal.dynamics.sharding import everywhere, replica_mesh, shard
from jaxmd_thermal.dynamics.stages import Progress, Setup, SimulationResult, Stage, StageResult, spatial_order
from jaxmd_thermal.dynamics.state import MDState
from jaxmd_thermal.errors import InputError, Status
from jaxmd_thermal.neighbors import allocate, make_plan
from jaxmd_thermal.potentials.base import neighbor_demands
from jaxmd_thermal.sites import check_sites
from jaxmd_thermal.system import System

CHUNK_SECONDS = 5.0
"""A chunk lasts about this long: what a kill can lose, and how often progress is shown."""

MAX_CHUNK_STEPS = 4000


def execute(
    potential,
    atoms,
    stages: Sequence[Stage],
    *,
    timestep: float,
    temperature: float | None,
    velocities=None,
    replicas: int = 1,
    seed: int = 0,
    dtype: str = "float64",
    observers: Sequence[Any] = (),
    skin: float | None = None,
    capacity: int | None = None,
    recorder: Any = None,
    progress: Callable[[Progress], None] | None = None,
    settings: dict[str, Any] | None = None,
) -> SimulationResult:
    """Run the stages one after the other. Observers accumulate in the last one.

    `recorder` (io.run_directory.RunDirectory) stores samples and checkpoints, and gives back what an earlier process
    left; without it everything stays in memory.

    Raises:
      InputError, CapacityError, UnstableError, OutputError, CheckpointError.
    """
    system = System.from_atoms(atoms)
    _check_run(potential, system, stages, timestep, replicas, dtype)
    order = spatial_order(system)
    system_sorted = system.replace(
        positions=np.asarray(system.positions)[order],
        numbers=np.asarray(system.numbers)[order],
        masses=np.asarray(system.masses)[order],
    )
    setup = Setup(system_sorted, order, replicas)
    with double_precision():
        check_toolchain()
        return _execute(
            potential,
            system,
            setup,
            tuple(stages),
            float(timestep),
            temperature,
            velocities,
            seed,
            dtype,
            tuple(observers),
            skin,
            capacity,
            recorder,
            progress,
            settings or {},
        )


def run_stages(
    potential, atoms, stages: Sequence[Stage], *, settings: dict[str, Any], out=None, **options
) -> SimulationResult:
    """`execute`, recorded in the folder `out` if one is given, and resumed from what an earlier process left there."""
    if out is None:
        return execute(potential, atoms, stages, settings=settings, **options)
    from jaxmd_thermal.io.run_directory import RunDirectory

    settings = {**settings, "stages": [stage.name for stage in stages]}
    recorder = RunDirectory.open(out, settings, System.from_atoms(atoms), potential, options.get("velocities"))
    result = execute(potential, atoms, stages, settings=settings, recorder=recorder, **options)
    recorder.finish(result)
    return result


def _check_run(potential, system: System, stages, timestep, replicas, dtype) -> None:
    check_dtype(dtype)
    check_potential(potential, system)
    require(timestep, "timestep", "fs", remedy="typical values are 0.5 to 5 fs")
    if int(replicas) != replicas or replicas < 1:
        raise InputError(f"replicas is {replicas}; it must be a whole number of at least 1")
    for stage in stages:
        if stage.steps < 1 or stage.sample_every < 1:
            raise InputError(
                f"stage '{stage.name}' has {stage.steps} steps, sampled every {stage.sample_every}; both must be at least 1"
            )


def _execute(
    potential,
    system,
    setup: Setup,
    stages,
    timestep,
    temperature,
    velocities,
    seed,
    dtype,
    observers,
    skin,
    capacity,
    recorder,
    progress,
    settings,
) -> SimulationResult:
    n = setup.n_replicas
    mesh = replica_mesh(n)
    copies = setup.system.replace(
        positions=np.broadcast_to(setup.system.positions, (n, *np.shape(setup.system.positions))).copy(),
        cell=np.broadcast_to(setup.system.cell, (n, 3, 3)).copy(),
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(n))
    if velocities is not None:
        velocities = np.broadcast_to(np.asarray(velocities, float), (n, system.n_atoms, 3))[:, setup.order]
    else:
        velocities = jax.vmap(
            lambda k, m: maxwell_boltzmann_velocities(jax.random.fold_in(k, 1), m, temperature or 0.0)
        )(keys, jnp.asarray(setup.masses))

    saved = recorder.restore() if recorder is not None else None
    if saved is not None:
        plan = saved.plan
    else:
        demands = neighbor_demands(potential, moving=True)
        plan = make_plan(setup.system, required_cutoff(potential), demands["skin"] if skin is None else skin)
        if capacity is not None:
            plan = replace(plan, slots=int(capacity))
        elif demands["margin"] is not None:
            plan = allocate(setup.system, plan.cutoff, plan.skin, plan=plan, margin=demands["margin"]).plan
    at_once = n if batched(n) else 1 if mesh is None else mesh.size

    def check(plan):
        check_memory(potential, plan, system.n_atoms, n, at_once, dtype, observers)

    check(plan)
    neighbors = allocate(copies, plan.cutoff, plan.skin, plan=plan)
    check_sites(copies, neighbors, potential)
    md = MDState(
        positions=jnp.asarray(copies.positions),
        velocities=jnp.asarray(velocities),
        cell=jnp.asarray(copies.cell),
        forces=jnp.zeros(copies.positions.shape),
        masses=jnp.asarray(setup.masses),
        thermostat=None,
        key=keys,
        step=jnp.zeros(n, jnp.int64),
        energy=jnp.zeros(n),
    )
    results = []
    clock = _Clock()
    for number, stage in enumerate(stages):
        simulation = make_simulation(potential, setup, stage, timestep, dtype)
        mine = observers if number == len(stages) - 1 else ()
        carry = start_stage(simulation, md, neighbors, mine)
        done = 0
        if saved is not None and number < saved.stage:
            results.append(StageResult(stage.name, recorder.samples(stage.name), ()))
            continue
        if saved is not None and number == saved.stage:
            template = replace(carry, neighbors=allocate(copies, plan.cutoff, plan.skin, plan=saved.plan))
            carry, done = saved.load(template), saved.frames
        if mesh is not None:
            carry, simulation = shard(carry, simulation, mesh)
        carry, samples = _run_stage(
            simulation, stage, mine, carry, done, setup, recorder, number, progress, clock, mesh, timestep, check
        )
        finalized = tuple(o.finalize(s) for o, s in zip(mine, jax.device_get(carry.observers), strict=True))
        results.append(StageResult(stage.name, samples, finalized))
        # The next stage starts from one device; it is shared out again once it is prepared.
        md, neighbors = jax.device_put((carry.md, carry.neighbors), jax.devices()[0])
    last = results[-1]
    final = jax.device_get((carry.md.positions, carry.md.velocities, carry.md.cell))
    return SimulationResult(
        samples=last.samples,
        stages=tuple(results),
        observers=last.observers,
        positions=setup.restore_order(final[0], 1),
        velocities=setup.restore_order(final[1], 1),
        cell=final[2],
        system=system,
        plan=carry.neighbors.plan,
        settings=settings,
        versions=versions(),
        seed=seed,
        seconds_per_step=clock.seconds_per_step,
        path=None if recorder is None else recorder.path,
    )


def make_simulation(potential, setup: Setup, stage: Stage, timestep, dtype) -> Simulation:
    """The constants of a stage, on the device."""
    quantities = stage.quantities + (("trajectory",) if stage.trajectory else ())
    return jax.device_put(
        Simulation(
            potential=jax.tree.map(jnp.asarray, potential),
            ensemble=jax.tree.map(jnp.asarray, stage.ensemble),
            numbers=jnp.asarray(setup.system.numbers),
            timestep=jnp.asarray(timestep, jnp.float64),
            field=None if stage.field is None else jnp.asarray(stage.field, jnp.float64),
            max_temperature=jnp.asarray(stage.max_temperature, jnp.float64),
            site_virials=None if stage.site_virials is None else jnp.asarray(stage.site_virials)[:, setup.order],
            dtype=dtype,
            sample_every=stage.sample_every,
            quantities=quantities,
        )
    )


def start_stage(simulation: Simulation, md: MDState, neighbors, observers=()) -> Carry:
    """Carry at the start of a stage: no drift, fresh forces, thermostat and accumulators."""
    n = md.positions.shape[0]
    neighbors = replace(neighbors, status=jnp.zeros_like(neighbors.status))
    md = replace(md, velocities=jax.vmap(remove_drift)(md.velocities, md.masses))
    md = initial_forces(simulation, replace(md, thermostat=None), neighbors)
    # Arrays that alias each other or Python scalars would make the first chunk's arguments differ from the second's.
    thermostat = jax.tree.map(jnp.array, replicated(simulation.ensemble.init, n)(md))
    carry = Carry(md=replace(md, thermostat=thermostat), neighbors=neighbors, status=jnp.zeros(n, jnp.uint32))
    if observers:
        row = jax.eval_shape(lambda c: observables(simulation, c)[1], carry)
        carry = replace(carry, observers=tuple(jax.tree.map(jnp.array, o.init(row)) for o in observers))
    return carry


def _run_stage(
    simulation,
    stage: Stage,
    observers,
    carry: Carry,
    done,
    setup: Setup,
    recorder,
    number,
    progress,
    clock,
    mesh,
    timestep,
    check,
):
    frames = stage.frames
    length = _chunk_frames(stage, setup)
    kept: list[dict[str, np.ndarray]] = []
    conserved_at_start = None
    clock.fresh = True  # every stage is a program of its own
    # A short first chunk tells the speed.
    active = max(1, 20 // stage.sample_every)
    repairs = 0
    while done < frames:
        active = min(active, frames - done, length)
        if progress is not None and clock.fresh:
            progress(
                Progress(stage.name, done * stage.sample_every, stage.steps, math.nan, math.nan, math.nan, 0.0, True)
            )
        count = jax.device_put(np.int32(active), everywhere(mesh))
        started = time.perf_counter()
        # Whatever a chunk needs is on the device already; a transfer inside would be a bug.
        with jax.transfer_guard("disallow"):
            after, rows = run_chunk(simulation, observers, carry, count, frames=length, mesh=mesh)
        status = Status(int(np.bitwise_or.reduce(jax.device_get(after.status | after.neighbors.status))))
        elapsed = time.perf_counter() - started
        if status & (Status.NON_FINITE | Status.TOO_HOT):
            give_up(status, stage, carry, rows, active, done, setup, recorder)
        if status & Status.capacity():
            repairs += 1
            carry = repair(carry, after, status, setup, stage, repairs, check)
            if done == 0:
                # The forces that the stage starts from must be those of the new capacity as well: a program of another
                # shape may round them differently.
                start = jax.device_put((simulation, carry.md, carry.neighbors), jax.devices()[0])
                carry = replace(carry, md=initial_forces(*start))
            if mesh is not None:
                carry, _ = shard(carry, simulation, mesh)
            continue
        rows = {name: np.asarray(x)[:active] for name, x in jax.device_get(rows).items()}
        rows["time"] = (done + 1 + np.arange(active)) * stage.sample_every * timestep
        for name in ("positions", "velocities"):
            if name in rows:
                rows[name] = setup.restore_order(rows[name], 2)
        carry = after
        if recorder is not None:
            recorder.append(stage.name, done, rows)
        else:
            kept.append(rows)
        done += active
        repairs = 0
        if recorder is not None:
            recorder.checkpoint(carry, stage=number, frames=done, plan=carry.neighbors.plan)
        first_of_shape = clock.fresh
        clock.record(elapsed, active * stage.sample_every)
        if conserved_at_start is None:
            conserved_at_start = rows["conserved_energy"][0]
        if progress is not None:
            drift = float(np.mean(rows["conserved_energy"][-1] - conserved_at_start)) / setup.system.n_atoms
            # The first chunk was compiled: its time says nothing about the speed.
            rate = math.nan if first_of_shape else elapsed / (active * stage.sample_every)
            progress(
                Progress(
                    stage.name,
                    done * stage.sample_every,
                    stage.steps,
                    timestep * 1e-6 / rate * 86400.0,
                    (frames - done) * stage.sample_every * rate,
                    float(np.mean(rows["temperature"][-1])),
                    drift if stage.field is None else math.nan,  # the field does work
                )
            )
        per_frame = elapsed / active
        if not first_of_shape:
            active = max(1, min(length, int(CHUNK_SECONDS / max(per_frame, 1e-9))))
    if recorder is not None:
        return carry, recorder.samples(stage.name)
    return carry, {name: np.concatenate([r[name] for r in kept]) for name in kept[0]}


def _chunk_frames(stage: Stage, setup: Setup) -> int:
    """Frames that one compiled chunk can hold: bounded in steps, and in memory if it holds a trajectory."""
    length = max(1, min(stage.frames, MAX_CHUNK_STEPS // stage.sample_every))
    if stage.trajectory:
        per_frame = setup.n_replicas * setup.system.n_atoms * 6 * 8
        length = max(1, min(length, int(64e6 / per_frame)))
    return length


class _Clock:
    """Seconds per step, without the chunks that compiled."""

    def __init__(self):
        self.fresh = True
        self.seconds, self.steps = 0.0, 0

    def record(self, seconds: float, steps: int) -> None:
        if not self.fresh:
            self.seconds += seconds
            self.steps += steps
        self.fresh = False

    @property
    def seconds_per_step(self) -> float | None:
        return self.seconds / self.steps if self.steps else None
