"""The curves behind the figures of a result: saved ones, those in its details, or computed again from the series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmd_thermal.errors import ThermalError
from jaxmd_thermal.report.comparison import directions_of
from jaxmd_thermal.report.data import RunData, Series, number


def traces_of(data: RunData, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The curves behind a result: saved ones, or for Green-Kubo computed again from the stored heat flux."""
    method = str(entry.get("method"))
    if method == "hnemd":
        return _driven(entry, data)
    candidates = [s for s in data.series if not s.label or s.label == method or len(data.series) == 1] or data.series
    for series in candidates:
        if method in series.traces:
            return series.traces[method]
    for series in candidates:
        traces = _recomputed(series, entry, data)
        if traces:
            return traces
    return {}


def _driven(entry: Mapping[str, Any], data: RunData) -> Mapping[str, Any]:
    """Curves of an HNEMD result; it keeps them with its details."""
    details = entry.get("details") or {}
    settings = {**data.settings, **(data.settings.get("hnemd") or {})}
    spacing = (number(settings.get("timestep")) or 1.0) * (number(settings.get("sample_every")) or 1.0)
    spectral = details.get("spectral") or {}
    force = np.asarray(details.get("driving_force_per_A", np.zeros((0, 3))), float)
    traces = {
        "driving_force": np.linalg.norm(force, axis=-1),
        "kappa_of_force": details.get("kappa_along_force", ()),
        "kappa_of_force_stderr": details.get("kappa_along_force_stderr", ()),
        "spectral_frequency_THz": spectral.get("frequency_THz", ()),
        "spectral_kappa": spectral.get("kappa_per_THz", ()),
    }
    if details.get("running_kappa") and details.get("running_frames"):
        traces["time_fs"] = spacing * np.asarray(details["running_frames"], float)
        traces["running"] = np.asarray(details["running_kappa"], float).T
    return traces


def _recomputed(series: Series, entry: Mapping[str, Any], data: RunData) -> Mapping[str, Any]:
    from jaxmd_thermal.transport.green_kubo import green_kubo_from_flux

    volume = number(data.document.get("volume_A3") or series.attributes.get("volume_A3"))
    temperature = number(entry.get("temperature_K") or series.attributes.get("temperature_K"))
    if not series.flux or series.flux_time is None or len(series.flux_time) < 2 or not volume or not temperature:
        return {}
    flux = np.sum(list(series.flux.values()), axis=0).transpose(1, 0, 2)
    step = float(np.median(np.diff(series.flux_time)))
    try:
        result = green_kubo_from_flux(flux, step, volume, temperature, directions=directions_of(entry))
        return result.details.get("traces", {})
    except ThermalError as error:
        data.notes.append(f"The curves of {entry.get('method')} could not be computed again: {error}")
        return {}
