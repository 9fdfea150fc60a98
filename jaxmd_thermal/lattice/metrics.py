"""Metrics of conductivities of many solids against a reference: SRD, SRE and SRME, with their rule for failures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal.errors import InputError

FAILED = 2.0
"""Value of SRE and SRME where a model gives no valid conductivity."""


def srd(result: Any, reference: Any, temperature: float = 300.0) -> float:
    """Symmetric relative difference 2 (k - k_ref)/(k + k_ref); -2 to 2, NaN for a failed result.

    Póta, Ahlawat, Csányi and Simoncelli, arXiv:2408.00755. Arguments as in `srme`.
    """
    result, reference = _read(result), _read(reference)
    kappa, expected = _kappa(result, temperature), _reference_kappa(reference, temperature)
    return float("nan") if _failed(result) or not np.isfinite(kappa) else 2 * (kappa - expected) / (kappa + expected)


def sre(result: Any, reference: Any, temperature: float = 300.0) -> float:
    """|SRD|; 2 for a failed result. Arguments as in `srme`."""
    value = abs(srd(result, reference, temperature))
    return value if np.isfinite(value) else FAILED


def srme(result: Any, reference: Any, temperature: float = 300.0) -> float:
    """Symmetric relative mean error in microscopic conductivity, 2 sum |K - K_ref| / sum w / (k + k_ref); 0 to 2.

    It is 2 where the result failed: imaginary modes, a space group changed by relaxation, kappa missing or not finite,
    mode conductivities of another shape than the reference's.

    Póta, Ahlawat, Csányi and Simoncelli, arXiv:2408.00755.

    Args:
      result, reference: a conductivity result (`kappa`, `mode_kappa`, `weights`, `temperatures`, optionally `invalid`),
        or a mapping with `kappa_TOT_ave` (W/(m K)), `mode_kappa_TOT_ave` (q, bands; star weights included) and `weights`,
        optionally with a temperature axis in front and with the flags `imaginary` and `broken_symmetry`; or the path of a
        `kappa-m*.hdf5` (phono3py's, or saved here); None: failed.
      temperature: K.

    Raises:
      InputError: the reference lacks one of these, or the temperature was not computed.
    """
    result, reference = _read(result), _read(reference)
    expected, theirs = _reference_kappa(reference, temperature), _modes(reference, temperature)
    weights = _weights(reference)
    if theirs is None or weights is None:
        raise InputError(
            "the reference has no mode conductivities or weights: mode_kappa_TOT_ave and weights are needed"
        )
    if _failed(result):
        return FAILED
    kappa, ours = _kappa(result, temperature), _modes(result, temperature)
    if ours is None or ours.shape != theirs.shape or not np.isfinite(kappa) or not np.all(np.isfinite(ours)):
        return FAILED
    value = 2 * np.abs(ours - theirs).sum() / weights.sum() / (kappa + expected)
    return float(value) if np.isfinite(value) else FAILED


def summary(values) -> float:
    """Mean over compounds, NaN counted as 2: the figure of the benchmark."""
    values = np.asarray(values, float)
    return float(np.where(np.isfinite(values), values, FAILED).mean())


def _read(result: Any) -> Any:
    if isinstance(result, str | Path):
        from jaxmd_thermal.io.kappa_hdf5 import read_kappa

        return read_kappa(result)
    return result


def _failed(result) -> bool:
    if result is None:
        return True
    flags = ("imaginary", "broken_symmetry", "invalid")
    if isinstance(result, Mapping):
        return any(bool(result.get(flag)) for flag in flags)
    return any(bool(getattr(result, flag, False)) for flag in flags)


def _row(values, single: int, result, temperature: float):
    """The entry of `temperature` of an array that may have a temperature axis in front of `single` others."""
    values = np.asarray(values, float)
    if values.ndim == single:
        return values
    temperatures = result.get("temperatures") if isinstance(result, Mapping) else result.temperatures
    if temperatures is None:
        if len(values) == 1:
            return values[0]
        raise InputError(f"the result has {len(values)} temperatures and does not say which")
    at = np.flatnonzero(np.abs(np.asarray(temperatures, float) - temperature) < 1e-6)
    if not len(at):
        raise InputError(f"{temperature} K was not computed: the result has {np.asarray(temperatures).tolist()} K")
    return values[at[0]]


def _kappa(result, temperature: float) -> float:
    if result is None:
        return float("nan")
    if isinstance(result, Mapping):
        value = result.get("kappa_TOT_ave")
        return float("nan") if value is None else float(_row(value, 0, result, temperature))
    return float(np.trace(_row(result.kappa, 2, result, temperature)) / 3)


def _reference_kappa(reference, temperature: float) -> float:
    value = _kappa(reference, temperature)
    if not np.isfinite(value) or value <= 0:
        raise InputError(f"the reference's conductivity is {value} W/(m K): a positive number is needed")
    return value


def _modes(result, temperature: float):
    value = result.get("mode_kappa_TOT_ave") if isinstance(result, Mapping) else result.mode_kappa
    return None if value is None else _row(value, 2, result, temperature)


def _weights(result):
    value = result.get("weights") if isinstance(result, Mapping) else result.weights
    return None if value is None else np.asarray(value, float)
