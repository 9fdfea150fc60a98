"""Molecular dynamics from one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxmd_thermal.dynamics.driver import run_stages
from jaxmd_thermal.dynamics.factory import ensemble_from_name
from jaxmd_thermal.dynamics.stages import Progress, SimulationResult, Stage
from jaxmd_thermal.errors import InputError, nearest
from jaxmd_thermal.system import System

SAMPLED = ("heat_flux", "stress")
"""What samples can hold beyond energies, temperature and volume."""


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
    quantities: str | Sequence[str] = (),
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
      temperature: K, of the thermostat and of the initial velocities; without it the velocities that the structure carries
        are those at the start, and without these the atoms start at rest.
      pressure: eV/Å^3, for the npt ensembles.
      observers: accumulators with `init`, `update`, `finalize` (jaxmd_thermal.observables).
      replicas: independent copies, with their own random numbers; shared out over the devices there are.
      seed: all randomness derives from it.
      out: folder for samples, checkpoints and the final structure; the same call again resumes it, bit for bit.
      sample_every: steps between samples.
      quantities: a name or names out of "heat_flux" and "stress", for the samples.
      trajectory: keep positions and velocities in the samples (and write trajectory.extxyz into `out`).
      velocities: (atoms, 3) or (replicas, atoms, 3) Å/fs to start from, before all others.
      dtype: "float64", or "float32" for a potential in single precision (state and sums stay double).
      skin: Å beyond the cutoff up to which pairs are listed, so that the list need not be rebuilt at every step; by
        default what suits the cost of the potential.
      capacity: neighbours an atom can have at first; found by itself if not given, and enlarged when needed.
      max_temperature: K at which the run stops.

    Raises:
      InputError, CapacityError, UnstableError, OutputError, CheckpointError.
    """
    if not isinstance(atoms, System):
        from jaxmd_thermal.io.ase import atoms_from, velocities_of

        atoms = atoms_from(atoms)
        if velocities is None and temperature is None:
            velocities = velocities_of(atoms)
    system = System.from_atoms(atoms)
    _check_velocities(velocities, replicas, system.n_atoms)
    quantities = _checked_quantities(quantities, system.pbc)
    if isinstance(ensemble, str):
        ensemble = ensemble_from_name(
            ensemble, temperature=temperature, pressure=pressure, timestep=timestep, pbc=system.pbc
        )
    stage = Stage(
        "production",
        ensemble,
        steps,
        sample_every,
        quantities,
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


def _check_velocities(velocities, replicas: int, n_atoms: int) -> None:
    if velocities is None:
        return
    shape, finite = np.shape(velocities), bool(np.all(np.isfinite(velocities)))
    if shape not in ((n_atoms, 3), (replicas, n_atoms, 3)) or not finite:
        raise InputError(
            f"velocities have the shape {shape} (finite: {finite}); they must be finite and of the shape {(n_atoms, 3)}, or "
            f"{(replicas, n_atoms, 3)} for replicas of their own, in Å/fs"
        )


def _checked_quantities(quantities: str | Sequence[str], pbc: tuple[bool, bool, bool]) -> tuple[str, ...]:
    names = (quantities,) if isinstance(quantities, str) else tuple(quantities)
    for name in names:
        if name not in SAMPLED:
            known = ", ".join(SAMPLED)
            raise InputError(f"quantity '{name}' cannot be sampled{nearest(name, SAMPLED)}; those that can are {known}")
    if "stress" in names and not all(pbc):
        raise InputError(f"stress needs a cell that is periodic in three directions, not {pbc}: leave it out")
    return names


def _temperature_limit(temperature: float | None, n_atoms: int) -> float:
    """K at which a run has certainly gone wrong: ten times the target, beyond any fluctuation of a small cell."""
    if temperature is None:
        return 1e6
    return 10.0 * max(temperature, 1.0) * (1.0 + 6.0 * math.sqrt(2.0 / (3.0 * max(n_atoms, 1)))) + 1000.0
