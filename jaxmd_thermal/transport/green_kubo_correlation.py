"""Thermal conductivity from a correlation that was accumulated during the run, without a stored flux."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmd_thermal.dynamics.base import require
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.observables.correlator import integrate_lags
from jaxmd_thermal.transport import statistics as st
from jaxmd_thermal.transport.directions import embed, frame_of, named
from jaxmd_thermal.transport.results import TARGET_ERROR, ConductivityResult, judge
from jaxmd_thermal.units import green_kubo_prefactor


def green_kubo_from_correlation(
    replicas: Sequence[Mapping[str, Any]],
    timestep: float,
    volume: float,
    temperature: float,
    *,
    n_atoms: int | None = None,
    mean_temperature: float | None = None,
    directions=None,
    target_error: float = TARGET_ERROR,
) -> ConductivityResult:
    """Green-Kubo conductivity of what a `MultipleTauCorrelator` of the heat flux has gathered.

    The direct estimate: the running integral at the first lag where the correlation is lost in its own noise
    (`statistics.automatic_cutoff`, here over unequal lags). Lags closer than half a picosecond do not end it, because an
    optical oscillation crosses zero there. The error is that of white noise, `2 kappa sqrt(t_c/total)`, or from four replicas
    on their scatter if that is larger. A running integral that goes on changing up to twice the cutoff is in the verdict.

        result = green_kubo(potential, atoms, 300.0, observers=(Observe(MultipleTauCorrelator()),), ...)
        green_kubo_from_correlation(result.details["observers"][0], timestep * sample_every, result.volume, 300.0)

    Args:
      replicas: one output of the correlator for each replica, of equally long runs: `lag` (L,) in samples, `correlation`
        (L, 3, 3) in (eV Å/fs)^2, `pairs` (L,).
      timestep: fs between samples.
      volume: Å^3 of the simulated cell; temperature: K, as requested.
      n_atoms, mean_temperature, directions, target_error: as in `green_kubo_from_flux`.

    Raises:
      InputError: no replica, lags that differ between replicas or are too few, a length, volume or temperature that is not
        positive.
    """
    kelvin = temperature if mean_temperature is None else mean_temperature
    for name, value, unit in (("timestep", timestep, "fs"), ("volume", volume, "Å^3"), ("temperature", kelvin, "K")):
        require(value, name, unit)
    if not replicas or any(not np.array_equal(r["lag"], replicas[0]["lag"]) for r in replicas):
        lengths = [len(r["lag"]) for r in replicas]
        raise InputError(
            f"the replicas have correlations of {lengths} lags; one or more with the same lags are needed: give the correlator's "
            "output for each replica of one run"
        )
    lag, frames = np.asarray(replicas[0]["lag"]), int(replicas[0]["pairs"][0])
    lag = lag[lag <= frames // 2]  # as the correlation by FFT
    if len(lag) < 8:
        raise InputError(f"the correlation has {len(lag)} lags in half of the run; at least 8 are needed: run longer")
    frame = np.eye(3) if directions is None else frame_of(directions)
    tensors = frame @ np.array([r["correlation"][: len(lag)] for r in replicas]) @ frame.T
    scale = green_kubo_prefactor(volume, kelvin)
    mean = st.mean_diagonal(tensors.mean(axis=0))
    times, length = timestep * lag, timestep * frames
    total = length * len(replicas) * len(frame)
    doubts = []
    cutoff = _cutoff(lag, mean, total / timestep, st.block_size(timestep, 1.0))
    if cutoff is None:
        cutoff = len(lag) - 1
        doubts.append(
            f"the correlation does not sink into its noise up to {times[-1]:.3g} fs: give the correlator more levels, or run "
            "longer"
        )

    running = scale * integrate_lags(lag, mean, timestep)
    value = float(running[cutoff])
    error = float(st.running_error(value, times[cutoff], total))
    each = [scale * integrate_lags(lag, c, timestep)[cutoff] for c in st.mean_diagonal(tensors)]
    spread = st.standard_error(np.array(each)) if len(replicas) >= 4 else None
    stderr = error if spread is None else max(error, float(spread))
    later = int(np.argmin(np.abs(times - 2.0 * times[cutoff])))
    if abs(running[later] - value) > 3.0 * error:  # the increments beyond the cutoff have the same error
        doubts.append(
            f"the running integral goes on changing: {value:.3g} W/(m K) at {times[cutoff]:.3g} fs, {running[later]:.3g} at "
            f"{times[later]:.3g} fs"
        )
    weight = integrate_lags(lag[: cutoff + 1], mean[: cutoff + 1], 1.0)[-1]
    moment = integrate_lags(lag[: cutoff + 1], times[: cutoff + 1] * mean[: cutoff + 1], 1.0)[-1]
    memory = float(moment / weight) if weight > 0 and moment > 0 else timestep
    verdict = judge(
        value, stderr, length, memory, doubts, sound="the running integral has settled", where=named(frame),
        remedy="run longer", target=target_error,
    )  # fmt: skip
    tensor = scale * integrate_lags(lag, tensors.mean(axis=0), timestep)[cutoff]
    tensor = 0.5 * (tensor + tensor.T)
    tensor_error = st.running_tensor_error(tensor, times[cutoff], length * len(replicas)) * (stderr / error)
    return ConductivityResult(
        method="green-kubo",
        temperature=float(temperature),
        kappa=embed(tensor, frame),
        stderr=embed(tensor_error, frame),
        isotropic=value,
        isotropic_stderr=stderr,
        verdict=verdict,
        volume=float(volume),
        n_atoms=n_atoms,
        mean_temperature=mean_temperature,
        details={
            "directions": frame,
            "estimator": "direct",
            "estimators": {"direct": {"value": value, "stderr": stderr, "cutoff_time_fs": times[cutoff]}},
            "correlation_time_fs": memory,
            "cutoff_time_fs": times[cutoff],
            "total_time_fs": length * len(replicas),
            "replicas": len(replicas),
            "frames": frames,
            "timestep_fs": timestep,
            "spread": {"replica_values": each, "replica_stderr": spread},
            "traces": {
                "time_fs": times,
                "autocorrelation": mean / mean[0],
                "running": running,
                "running_stderr": st.running_error(value, times, total),
            },
        },
    )


def _cutoff(lag: np.ndarray, correlation: np.ndarray, samples: float, smooth: int) -> int | None:
    """Index of the first lag, among those at least `smooth` samples apart, from which |C| is below its noise."""
    # 2 integral C^2 is the sum over lags of both signs.
    noise = np.sqrt(2.0 * integrate_lags(lag, correlation**2, 1.0) / samples)
    size = np.convolve(np.abs(correlation), np.ones(3) / 3.0, mode="same")
    below = np.flatnonzero((np.diff(lag) >= smooth) & (size < noise)[:-1])
    return int(below[0]) if below.size else None
