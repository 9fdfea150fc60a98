"""What the driver does when a chunk failed: enlarge the neighbour list and replay, or save what is good and stop."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import replace

import jax
import numpy as np

from jaxmd_thermal.dynamics.loop import Carry
from jaxmd_thermal.dynamics.stages import Setup, Stage
from jaxmd_thermal.errors import CapacityError, Status, UnstableError
from jaxmd_thermal.neighbors import NeighborPlan, allocate

log = logging.getLogger(__name__)

MAX_REPAIRS = 8


def repair(good: Carry, failed: Carry, status: Status, setup: Setup, stage: Stage, repairs: int) -> Carry:
    """The last good state with a neighbour list that has the room the failed chunk asked for.

    The list is rebuilt where it was built before, not at the current positions: the trajectory is then the one that
    the larger capacity would have given from the start.
    """
    if repairs > MAX_REPAIRS:
        raise CapacityError(
            f"stage '{stage.name}': after {MAX_REPAIRS} enlargements the neighbour list still lacks room ({status.name}); "
            "the density or the cell changes faster than a chunk can follow: check the pressure and the timestep"
        )
    there = jax.device_get((good.neighbors.reference_positions, good.neighbors.reference_cell))
    now = jax.device_get((failed.md.positions, failed.md.cell))
    system = setup.system
    finite = bool(np.all(np.isfinite(now[0])) and np.all(np.isfinite(now[1])))
    look_at = (
        system.replace(positions=now[0], cell=now[1]) if finite else system.replace(positions=there[0], cell=there[1])
    )
    plan = good.neighbors.plan.grown(
        jax.device_get(failed.neighbors.required), look_at, stale=bool(status & Status.STALE)
    )
    check_memory(plan, system.n_atoms, setup.n_replicas)
    log.info(
        "neighbour list enlarged (%s): slots %d, ghosts %s, run %d", status.name, plan.slots, plan.ghosts, plan.run
    )
    neighbors = allocate(system.replace(positions=there[0], cell=there[1]), plan.cutoff, plan.skin, plan=plan)
    return replace(good, neighbors=neighbors)


def give_up(status: Status, stage: Stage, good: Carry, rows, active: int, done: int, setup: Setup, recorder):
    """Save the last good state and say what happened."""
    temperatures = np.asarray(jax.device_get(rows["temperature"]))[:active]
    bad = ~np.isfinite(temperatures) | (temperatures > stage.max_temperature)
    frame = int(np.argmax(bad.any(axis=1)))
    replica = int(np.argmax(bad[frame]))
    path = None
    if recorder is not None:
        positions, velocities, cell = jax.device_get((good.md.positions, good.md.velocities, good.md.cell))
        last = setup.system.replace(positions=positions[replica], cell=cell[replica])
        inverse = np.argsort(setup.order)
        path = recorder.save_structure(last, velocities[replica], inverse, "last_good.extxyz")
    where = f"stage '{stage.name}', replica {replica}, near step {(done + frame + 1) * stage.sample_every}"
    kept = f"; the last good state is in {path}" if path else ""
    if status & Status.NON_FINITE:
        raise UnstableError(
            f"{where}: the energy is no longer finite (temperature {temperatures[frame, replica]:.4g} K){kept}. "
            "Use a shorter timestep, relax the structure first, or check that the potential knows this structure",
            path,
        )
    remedy = (
        "lower the driving force: the system must stay in the linear regime"
        if stage.field is not None
        else "use a shorter timestep, or relax the structure before heating it"
    )
    raise UnstableError(
        f"{where}: the temperature of {temperatures[frame, replica]:.4g} K exceeds the limit of "
        f"{stage.max_temperature:.4g} K{kept}. Remedy: {remedy}",
        path,
    )


def check_memory(plan: NeighborPlan, n_atoms: int, replicas: int) -> None:
    """Refuse a neighbour list that cannot fit, before anything is allocated.

    Raises:
      CapacityError: names the need, the limit and what to change.
    """
    need = replicas * n_atoms * (plan.slots * 4 * 3 + 200) + replicas * plan.ghosts[2] * 60
    have = available_memory()
    if need > have:
        raise CapacityError(
            f"the neighbour list needs about {need / 1e9:.3g} GB ({replicas} x {n_atoms} atoms x {plan.slots} slots), but "
            f"{have / 1e9:.3g} GB are available: use fewer replicas, a smaller supercell, a smaller capacity or a shorter cutoff"
        )


def available_memory() -> float:
    """Bytes that the default device can still allocate (the host's free memory for CPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) + 2e9
    except (ValueError, OSError, AttributeError):
        return math.inf
