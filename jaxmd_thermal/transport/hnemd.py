"""Homogeneous non-equilibrium molecular dynamics: drive the heat current, read kappa from its mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import chdtrc

from jaxmd_thermal.derivatives import refuse_long_range
from jaxmd_thermal.dynamics.driver import run_stages
from jaxmd_thermal.dynamics.nose_hoover import NoseHoover
from jaxmd_thermal.dynamics.stages import Progress, Stage
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.observables.virial_velocity import VirialVelocityCorrelator
from jaxmd_thermal.system import System
from jaxmd_thermal.transport import statistics as st
from jaxmd_thermal.transport.cepstral import FIRST_BLOCKS
from jaxmd_thermal.transport.common import (
    cell_volume,
    check_kappa_arguments,
    conducting_frame,
    equilibration,
    state_warnings,
    temperature_limit,
)
from jaxmd_thermal.transport.directions import ALIGNED, embed, frame_of, named
from jaxmd_thermal.transport.results import ConductivityResult, Verdict, judge
from jaxmd_thermal.transport.spectral import spectral_conductivity
from jaxmd_thermal.units import hnemd_prefactor

HEATING = 1.5
"""Times the target temperature at which a driven run is stopped."""

NONLINEAR = 0.0027
"""Probability of chi-square below which forces of several strengths disagree: three standard deviations for two of them."""
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
        direction are a check of the linear regime, and directions fill the columns of the tensor. A slab or wire is driven
        along its periodic directions.
      damping: fs of the Nosé-Hoover chains; default 100 time steps.
      spectral_lags: samples of the virial-velocity correlation on either side (0: no spectral decomposition).
        The onset is left out in whole twentieths of the run (`details["spectral"]["discarded_frames"]`).
      Others as in `green_kubo`; the equilibration is without the force.

    Returns:
      A result with NaN (null in the file) in the columns of the tensor that were not driven. `isotropic` is the mean over
      the driven directions of the conductivity along the force: one third of the trace if they are x, y and z or the
      crystal is cubic; otherwise the verdict names them, and `details["directions"]` always holds them. Its error is that
      of block and replica averages, widened when forces of different strength disagree.

    Raises:
      InputError, CapacityError, UnstableError (the force heats the system), UnsupportedError, OutputError, CheckpointError.

    Source: Evans, Phys. Lett. A 91, 457 (1982); Fan et al., PRB 99, 064308 (2019); for any message-passing potential:
    the transpose of the edge-power flux (derivatives.py).
    """
    system = System.from_atoms(atoms)
    frames = check_kappa_arguments(temperature, steps, equilibration_steps, sample_every)
    if spectral_lags >= frames:
        raise InputError(
            f"spectral_lags is {spectral_lags}, but the run has {frames} samples (steps {steps}, sample_every {sample_every}): "
            "run longer, or ask for fewer lags"
        )
    refuse_long_range(potential)
    v = cell_volume(system, volume, thickness)
    directions = conducting_frame(system)
    fields = check_fields(driving_force, directions)
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
    observers = (VirialVelocityCorrelator(spectral_lags, frames),) if spectral_lags else ()
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
        observers=observers,
        skin=skin,
        capacity=capacity,
        progress=progress,
    )
    samples = run.samples
    flux = np.moveaxis(samples["heat_flux_potential"] + samples["heat_flux_convective"], 0, 1)
    flux = flux.reshape(len(fields), replicas, *flux.shape[1:])
    mean_temperature = float(np.mean(samples["temperature"]))
    result = hnemd_from_flux(flux, fields, v, mean_temperature, timestep=timestep * sample_every, directions=directions)
    details = dict(result["details"])
    details["seconds_per_step"] = run.seconds_per_step
    for observer in observers:
        correlation, start = observer.correlation(run.observers[0], details["discarded_frames"])
        correlation = correlation.reshape(len(fields), replicas, -1).mean(axis=1)
        details["spectral"] = _spectra(correlation, fields, timestep * sample_every, v, mean_temperature)
        details["spectral"]["discarded_frames"] = start
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


def check_fields(driving_force, frame: np.ndarray) -> np.ndarray:
    """(fields, 3) 1/Å, of forces in the space of the periodic directions, with basis `frame` (d, 3).

    Raises:
      InputError: not one or more 3-vectors, not finite, zero, or with a part across the periodic directions.
    """
    fields = np.atleast_2d(np.asarray(driving_force, float))
    if fields.ndim != 2 or fields.shape[1] != 3 or not np.all(np.isfinite(fields)):
        raise InputError(
            f"driving_force is {np.asarray(driving_force).tolist()}; it must be a 3-vector in 1/Å (or a list of them), "
            "for example [0.001, 0, 0]"
        )
    strength = np.linalg.norm(fields, axis=1)
    if np.any(strength == 0):
        raise InputError("a driving_force of zero drives nothing: give at least one component that is not 0 (1/Å)")
    across = np.linalg.norm(fields - fields @ frame.T @ frame, axis=1)
    if np.any(across > ALIGNED * strength):
        bad = int(np.argmax(across / strength))
        raise InputError(
            f"driving_force {fields[bad].tolist()} has a part of {across[bad]:.3g} 1/Å across the directions in which the "
            f"system is periodic, where heat cannot flow on: drive {named(frame).replace('mean over', 'along')} only"
        )
    return fields


def hnemd_from_flux(
    flux: np.ndarray,
    fields: np.ndarray,
    volume: float,
    temperature: float,
    *,
    timestep: float = 1.0,
    directions=None,
) -> dict[str, Any]:
    """Analysis of driven fluxes.

    The force acts from the first frame on, and the mean flux rises to its final value like the running Green-Kubo
    integral (linear response). So a leading part is left out: twice the lag at which the autocorrelation of the flux sinks
    into its noise, where the remainder of an exponential is that noise squared; half of the series at most.

    Args:
      flux: (fields, replicas, frames, 3) eV Å/fs.
      fields: (fields, 3) 1/Å.
      volume, temperature: Å^3, K.
      timestep: fs between frames; with the default, times are in frames.
      directions: (n, 3) vectors along which the system is periodic; default all three. The fields lie in their span.

    Returns:
      kappa, stderr (3, 3) by weighted least squares over the fields, NaN in columns that no field has and along axes that
      are not periodic; isotropic, isotropic_stderr, converged, text, details.
    """
    frame = np.eye(3) if directions is None else frame_of(directions)
    flux, local = flux @ frame.T, fields @ frame.T
    _, replicas, frames, _ = flux.shape
    scale = hnemd_prefactor(volume, temperature)
    strength = np.linalg.norm(fields, axis=1)
    parallel = np.einsum("frta,fa->frt", flux, local) / strength[:, None, None]
    lag, memory = _memory(parallel)
    start = min(2 * lag, frames // 2)
    flux, parallel = flux[:, :, start:], parallel[:, :, start:]
    kept = frames - start

    mean = flux.mean(axis=(1, 2))
    blocks = np.stack([[st.block_error(series, min(BLOCKS, kept)) for series in group] for group in flux])
    error = np.sqrt(np.sum(blocks**2, axis=1)) / replicas
    if replicas >= 4:
        error = np.maximum(error, flux.mean(axis=2).std(axis=1, ddof=1) / np.sqrt(replicas))
    kappa, stderr = _tensor(mean * scale, error * scale, local)

    along = parallel.mean(axis=(1, 2)) * scale / strength
    along_error = np.sqrt(np.einsum("fa,fa->f", error**2, local**2)) * scale / strength**2
    groups = _directions(fields)
    driven = np.array([fields[members[0]] / strength[members[0]] for members in groups])
    values, errors, problems = [], [], []
    for members, direction in zip(groups, driven):
        weights = 1.0 / along_error[members] ** 2
        value = float(np.sum(weights * along[members]) / np.sum(weights))
        sigma = float(1.0 / np.sqrt(np.sum(weights)))
        chi_square = float(np.sum(weights * (along[members] - value) ** 2))
        chance = float(chdtrc(len(members) - 1, chi_square)) if len(members) > 1 else 1.0
        if chance < NONLINEAR:
            problems.append(
                f"not in the linear regime: {named(direction[None])} the forces {strength[members].tolist()} 1/Å give "
                f"{np.round(along[members], 4).tolist()} W/(m K), chi-square {chi_square:.1f} for {len(members)} of them "
                f"(p = {chance:.1g}, below {NONLINEAR:g}); use smaller forces"
            )
            sigma = max(sigma, float(np.max(np.abs(along[members] - value))))
        values.append(value)
        errors.append(sigma)
    isotropic = float(np.mean(values))
    isotropic_stderr = float(np.sqrt(np.sum(np.square(errors))) / len(errors))
    checked = "the strengths of the force agree"
    if len(fields) == len(groups):
        checked = "one strength of the force only, so the linear regime is not checked"
    verdict = judge(
        isotropic, isotropic_stderr, kept * timestep, memory * timestep, problems, sound=checked, where=named(driven)
    )
    keep = max(1, kept // 500)
    running = np.cumsum(parallel, axis=2) / np.arange(1, kept + 1)
    running = (running * scale / strength[:, None, None]).mean(axis=1)[:, keep - 1 :: keep]
    return {
        "kappa": embed(kappa, frame),
        "stderr": embed(stderr, frame),
        "isotropic": isotropic,
        "isotropic_stderr": isotropic_stderr,
        "converged": verdict.converged,
        "text": verdict.text,
        "details": {
            "directions": driven,
            "driving_force_per_A": fields,
            "kappa_along_force": along,
            "kappa_along_force_stderr": along_error,
            "frames": frames,
            "timestep_fs": timestep,
            "discarded_frames": start,
            "correlation_time_fs": memory * timestep,
            "running_frames": np.arange(start + keep, frames + 1, keep),
            "running_kappa": running,
        },
    }


def _memory(parallel: np.ndarray) -> tuple[int, float]:
    """Of fluxes along their forces (fields, replicas, frames), in frames: the lag from which their autocorrelation is noise,
    and the correlation time."""
    frames = parallel.shape[2]
    block = max(1, frames // FIRST_BLOCKS)
    coarse = st.block_means(parallel.reshape(-1, frames, 1), block)
    correlation = st.autocorrelation(coarse)[:, :, 0, 0].mean(axis=0)
    lag = st.automatic_cutoff(correlation, coarse.shape[0] * coarse.shape[1])
    return lag * block, st.correlation_time(correlation[: lag + 1], block)


def _tensor(current: np.ndarray, error: np.ndarray, fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(kappa, stderr) of current_a = sum_b kappa_ab F_b, row by row, in the span of the fields; all with d components."""
    d = fields.shape[1]
    kappa, stderr = np.full((d, d), np.nan), np.full((d, d), np.nan)
    driven = [b for b in range(d) if np.any(fields[:, b] != 0)]
    design = fields[:, driven]
    if np.linalg.matrix_rank(design) < len(driven):
        return kappa, stderr  # a force along a diagonal alone does not tell the columns apart
    for a in range(d):
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
