"""`--dry-run`: time, memory and disk of a run, from its size alone. Nothing is compiled or computed."""

from __future__ import annotations

import math
from typing import Any

from jaxmd_thermal.cli.progress import duration

# Microseconds of one CPU core for one neighbour slot of one atom in one step, measured in float64 on argon and in
# float32 on the networks (make bench prints the machine's own). A network's cost goes with its parameters, nearly all
# of which act on every edge: 36, 1.9 and 0.6 us for Nequix, So3krates and a small EquivariantNetwork.
PAIR_SLOT = 0.0023
MANY_BODY = 8.0 * PAIR_SLOT
PARAMETER = 4e-5
# Seconds of one core for one triplet of q-points of a crystal with two atoms (6 bands); it grows with their cube.
TRIPLET = 1.5e-4
# What a column of the Hessian and a third derivative cost, in forces of the same cell.
SECOND, THIRD = 2.0, 5.0
FLUX_FACTOR = 2.0


def estimate(verb: str, potential: Any, atoms: Any, settings: Any, spectral_lags: int = 0) -> str:
    """A few lines: what will be run, and what it is likely to cost here (within a factor of three)."""
    from jaxmd_thermal.dynamics.repair import run_memory
    from jaxmd_thermal.dynamics.sharding import devices_used
    from jaxmd_thermal.neighbors import make_plan
    from jaxmd_thermal.observables.virial_velocity import VirialVelocityCorrelator
    from jaxmd_thermal.potentials.base import neighbor_demands
    from jaxmd_thermal.system import System

    system = System.from_atoms(atoms)
    if hasattr(potential, "check_species"):
        potential.check_species(system.numbers)
    plan = make_plan(system, potential.cutoff, neighbor_demands(potential, moving=True)["skin"])
    steps = settings.steps + getattr(settings, "equilibration", 0)
    replicas = settings.replicas * max(1, len(getattr(settings, "driving_force", ())))
    seconds = steps * replicas * system.n_atoms * plan.slots * _cost(potential) * 1e-6 / max(1, _cores())
    if verb != "md":
        seconds *= 1.0 + (FLUX_FACTOR - 1.0) / settings.sample_every
    observers = (
        (VirialVelocityCorrelator(spectral_lags, settings.steps // settings.sample_every),) if spectral_lags else ()
    )
    at_once = devices_used(replicas, _cores())
    memory = run_memory(potential, plan, system.n_atoms, replicas, at_once, settings.dtype, observers)
    values = 5 + (7 if verb != "md" else 6 * system.n_atoms)
    disk = math.ceil(settings.steps / settings.sample_every) * replicas * values * 8
    simulated = settings.steps * settings.timestep * 1e-6
    return "\n".join(
        [
            f"dry run: nothing is computed. Estimates are good to a factor of three on {_cores()} CPU cores.",
            f"  system    {system.n_atoms} atoms x {replicas} replicas, cutoff {potential.cutoff:g} Å, "
            f"{plan.slots} neighbour slots an atom",
            f"  length    {settings.steps} steps of {settings.timestep:g} fs = {simulated:.4g} ns each"
            + (f", after {steps - settings.steps} steps of equilibration" if steps > settings.steps else ""),
            f"  time      about {duration(seconds)}, and the compilation (once)",
            f"  memory    about {size(memory)}, half a gigabyte or more of it for the process itself",
            f"  disk      about {size(disk)}",
        ]
    )


def estimate_lattice(source: Any, planned: Any, mesh: Any, methods: tuple[str, ...] = (), temperatures: int = 1) -> str:
    """A few lines: evaluations, time and memory of force constants and, with a mesh, of the conductivity."""
    from jaxmd_thermal.lattice.force_constants import estimate_force_constants
    from jaxmd_thermal.lattice.problem import estimated_bytes
    from jaxmd_thermal.lattice.symmetry import point_group

    lines = [f"dry run: nothing is computed. Estimates are good to a factor of three on {_cores()} CPU cores."]
    if source.files is None:
        e = estimate_force_constants(
            source.atoms, source.supercell, source.fc3_supercell, source.displacement, source.batch_size
        )
        per_atom = _force_seconds(source.potential, source.supercell_atoms())
        exact = source.displacement is None
        seconds = e.seconds(per_atom, SECOND if exact else 1.0, THIRD if exact else 1.0)
        what = "derivatives" if exact else "displaced cells"
        third = f", {e.evaluations3} of {e.atoms3} atoms" if e.evaluations3 else ""
        lines += [
            f"  forces    {e.evaluations2} {what} of {e.atoms2} atoms{third}: about {duration(seconds)}, and the relaxation",
            f"  memory    about {size(e.fc_bytes + e.symmetrize_bytes + e.batch_bytes)} for force constants",
        ]
    if mesh is not None:
        points = math.prod(mesh)
        distinct = max(1.0, points / (len(point_group(planned.crystal))))
        bands = 3 * len(planned.crystal.numbers)
        seconds = len(methods) * distinct * points / 2 * TRIPLET * (bands / 6) ** 3 / max(1, _cores())
        memory = max(estimated_bytes(planned, mesh, temperatures, m) for m in methods)
        lines += [
            f"  phonons   {points} q-points, about {distinct * points / 2:.0f} triplets: about {duration(seconds)}",
            f"  memory    at most {size(memory)} for the conductivity",
        ]
    return "\n".join(lines)


def _force_seconds(potential: Any, atoms: Any) -> float:
    """Seconds of the forces of one atom on all cores."""
    from jaxmd_thermal.neighbors import make_plan
    from jaxmd_thermal.potentials.base import neighbor_demands
    from jaxmd_thermal.system import System

    system = System.from_atoms(atoms)
    if hasattr(potential, "check_species"):
        potential.check_species(system.numbers)
    slots = make_plan(system, potential.cutoff, neighbor_demands(potential, moving=False)["skin"]).slots
    return slots * _cost(potential) * 1e-6 / max(1, _cores())


def _cost(potential: Any) -> float:
    """Microseconds of a core for a slot of an atom in a step."""
    total = 0.0
    for term in getattr(potential, "terms", (potential,)):
        if hasattr(term, "params"):
            total += PARAMETER * _parameters(term.params)
        else:
            total += PAIR_SLOT if hasattr(term, "pair_energy") else MANY_BODY
    return total


def _parameters(tree: Any) -> int:
    return sum(_parameters(x) for x in tree.values()) if isinstance(tree, dict) else int(getattr(tree, "size", 1))


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def size(n: float) -> str:
    """`3.2 MB`."""
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n >= step:
            return f"{n / step:.1f} {unit}"
    return f"{max(n / 1e3, 1.0):.0f} kB"
