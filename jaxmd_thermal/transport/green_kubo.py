"""Thermal conductivity from a heat-flux series: all estimators together, and a verdict on whether to trust them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxmd_thermal.errors import InputError, nearest
from jaxmd_thermal.transport import cepstral as ceps
from jaxmd_thermal.transport import statistics as st
from jaxmd_thermal.transport.directions import embed, frame_of, named
from jaxmd_thermal.transport.results import MIN_FRAMES, TARGET_ERROR, ConductivityResult, judge
from jaxmd_thermal.units import green_kubo_prefactor

ESTIMATORS = ("cepstral", "filtered", "direct")
TRACE_POINTS = 1000


@dataclass(frozen=True)
class Estimate:
    """One estimate of the isotropic value, in W/(m K)."""

    value: float
    stderr: float
    parameters: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {"value": self.value, "stderr": self.stderr, **self.parameters}


def green_kubo_from_flux(
    flux: np.ndarray,
    timestep: float,
    volume: float,
    temperature: float,
    *,
    n_atoms: int | None = None,
    frequency_cutoff: float | None = None,
    estimator: str = "cepstral",
    directions=None,
    target_error: float = TARGET_ERROR,
    expected_runtime: float | None = None,
    mean_temperature: float | None = None,
    settings: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    seed: int | None = None,
) -> ConductivityResult:
    """Green-Kubo conductivity, `kappa_ab = 1/(k_B T^2 V) integral_0^inf <J_a(0) J_b(t)> dt`, from a stored flux.

    All estimators are computed. "cepstral" (the default headline value) takes twice the number of coefficients that the
    AIC asks for, at an automatic f*, because the plain AIC is too low for slow decays with too small an error
    (`cepstral.cepstral_estimate`); the plain one is in `details`. "filtered" is that of Knoop et al., "direct" the
    running integral at an automatic cutoff.

    The standard error is the statistical one of the headline estimator, widened where it would hide something: to the
    difference from any other estimator that lies outside the two errors combined (1.5 times that for the plain AIC,
    whose own error is too small), and, with four replicas or more, to the spread of the replicas where that is more
    than 1.5 times larger. The verdict names each such case, so it is never silent.

    The tensor has the directions from their own spectra and the off-diagonal elements by polarisation
    (`cepstral.cepstral_tensor`), scaled by a common factor so that the mean of its diagonal is `isotropic`, which pools
    all directions and is the more precise number; the factor is in `details`.

    Args:
      flux: (replicas, frames, 3) or (frames, 3), extensive heat flux, eV Å/fs.
      timestep: fs between frames.
      volume: Å^3 of the simulated cell.
      temperature: K, as requested.
      n_atoms: of the simulated cell, for the record.
      frequency_cutoff: f* of the cepstral estimate in THz; default: `cepstral.choose_block`, beginning at 1 THz.
      estimator: which of "cepstral", "filtered", "direct" is the headline value.
      directions: (n, 3) vectors along which the system is periodic, such as the two cell vectors of a slab; default all
        three. All estimates are means over what they span, and the tensor is NaN along Cartesian axes outside it.
      target_error: relative error up to which the verdict is "converged".
      expected_runtime: s that this series cost here; the verdict then tells how long a sufficient one would take.
      mean_temperature: K, what the runs really had; if given, it enters the formula instead of `temperature`.
      settings, versions, seed: provenance, passed on to the result.

    Raises:
      InputError: wrong shape, a value that is not finite, too few frames, a volume or temperature that is not positive.
    """
    frame = np.eye(3) if directions is None else frame_of(directions)
    flux = check_flux(flux, frame)
    _positive("timestep", timestep, "fs")
    _positive("volume", volume, "Å^3")
    _positive("temperature", temperature, "K")
    if mean_temperature is not None:
        _positive("mean_temperature", mean_temperature, "K")
    if frequency_cutoff is not None:
        _positive("frequency_cutoff", frequency_cutoff, "THz")
    if estimator not in ESTIMATORS:
        known = ", ".join(ESTIMATORS)
        raise InputError(f"estimator '{estimator}' is not one of {known}{nearest(estimator, ESTIMATORS)}")
    replicas, frames, _ = flux.shape
    dt = float(timestep)
    scale = green_kubo_prefactor(volume, mean_temperature or temperature)

    # 1 THz, more in a series too short for that: the scale of the time-domain filters.
    first_block = max(1, min(st.block_size(dt, 1.0), frames // ceps.FIRST_BLOCKS))
    filter_frequency = st.THZ_FS / (2.0 * first_block * dt)
    if frequency_cutoff is None:
        block, reason = ceps.choose_block(flux, dt)
    else:
        block, reason = st.block_size(dt, frequency_cutoff), "given"

    # Cepstral estimates: plain AIC, and the one with an honest error.
    plain = ceps.cepstral_mean(flux, dt, block)
    wide = ceps.cepstral_mean(flux, dt, block, aic_factor=2.0, unbias=True)
    components = wide.components

    # Time-domain estimates. The cutoff comes from block means: without optical oscillations, and with a known noise.
    correlation, traces_of = _correlations(flux)
    mean = st.mean_diagonal(correlation)
    frequencies, power = st.periodogram(flux - flux.mean(axis=1, keepdims=True), dt)
    spectrum = (frequencies, power.mean(axis=(0, 2)), components)
    coarse = st.block_means(flux, first_block)
    slow = st.mean_diagonal(st.autocorrelation(coarse).mean(axis=0))
    lag = st.automatic_cutoff(slow, coarse.shape[1] * components)
    memory = st.correlation_time(slow[: lag + 1], first_block * dt)
    direct = st.direct_estimate(mean, dt, spectrum, lag * first_block, first_block)
    filtered = st.filtered_estimate(mean, dt, spectrum, filter_frequency)

    estimates = {
        "cepstral": Estimate(scale * wide.value, scale * wide.stderr, _cepstral_parameters(wide)),
        "cepstral_aic": Estimate(scale * plain.value, scale * plain.stderr, _cepstral_parameters(plain)),
        "filtered": Estimate(
            scale * filtered.value,
            scale * filtered.stderr,
            {"cutoff_time_fs": filtered.cutoff_time, "filter_frequency_THz": filter_frequency},
        ),
        "direct": Estimate(scale * direct.value, scale * direct.stderr, {"cutoff_time_fs": direct.cutoff_time}),
    }
    spread = _spread(flux, traces_of, dt, direct.cutoff_time, first_block, scale)
    headline = estimates[estimator]
    stderr, doubts = _honest_error(estimator, estimates, spread, replicas)

    # Tensors.
    raw, raw_error = ceps.cepstral_tensor(flux, dt, block, wide.coefficients)
    running = st.running_integral(correlation, dt)
    direct_tensor = running[round(direct.cutoff_time / dt)]
    if estimator == "cepstral":
        tensor, tensor_error = raw, raw_error
    else:
        chosen = direct if estimator == "direct" else filtered
        smooth = running if estimator == "direct" else st.filtered_integral(correlation, dt, filter_frequency)[0]
        tensor = smooth[round(chosen.cutoff_time / dt)]
        tensor = 0.5 * (tensor + tensor.T)
        tensor_error = st.running_tensor_error(tensor, chosen.cutoff_time, replicas * frames * dt)
    tensor, tensor_error = scale * tensor, scale * tensor_error
    trace = float(st.mean_diagonal(tensor))
    factor = headline.value / trace if trace > 0 and headline.value > 0 else 1.0
    # The common part of the widening belongs to every element.
    tensor_error = factor * tensor_error * max(1.0, stderr / headline.stderr if headline.stderr > 0 else 1.0)

    verdict = judge(
        headline.value, stderr, frames * dt, memory, doubts, sound="the estimators agree", where=named(frame),
        remedy="run longer or add replicas until the estimators agree", target=target_error, runtime=expected_runtime,
    )  # fmt: skip
    details = {
        "directions": frame,
        "estimator": estimator,
        "estimators": {name: e.as_dict() for name, e in estimates.items()},
        "frequency_cutoff_THz": wide.frequency_cutoff,
        "frequency_cutoff_reason": reason,
        "effective_components": components,
        "correlation_time_fs": memory,
        "cutoff_time_fs": direct.cutoff_time,
        "total_time_fs": replicas * frames * dt,
        "replicas": replicas,
        "frames": frames,
        "timestep_fs": dt,
        "spread": spread,
        "statistical_stderr": headline.stderr,
        "tensor_direct": embed(scale * direct_tensor, frame),
        "tensor_scale": factor,
        "traces": _traces(flux, dt, mean, scale, frames * dt * components, direct, filtered),
    }
    return ConductivityResult(
        method="green-kubo",
        temperature=float(temperature),
        kappa=embed(factor * tensor, frame),
        stderr=embed(tensor_error, frame),
        isotropic=headline.value,
        isotropic_stderr=stderr,
        verdict=verdict,
        volume=float(volume),
        n_atoms=n_atoms,
        mean_temperature=mean_temperature,
        details=details,
        settings=dict(settings or {}),
        versions=dict(versions or {}),
        seed=seed,
    )


def check_flux(flux: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """The components of the flux along a frame (d, 3), float64 (replicas, frames, d).

    Raises:
      InputError: names what is wrong, or the first bad entry.
    """
    array = np.asarray(flux)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[2] != 3 or array.shape[0] < 1:
        raise InputError(
            f"the flux has shape {np.shape(flux)}, expected (replicas, frames, 3) or (frames, 3). "
            "Transpose it, or stack the components along the last axis."
        )
    if array.dtype.kind not in "fiu":
        raise InputError(f"the flux has entries of type {array.dtype}, expected real numbers.")
    if array.shape[1] < MIN_FRAMES:
        raise InputError(f"the flux has {array.shape[1]} frames; at least {MIN_FRAMES} are needed. Run longer.")
    array = array.astype(np.float64)
    if not np.all(np.isfinite(array)):
        replica, number, axis = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InputError(
            f"the flux is {array[replica, number, axis]} in frame {number}, replica {replica}, component {'xyz'[axis]}; "
            "every value must be finite. Cut the series before that frame, or find out why the run broke."
        )
    if len(frame) < 3:
        array = array @ frame.T
    still = np.all(array == array[:, :1], axis=(0, 1))
    if still.any():
        name = named(frame[[int(np.argmax(still))]]).removeprefix("along ")
        raise InputError(
            f"component {name} of the flux is constant in time, so it has no fluctuations to integrate. Was the right "
            "column read? Of a slab or wire, give its periodic `directions` (--flux-periodic xy)."
        )
    return array


def _positive(name: str, value: float, unit: str) -> None:
    if not (np.ndim(value) == 0 and np.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value}; it must be a finite number above 0 {unit}.")


def _correlations(flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation tensor averaged over replicas (lags, d, d), and the mean of its diagonal for each (replicas, lags)."""
    total, traces = None, []
    for one in flux:  # replica by replica: nine long series each
        c = st.autocorrelation(one[None])[0]
        total = c if total is None else total + c
        traces.append(st.mean_diagonal(c))
    return total / len(flux), np.array(traces)


def _spread(
    flux: np.ndarray, traces: np.ndarray, dt: float, cutoff: float, window: int, scale: float
) -> dict[str, Any]:
    """Direct estimate of each replica and of blocks in time at one common cutoff, and the errors of their means.

    A block is at least 20 cutoff times long; with fewer than two such blocks that error is None.
    """
    lag = max(1, round(cutoff / dt))
    half = min(window // 2, lag)  # as `statistics.direct_estimate`

    def read(correlations: np.ndarray) -> np.ndarray:
        return scale * st.running_integral(correlations, dt, axis=1)[:, lag - half : lag + half + 1].mean(axis=1)

    values = read(traces)
    parts = min(5, flux.shape[1] // (20 * lag))
    blocks = None
    if parts >= 2:
        pieces = st.split_replicas(flux, parts)
        c = st.mean_diagonal(st.autocorrelation(pieces, lag + half))
        blocks = float(st.standard_error(read(c)))
    replica = st.standard_error(values)
    return {
        "replica_values": values,
        "replica_stderr": None if replica is None else float(replica),
        "block_stderr": blocks,
        "blocks": parts * len(flux) if parts >= 2 else 0,
    }


def _honest_error(
    name: str, estimates: Mapping[str, Estimate], spread: Mapping[str, Any], replicas: int
) -> tuple[float, list[str]]:
    """The standard error, widened to cover what contradicts it, and the reasons."""
    headline = estimates[name]
    stderr, doubts = headline.stderr, []
    for other, estimate in estimates.items():
        gap = abs(estimate.value - headline.value)
        if gap > (1.5 if other == "cepstral_aic" else 1.0) * np.hypot(headline.stderr, estimate.stderr):
            label = "plain AIC" if other == "cepstral_aic" else other
            doubts.append(f"the {label} estimate differs ({estimate.value:.3g} against {headline.value:.3g} W/(m K))")
            stderr = max(stderr, gap)
    if replicas >= 4 and spread["replica_stderr"] > 1.5 * headline.stderr:
        doubts.append(f"the replicas scatter more than expected ({spread['replica_stderr']:.2g} W/(m K))")
        stderr = max(stderr, spread["replica_stderr"])
    return float(stderr), doubts


def _cepstral_parameters(estimate: ceps.Cepstral) -> dict[str, Any]:
    return {
        "coefficients": estimate.coefficients,
        "aic_coefficients": estimate.aic_coefficients,
        "components": estimate.components,
        "samples": estimate.samples,
        "block_frames": estimate.block,
        "frequency_cutoff_THz": estimate.frequency_cutoff,
    }


def _traces(
    flux: np.ndarray,
    dt: float,
    mean: np.ndarray,
    scale: float,
    total_time: float,
    direct: st.Direct,
    filtered: st.Direct,
) -> dict[str, np.ndarray]:
    """Curves for plots, thinned: up to four times the later cutoff, where nothing but noise is left."""
    end = min(len(mean), max(16, 4 * round(max(direct.cutoff_time, filtered.cutoff_time) / dt)))
    pick = slice(0, end, max(1, end // TRACE_POINTS))
    width = max(0.05, 4.0 * st.THZ_FS / (flux.shape[1] * dt))
    frequencies, power = st.power_spectrum(flux, dt, width)
    thin = slice(None, None, max(1, len(power) // TRACE_POINTS))
    return {
        "time_fs": direct.times[pick],
        "autocorrelation": (mean / mean[0])[pick],
        "running": scale * direct.running[pick],
        "running_stderr": scale * st.running_error(direct.value, direct.times[pick], total_time),
        "filtered": scale * filtered.running[pick],
        "frequency_THz": frequencies[thin],
        "power": power[thin],
    }
