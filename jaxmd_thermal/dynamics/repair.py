"""What the driver does when a chunk failed: enlarge the neighbour list and replay, or save what is good and stop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxmd_thermal._backend import available_memory
from jaxmd_thermal.dynamics.loop import Carry
from jaxmd_thermal.dynamics.stages import Setup, Stage
from jaxmd_thermal.errors import CapacityError, Status, UnstableError
from jaxmd_thermal.neighbors import NeighborPlan, allocate
from jaxmd_thermal.potentials.base import terms_of

log = logging.getLogger(__name__)

MAX_REPAIRS = 8

# Bytes, measured on CPUs as peaks of the process and as the compiler's own count of a program: 0.58 GB for argon, 0.80
# and 1.0 for networks of three and four layers, whose programs are large. For each atom a network holds about six numbers
# for every row and column of its matrices (3 to 6 in five architectures of 16 to 128 channels), once for all neighbours:
# edges come in blocks.
PROCESS, LAYER = 0.6e9, 0.1e9
NUMBERS_PER_WIDTH = 6
# The state of an observer before and after a chunk, and the one that the chunk works on.
OBSERVER_COPIES = 3


def repair(
    good: Carry,
    failed: Carry,
    status: Status,
    setup: Setup,
    stage: Stage,
    repairs: int,
    check: Callable[[NeighborPlan], None],
) -> Carry:
    """The last good state with a neighbour list that has the room the failed chunk asked for.

    The list is rebuilt where it was built before, not at the current positions: the trajectory is then the one that
    the larger capacity would have given from the start. `check` refuses a plan that does not fit into the memory.
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
    check(plan)
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


def run_memory(
    potential: Any,
    plan: NeighborPlan,
    n_atoms: int,
    replicas: int,
    at_once: int,
    dtype: str,
    observers: Sequence[Any] = (),
) -> float:
    """Bytes that a run needs at its peak, within a factor of two; what it samples comes on top.

    Args:
      at_once: replicas that are computed at the same time; the others need no room for what the potential works on.
      dtype: precision of the potential.
      observers: those that hold something for each atom say how much, in `bytes_per_atom`.
    """
    networks = [term for term in terms_of(potential) if hasattr(term, "params")]
    widths = sum(sum(np.shape(x)[-2:]) for term in networks for x in jax.tree.leaves(term.params))
    worked_on = NUMBERS_PER_WIDTH * widths * np.dtype(dtype).itemsize
    observed = OBSERVER_COPIES * sum(getattr(o, "bytes_per_atom", 0.0) for o in observers)
    listed = replicas * (n_atoms * (plan.slots * 12 + 200) + plan.ghosts[2] * 60)
    base = PROCESS + LAYER * sum(getattr(term, "interaction_steps", 1) for term in networks)
    return base + listed + n_atoms * (at_once * worked_on + replicas * observed)


def check_memory(potential: Any, plan: NeighborPlan, n_atoms: int, replicas: int, *others: Any) -> None:
    """Refuse a run that cannot fit, before anything is allocated; arguments as for `run_memory`.

    Raises:
      CapacityError: names the need, the limit and what to change.
    """
    need = run_memory(potential, plan, n_atoms, replicas, *others)
    have = available_memory()
    if need > have:
        raise CapacityError(
            f"the run needs about {need / 1e9:.3g} GB ({replicas} x {n_atoms} atoms x {plan.slots} neighbour slots, and what is "
            f"accumulated), but {have / 1e9:.3g} GB are available: use fewer replicas, a smaller supercell, fewer spectral lags, "
            "a smaller capacity or a shorter cutoff"
        )
