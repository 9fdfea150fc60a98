"""Which modes carry the heat: conductivity cumulated over frequency or mean free path, coherences by pairs of frequencies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice import wigner

if TYPE_CHECKING:
    from jaxmd_thermal.lattice.conductivity import ThermalConductivity

VARIABLES = ("frequency", "mean_free_path")

SHORTEST = 1e-6
"""Mean free paths below this share of the longest one are velocities that vanish up to rounding; no curve begins there."""


def mean_free_path(result: ThermalConductivity) -> np.ndarray:
    """(temperatures, k, bands) Å: |v|/(4 pi gamma_total).

    Zero for a mode that does not move; infinite for one that moves and is not scattered (it carries nothing in `mode_kappa`).
    """
    speed, gamma = result.group_speed, result.gamma_total
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(speed > 0, speed / (4 * math.pi * gamma), 0.0)


def cumulative(
    result: ThermalConductivity, over: str = "frequency", points: int = 200, temperature: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Isotropic conductivity (mean of the diagonal) of all modes up to a frequency or mean free path.

    Args:
      result: conductivity on a mesh.
      over: "frequency" (THz) or "mean_free_path" (Å).
      points: length of the curve, at least 2; frequencies from zero in equal steps, mean free paths in equal ratios from the
        shortest that is not zero up to rounding.
      temperature: which row of `result.temperatures`.

    Returns: x (points,), and kappa (points,) W/(m K) of the modes at or below x, which ends at the mean of `result.kappa`.
      Coherences are shared out to both modes as in `mode_kappa`.

    Raises:
      InputError: another variable, too few points, or no such temperature.
    """
    if over not in VARIABLES:
        raise InputError(f"over is {over!r}: expected one of {', '.join(VARIABLES)}")
    _check(result, points, temperature)
    value = result.frequencies if over == "frequency" else mean_free_path(result)[temperature]
    value, part = value.ravel(), result.mode_kappa[temperature].ravel() / result.weights.sum()
    finite = value[np.isfinite(value) & (value > 0)]
    if not len(finite):
        raise InputError(f"no mode has a positive, finite {over.replace('_', ' ')}: there is nothing to cumulate over")
    last = finite.max()
    if over == "frequency":
        x = np.linspace(0.0, last, points)
    else:
        x = np.geomspace(finite[finite > SHORTEST * last].min(), last, points)
    x[-1] = last
    order = np.argsort(value)
    sums = np.concatenate([[0.0], np.cumsum(part[order])])
    kappa = sums[np.searchsorted(value[order], x, side="right")]
    kappa[-1] = sums[-1]
    return x, kappa


def coherence_map(result: ThermalConductivity, points: int = 50, temperature: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Where coherences arise: their isotropic conductivity by the frequencies of the two modes.

    Args:
      result: conductivity on a mesh.
      points: bins along each axis.
      temperature: which row of `result.temperatures`.

    Returns: edges (points + 1,) THz, and (points, points) W/(m K), symmetric; its sum is the mean of the diagonal of
      `result.kappa_coherences`.

    Raises:
      InputError: too few points or no such temperature.
    """
    _check(result, points, temperature)
    f = result.frequencies
    with double_precision():
        pairs = wigner.pairs(
            jnp.asarray(f), jnp.asarray(result.gamma_total[temperature][None]), jnp.asarray(result.weights),
            result.crystal.volume, jnp.asarray(result.temperatures[temperature][None]),
            result.settings["populations"] == "classical",
        )  # fmt: skip
        amount = np.asarray(jnp.where(pairs.same, 0.0, pairs.amount))[0]
    part = amount * np.sum(np.abs(result.velocity_operator) ** 2, axis=1) / 3
    edges = np.linspace(0.0, f.max(), points + 1)
    bins = np.clip(np.searchsorted(edges, f, side="right") - 1, 0, points - 1)
    out = np.zeros((points, points))
    np.add.at(out, (bins[:, :, None], bins[:, None, :]), part)
    return edges, out


def _check(result: ThermalConductivity, points: int, temperature: int) -> None:
    if points < 2:
        raise InputError(f"points is {points}: at least 2 are needed")
    n = len(result.temperatures)
    if not -n <= temperature < n:
        raise InputError(f"temperature is {temperature}: it counts the rows of `temperatures`, of which there are {n}")
