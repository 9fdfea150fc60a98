"""Two results side by side: only numbers of the same quantity are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmd_thermal.report.data import conductivity, number
from jaxmd_thermal.transport.directions import named, weighted, weights_of

Measured = tuple[float | None, float | None]


def directions_of(entry: Mapping[str, Any]) -> np.ndarray:
    """(n, 3) unit vectors that the `isotropic` value of an entry of results.json is the mean over."""
    found = (entry.get("details") or {}).get("directions")
    return np.eye(3) if found is None else np.asarray(found, float)


def comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Measured, Measured, str] | None:
    """(value, error) of two entries for what both have measured, and its name; None if there is no such thing.

    A force along x tells kappa_xx and no more, so the other method's kappa_xx stands beside it, not its mean.
    """
    for one in sorted((a, b), key=lambda entry: -float(np.sum(weights_of(directions_of(entry)) ** 2))):
        directions = directions_of(one)
        x, y = _along(a, directions), _along(b, directions)
        if x[0] is not None and y[0] is not None:
            return x, y, named(directions)
    return None


def _along(entry: Mapping[str, Any], directions: np.ndarray) -> Measured:
    """The conductivity of an entry, mean over directions, and its error: the reported value if that is what it means."""
    weights = weights_of(directions)
    if np.allclose(weights, weights_of(directions_of(entry)), atol=1e-6):
        return conductivity(entry)
    kappa = entry.get("thermal_conductivity_W_mK") or {}
    tensor, stderr = kappa.get("tensor"), kappa.get("tensor_stderr")
    if not tensor:
        return None, None
    errors = np.array(stderr, float) if stderr else None
    value, error = weighted(np.array(tensor, float), errors, np.where(np.abs(weights) > 1e-6, weights, 0.0))
    return number(value), number(error)
