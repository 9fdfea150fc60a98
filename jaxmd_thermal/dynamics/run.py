"""Molecular dynamics from one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from jaxmd_thermal.dynamics.driver import run_stages
from jaxmd_thermal.dynamics.factory import ensemble_from_name
from jaxmd_thermal.dynamics.stages import Progress, SimulationResult, Stage
from jaxmd_thermal.system import System


def simulate(
    potential,
    atoms,
    ensemble: Any = "nve",
    steps: int = 1000,
    *,
    timestep: float = 1.0,
    temperature: float | None = None,
    pressure: float | None = None,
    observers: Sequence[Any] = (),
    replicas: int = 1,
    seed: int = 0,
    out=None,
    sample_every: int = 1,
    quantities: Sequence[str] = (),
    trajectory: bool = False,
    velocities=None,
    dtype: str = "float64",
    skin: float | None = None,
    capacity: int | None = None,
    max_temperature: float | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> SimulationResult:
    """Molecular dynamics.

    Args:
      potential: a potential (see `load_potential`).
      atoms: ASE `Atoms`, `System` or a path.
      ensemble: "nve", "langevin", "nose-hoover", "csvr", "npt", "npt-flexible", or an ensemble object.
      steps: time steps.
      timestep: fs.
      temperature: K, of the thermostat and of the initial velocities.
      pressure: eV/Å^3, for the npt ensembles.
      observers: accumulators with `init`, `update`, `finalize` (jaxmd_thermal.observables).
      replicas: independent copies, with their own random numbers; shared out over the devices there are.
      seed: all randomness derives from it.
      out: folder for samples, checkpoints and the final structure; the same call again resumes it, bit for bit.
      sample_every: steps between samples.
      quantities: "heat_flux" and/or "stress" in the samples.
      trajectory: keep positions and velocities in the samples (and write trajectory.extxyz into `out`).
      velocities: (atoms, 3) or (replicas, atoms, 3) Å/fs to start from.
      dtype: "float64", or "float32" for a potential in single precision (state and sums stay double).
      skin: Å beyond the cutoff up to which pairs are listed, so that the list need not be rebuilt at every step; by
        default what suits the cost of the potential.
      capacity: neighbours an atom can have at first; found by itself if not given, and enlarged when needed.
      max_temperature: K at which the run stops.

    Raises:
      InputError, CapacityError, UnstableError, OutputError, CheckpointError.
    """
    system = System.from_atoms(atoms)
    if isinstance(ensemble, str):
        ensemble = ensemble_from_name(
            ensemble, temperature=temperature, pressure=pressure, timestep=timestep, pbc=system.pbc
        )
    stage = Stage(
        "production",
        ensemble,
        steps,
        sample_every,
        tuple(quantities),
        trajectory=trajectory,
        max_temperature=_temperature_limit(temperature, system.n_atoms) if max_temperature is None else max_temperature,
    )
    settings = {
        "command": "md", "ensemble": ensemble, "steps": steps, "timestep_fs": timestep, "temperature_K": temperature,
        "pressure_eV_A3": pressure, "replicas": replicas, "seed": seed, "dtype": dtype, "sample_every": sample_every,
        "quantities": list(quantities), "trajectory": trajectory,
    }  # fmt: skip
    return run_stages(
        potential,
        system,
        [stage],
        settings=settings,
        out=out,
        timestep=timestep,
        temperature=temperature,
        velocities=velocities,
        replicas=replicas,
        seed=seed,
        dtype=dtype,
        observers=observers,
        skin=skin,
        capacity=capacity,
        progress=progress,
    )


def _temperature_limit(temperature: float | None, n_atoms: int) -> float:
    """K at which a run has certainly gone wrong: ten times the target, beyond any fluctuation of a small cell."""
    if temperature is None:
        return 1e6
    return 10.0 * max(temperature, 1.0) * (1.0 + 6.0 * math.sqrt(2.0 / (3.0 * max(n_atoms, 1)))) + 1000.0
