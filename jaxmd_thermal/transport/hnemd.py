"""Homogeneous non-equilibrium molecular dynamics: drive the heat current, read kappa from its mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxmd_thermal.derivatives import refuse_long_range
from jaxmd_thermal.dynamics.driver import run_stages
from jaxmd_thermal.dynamics.nose_hoover import NoseHoover
from jaxmd_thermal.dynamics.stages import Progress, Stage
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.observables.virial_velocity import VirialVelocityCorrelator
from jaxmd_thermal.system import System
from jaxmd_thermal.transport.common import (
    cell_volume,
    check_kappa_arguments,
    equilibration,
    state_warnings,
    temperature_limit,
)
from jaxmd_thermal.transport.results import ConductivityResult, Verdict
from jaxmd_thermal.transport.spectral import spectral_conductivity
from jaxmd_thermal.transport.statistics import block_error
from jaxmd_thermal.units import hnemd_prefactor

HEATING = 1.5
"""Times the target temperature at which a driven run is stopped."""

TARGET_ERROR = 0.15
LINEARITY_SIGMAS = 3.0
BLOCKS = 10


def hnemd(
    potential,
    atoms,
    temperature: float,
    *,
    driving_force,
    timestep: float = 4.0,
    steps: int,
    equilibration_steps: int,
    replicas: int = 1,
    sample_every: int = 1,
    seed: int = 0,
    dtype: str = "float64",
    out=None,
    damping: float | None = None,
    volume: float | None = None,
    thickness: float | None = None,
    spectral_lags: int = 0,
    skin: float | None = None,
    capacity: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ConductivityResult:
    """Thermal conductivity from the mean heat flux under a driving force, `kappa_ab = <J_a> / (T V F_b)`.

    Args:
      driving_force: (3,) 1/Å, or a list of them; each gets its own `replicas`. Forces of several strengths along one
        direction are a check of the linear regime, and directions fill the columns of the tensor.
      damping: fs of the Nosé-Hoover chains; default 100 time steps.
      spectral_lags: samples of the virial-velocity correlation on either side (0: no spectral decomposition).
      Others as in `green_kubo`; the equilibration is without the force.

    Returns:
      A result with NaN (null in the file) in the columns of the tensor that were not driven. `isotropic` is the mean over
      the driven directions of the conductivity along the force; its error is that of block and replica averages, widened
      when forces of different strength disagree.

    Raises:
      InputError, CapacityError, UnstableError (the force heats the system), UnsupportedError, OutputError, CheckpointError.

    Source: Evans, Phys. Lett. A 91, 457 (1982); Fan et al., PRB 99, 064308 (2019); for any message-passing potential:
    the transpose of the edge-power flux (derivatives.py).
    """
    system = System.from_atoms(atoms)
    check_kappa_arguments(temperature, steps, equilibration_steps)
    refuse_long_range(potential)
    fields = check_fields(driving_force)
    v = cell_volume(system, volume, thickness)
    chains = NoseHoover(temperature=temperature, damping=100.0 * timestep if damping is None else damping)
    quantities = ("heat_flux", "driving_virial") if spectral_lags else ("heat_flux",)
    stages = [
        *equilibration(temperature, timestep, equilibration_steps, system.n_atoms),
        Stage(
            "production",
            chains,
            steps,
            sample_every,
            quantities,
            field=np.repeat(fields, replicas, axis=0),
            max_temperature=temperature_limit(temperature, system.n_atoms, HEATING),
        ),
    ]
    settings = {
        "command": "hnemd", "temperature_K": temperature, "timestep_fs": timestep,
        "driving_force_per_A": fields, "steps": steps, "equilibration_steps": equilibration_steps, "replicas": replicas,
        "sample_every": sample_every, "seed": seed, "dtype": dtype, "damping_fs": damping, "volume_A3": v,
        "spectral_lags": spectral_lags,
    }  # fmt: skip
    run = run_stages(
        potential,
        system,
        stages,
        settings=settings,
        out=out,
        timestep=timestep,
        temperature=temperature,
        replicas=len(fields) * replicas,
        seed=seed,
        dtype=dtype,
        observers=(VirialVelocityCorrelator(spectral_lags),) if spectral_lags else (),
        skin=skin,
        capacity=capacity,
        progress=progress,
    )
    samples = run.samples
    flux = np.moveaxis(samples["heat_flux_potential"] + samples["heat_flux_convective"], 0, 1)
    flux = flux.reshape(len(fields), replicas, *flux.shape[1:])
    mean_temperature = float(np.mean(samples["temperature"]))
    result = hnemd_from_flux(flux, fields, v, mean_temperature)
    details = dict(result["details"])
    details["seconds_per_step"] = run.seconds_per_step
    if spectral_lags:
        correlation = run.observers[0]["correlation"].reshape(len(fields), replicas, -1).mean(axis=1)
        details["spectral"] = _spectra(correlation, fields, timestep * sample_every, v, mean_temperature)
    warnings = state_warnings(run, system, temperature, driven=True)
    verdict = Verdict(result["converged"] and not warnings, "; ".join([*warnings, result["text"]]))
    final = ConductivityResult(
        method="hnemd", temperature=temperature, mean_temperature=mean_temperature, kappa=result["kappa"],
        stderr=result["stderr"], isotropic=result["isotropic"], isotropic_stderr=result["isotropic_stderr"],
        verdict=verdict, volume=v, n_atoms=system.n_atoms, details=details, settings=settings, versions=run.versions,
        seed=seed,
    )  # fmt: skip
    if run.path is not None:
        final.save(run.path)
    return final


def check_fields(driving_force) -> np.ndarray:
    """(fields, 3) 1/Å.

    Raises:
      InputError: not one or more 3-vectors, not finite, or zero.
    """
    fields = np.atleast_2d(np.asarray(driving_force, float))
    if fields.ndim != 2 or fields.shape[1] != 3 or not np.all(np.isfinite(fields)):
        raise InputError(
            f"driving_force is {np.asarray(driving_force).tolist()}; it must be a 3-vector in 1/Å (or a list of them), "
            "for example [0.001, 0, 0]"
        )
    if np.any(np.linalg.norm(fields, axis=1) == 0):
        raise InputError("a driving_force of zero drives nothing: give at least one component that is not 0 (1/Å)")
    return fields


def hnemd_from_flux(flux: np.ndarray, fields: np.ndarray, volume: float, temperature: float) -> dict[str, Any]:
    """Analysis of driven fluxes.

    Args:
      flux: (fields, replicas, frames, 3) eV Å/fs.
      fields: (fields, 3) 1/Å.
      volume, temperature: Å^3, K.

    Returns:
      kappa, stderr (3, 3) by weighted least squares over the fields, NaN in columns that no field has; isotropic,
      isotropic_stderr, converged, text, details.
    """
    _, replicas, frames, _ = flux.shape
    scale = hnemd_prefactor(volume, temperature)
    mean = flux.mean(axis=(1, 2))
    blocks = np.stack([[block_error(series, min(BLOCKS, frames)) for series in group] for group in flux])
    error = np.sqrt(np.sum(blocks**2, axis=1)) / replicas
    if replicas >= 4:
        error = np.maximum(error, flux.mean(axis=2).std(axis=1, ddof=1) / np.sqrt(replicas))
    kappa, stderr = _tensor(mean * scale, error * scale, fields)

    strength = np.linalg.norm(fields, axis=1)
    along = np.einsum("fa,fa->f", mean, fields) * scale / strength**2
    along_error = np.sqrt(np.einsum("fa,fa->f", error**2, fields**2)) * scale / strength**2
    groups = _directions(fields)
    values, errors, problems = [], [], []
    for members in groups:
        weights = 1.0 / along_error[members] ** 2
        value = float(np.sum(weights * along[members]) / np.sum(weights))
        sigma = float(1.0 / np.sqrt(np.sum(weights)))
        spread = np.abs(along[members] - value) / along_error[members]
        if len(members) > 1 and np.max(spread) > LINEARITY_SIGMAS:
            problems.append(
                f"not in the linear regime: along {np.round(fields[members[0]] / strength[members[0]], 3).tolist()} the forces "
                f"{strength[members].tolist()} 1/Å give {np.round(along[members], 4).tolist()} W/(m K), up to "
                f"{np.max(spread):.1f} standard errors apart; use smaller forces"
            )
            sigma = max(sigma, float(np.max(np.abs(along[members] - value))))
        values.append(value)
        errors.append(sigma)
    isotropic = float(np.mean(values))
    isotropic_stderr = float(np.sqrt(np.sum(np.square(errors))) / len(errors))
    relative = isotropic_stderr / abs(isotropic) if isotropic else np.inf
    converged = not problems and relative <= TARGET_ERROR
    if problems:
        text = "; ".join(problems)
    elif converged:
        text = f"converged: sigma/kappa = {100 * relative:.0f} %"
        if len(fields) == len(groups):
            text += "; one strength of the force only, so the linear regime is not checked"
    else:
        text = f"not converged: sigma/kappa = {100 * relative:.0f} %; about {(relative / TARGET_ERROR) ** 2:.1f}x longer needed"
    keep = max(1, frames // 500)
    running = np.cumsum(np.einsum("frta,fa->frt", flux, fields), axis=2) / np.arange(1, frames + 1)
    running = (running * scale / strength[:, None, None] ** 2).mean(axis=1)[:, keep - 1 :: keep]
    return {
        "kappa": kappa,
        "stderr": stderr,
        "isotropic": isotropic,
        "isotropic_stderr": isotropic_stderr,
        "converged": bool(converged),
        "text": text,
        "details": {
            "driving_force_per_A": fields,
            "kappa_along_force": along,
            "kappa_along_force_stderr": along_error,
            "running_frames": np.arange(keep, frames + 1, keep),
            "running_kappa": running,
        },
    }


def _tensor(current: np.ndarray, error: np.ndarray, fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(kappa, stderr) of current_a = sum_b kappa_ab F_b, row by row, in the span of the fields."""
    kappa, stderr = np.full((3, 3), np.nan), np.full((3, 3), np.nan)
    driven = [b for b in range(3) if np.any(fields[:, b] != 0)]
    design = fields[:, driven]
    if np.linalg.matrix_rank(design) < len(driven):
        return kappa, stderr  # a force along a diagonal alone does not tell the columns apart
    for a in range(3):
        sigma = np.maximum(error[:, a], 1e-300)
        covariance = np.linalg.inv((design / sigma[:, None] ** 2).T @ design)
        kappa[a, driven] = covariance @ (design / sigma[:, None] ** 2).T @ current[:, a]
        stderr[a, driven] = np.sqrt(np.diag(covariance))
    return kappa, stderr


def _directions(fields: np.ndarray) -> list[np.ndarray]:
    """Indices of fields that are parallel or antiparallel to each other."""
    unit = fields / np.linalg.norm(fields, axis=1)[:, None]
    rest, groups = list(range(len(fields))), []
    while rest:
        members = [i for i in rest if abs(unit[i] @ unit[rest[0]]) > 1 - 1e-9]
        groups.append(np.array(members))
        rest = [i for i in rest if i not in members]
    return groups


def _spectra(
    correlation: np.ndarray, fields: np.ndarray, spacing: float, volume: float, temperature: float
) -> dict[str, Any]:
    """Mean over the fields of kappa(omega) along the force."""
    spectra = []
    for series, field in zip(correlation, fields, strict=True):
        strength = float(np.linalg.norm(field))
        spectra.append(spectral_conductivity(series / strength, spacing, volume, temperature, strength))
    mean = np.mean([s.conductivity for s in spectra], axis=0)
    return {
        "frequency_THz": spectra[0].frequency,
        "kappa_per_THz": mean,
        "integral": float(np.mean([s.integral for s in spectra])),
    }
