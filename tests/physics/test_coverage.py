"""Do the error bars mean what they say? Ornstein-Uhlenbeck fluxes of known conductivity, many independent series."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from jaxmd_thermal.transport.green_kubo import green_kubo_from_flux
from jaxmd_thermal.units import green_kubo_prefactor

VOLUME, TEMPERATURE = 9000.0, 80.0


def coverage(series: int, tau: int, timestep: float, replicas: int = 1, seed: int = 2024):
    """Mean and standard deviation of kappa/exact, and the fraction of series whose error bar holds the exact value.

    Series of 500 correlation times, `tau` in frames. The exact value is that of the sampled process, coth instead of
    2 tau (8e-4 above it at tau = 10 frames).
    """
    phi = np.exp(-1.0 / tau)
    rng = np.random.default_rng(seed)
    exact = green_kubo_prefactor(VOLUME, TEMPERATURE) * 0.5 * timestep * (1 + phi) / (1 - phi)
    values = np.empty((series, 2))
    for i in range(series):
        start = phi * rng.standard_normal((replicas, 1, 3))
        white = np.sqrt(1 - phi**2) * rng.standard_normal((replicas, 500 * tau, 3))
        flux = lfilter([1.0], [1.0, -phi], white, axis=1, zi=start)[0]
        result = green_kubo_from_flux(flux, timestep, VOLUME, TEMPERATURE)
        values[i] = result.isotropic / exact, result.isotropic_stderr / exact
    covered = np.abs(values[:, 0] - 1.0) < values[:, 1]
    return values[:, 0].mean(), values[:, 0].std(), covered.mean()


@pytest.mark.slow
def test_error_bars_cover():
    """1000 series: bias at most 2 %, the 68 % interval holds the exact value in 63 to 73 % (argon.md). Seed fixed.

    The scatter of the bias itself is 0.4 %, that of the coverage 1.5 %.
    """
    mean, _, covered = coverage(1000, tau=10, timestep=100.0)
    assert abs(mean - 1.0) <= 0.02
    assert 0.63 <= covered <= 0.73


@pytest.mark.slow
@pytest.mark.parametrize(("tau", "timestep", "replicas"), [(10, 1.0, 1), (40, 2.0, 1), (20, 50.0, 1), (10, 100.0, 4)])
def test_error_bars_cover_whatever_the_sampling(tau, timestep, replicas):
    """The automatic f* must find the scale of the process: 10 fs to 1 ps, finely and coarsely sampled, pooled."""
    mean, _, covered = coverage(1000, tau, timestep, replicas, seed=7)
    assert abs(mean - 1.0) <= 0.02
    assert 0.63 <= covered <= 0.73
