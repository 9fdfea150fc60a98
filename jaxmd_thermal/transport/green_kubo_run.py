"""Green-Kubo from a structure: equilibrate with Langevin dynamics, collect the heat flux at constant energy, analyse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.derivatives import evaluate, refuse_long_range
from jaxmd_thermal.dynamics.base import require
from jaxmd_thermal.dynamics.driver import run_stages
from jaxmd_thermal.dynamics.nve import NVE
from jaxmd_thermal.dynamics.stages import Progress, Stage
from jaxmd_thermal.system import System
from jaxmd_thermal.transport.common import (
    OVERHEATING,
    cell_volume,
    check_kappa_arguments,
    conducting_frame,
    equilibration,
    state_warnings,
    temperature_limit,
)
from jaxmd_thermal.transport.green_kubo import green_kubo_from_flux
from jaxmd_thermal.transport.results import ConductivityResult, Verdict
from jaxmd_thermal.transport.statistics import block_count, block_size


def green_kubo(
    potential,
    atoms,
    temperature: float,
    *,
    timestep: float = 4.0,
    steps: int,
    equilibration_steps: int,
    replicas: int = 1,
    sample_every: int = 1,
    seed: int = 0,
    dtype: str = "float64",
    out=None,
    friction: float | None = None,
    frequency_cutoff: float | None = None,
    volume: float | None = None,
    thickness: float | None = None,
    reduced_flux: bool = False,
    observers=(),
    skin: float | None = None,
    capacity: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ConductivityResult:
    """Thermal conductivity by the Green-Kubo formula; of a slab or wire along its periodic directions only.

    Args:
      potential, atoms: see `simulate`. The cell must be at the density that you want the conductivity of.
      temperature: K. The runs are at constant energy after the equilibration; their mean temperature enters the
        formula and is in the result.
      timestep: fs.
      steps: time steps of constant-energy dynamics, per replica.
      equilibration_steps: time steps of Langevin dynamics before.
      replicas: independent runs, pooled as components of one estimate.
      sample_every: steps between two samples of the flux; a fast optical mode needs at least ten samples a period.
      seed: all randomness derives from it.
      dtype: "float64", or "float32" for the potential.
      out: folder of the run (samples, checkpoints, results.json); the same call again resumes it, bit for bit.
      friction: 1/fs of the Langevin equilibration; default 1/(500 time steps).
      frequency_cutoff: THz, f* of the analysis; automatic by default.
      volume, thickness: Å^3 or Å, for systems that are not periodic in three directions.
      reduced_flux: for solids, also estimate from `J_pot - sum_i <W_i> . v_i` without the convective part: less noise,
        the same conductivity; both values are in the result.
      observers: accumulators for the production (for example a multiple-tau correlator of the flux, from which
        `green_kubo_from_correlation` makes a conductivity).

    Raises:
      InputError, CapacityError, UnstableError, UnsupportedError, OutputError, CheckpointError.

    Source: Green (1954), Kubo (1957); analysis: `green_kubo_from_flux`.
    """
    system = System.from_atoms(atoms)
    frames = check_kappa_arguments(temperature, steps, equilibration_steps, sample_every)
    if frequency_cutoff is not None:
        require(timestep, "timestep", "fs")
        require(frequency_cutoff, "frequency_cutoff", "THz")
        block_count(frames, block_size(timestep * sample_every, frequency_cutoff))
    refuse_long_range(potential)
    v = cell_volume(system, volume, thickness)
    directions = conducting_frame(system)
    sites = site_virials(potential, system, dtype) if reduced_flux else None
    stages = [
        *equilibration(temperature, timestep, equilibration_steps, system.n_atoms, friction),
        Stage(
            "production",
            NVE(),
            steps,
            sample_every,
            ("heat_flux",),
            max_temperature=temperature_limit(temperature, system.n_atoms, OVERHEATING),
            site_virials=sites,
        ),
    ]
    settings = {
        "command": "green-kubo", "temperature_K": temperature, "timestep_fs": timestep,
        "steps": steps, "equilibration_steps": equilibration_steps, "replicas": replicas, "sample_every": sample_every,
        "seed": seed, "dtype": dtype, "friction_per_fs": friction, "reduced_flux": reduced_flux, "volume_A3": v,
        "frequency_cutoff_THz": frequency_cutoff,
    }  # fmt: skip
    run = run_stages(
        potential,
        system,
        stages,
        settings=settings,
        out=out,
        timestep=timestep,
        temperature=temperature,
        replicas=replicas,
        seed=seed,
        dtype=dtype,
        observers=observers,
        skin=skin,
        capacity=capacity,
        progress=progress,
    )
    samples = run.samples
    per_step = run.seconds_per_step
    analysis: dict[str, Any] = {
        "timestep": timestep * sample_every,
        "volume": v,
        "temperature": temperature,
        "n_atoms": system.n_atoms,
        "frequency_cutoff": frequency_cutoff,
        "directions": directions,
        "mean_temperature": float(np.mean(samples["temperature"])),
        "expected_runtime": None if per_step is None else per_step * (steps + equilibration_steps),
        "settings": settings,
        "versions": run.versions,
        "seed": seed,
    }
    flux = np.swapaxes(samples["heat_flux_potential"] + samples["heat_flux_convective"], 0, 1)
    result = green_kubo_from_flux(flux, **analysis)
    details = dict(result.details)
    details["mean_temperatures_K"] = np.mean(samples["temperature"], axis=0)
    details["seconds_per_step"] = per_step
    if reduced_flux:
        other = green_kubo_from_flux(np.swapaxes(samples["heat_flux_reduced"], 0, 1), **analysis)
        details["reduced_flux"] = {
            "isotropic": other.isotropic,
            "stderr": other.isotropic_stderr,
            "tensor": other.kappa,
        }
    if run.observers:
        details["observers"] = run.observers
    warnings = state_warnings(run, system, temperature)
    verdict = result.verdict
    if warnings:
        verdict = Verdict(False, "; ".join([*warnings, verdict.text]))
    result = replace(result, details=details, verdict=verdict)
    if run.path is not None:
        result.save(run.path)
    return result


def site_virials(potential, system: System, dtype: str = "float64") -> np.ndarray:
    """(3, atoms, 3) eV: W_i = d J_pot / d v_i with the atoms on their sites, one row for each direction of the flux."""
    still = np.zeros_like(np.asarray(system.positions))
    with double_precision():
        return np.stack(
            [
                evaluate(potential, system, "driving_virial", velocities=still, dtype=dtype, field=np.eye(3)[x])[
                    "driving_virial"
                ]
                for x in range(3)
            ]
        )
