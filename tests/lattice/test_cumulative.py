"""Cumulated conductivities and the map of coherences against sums written out mode by mode."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from wigner_fixture import load

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice.conductivity import thermal_conductivity
from jaxmd_thermal.lattice.cumulative import coherence_map, cumulative, mean_free_path
from jaxmd_thermal.lattice.force_constants import ForceConstants


@pytest.fixture(scope="module")
def result(shared):
    z = load(shared, "nacl_mesh5_gauss0p3")
    fc = ForceConstants(fc2=z.fc2, fc3=z.fc3, crystal=z.crystal, images2=z.images2, images3=z.images3)
    return thermal_conductivity(fc, (3, 3, 3), (100.0, 300.0), sigma=0.5)


@pytest.mark.parametrize("over", ["frequency", "mean_free_path"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_cumulated_conductivity(result, over, temperature):
    x, kappa = cumulative(result, over, 40, temperature)
    total = np.trace(result.kappa[temperature]) / 3
    assert kappa[-1] == pytest.approx(total, rel=1e-12)
    assert np.all(np.diff(x) > 0) and np.all(np.diff(kappa) >= 0)
    for at in (0, 17):  # the first mean free path is that of a mode, which counts
        expected = 0.0
        for k in range(len(result.weights)):
            for s in range(result.frequencies.shape[1]):
                f, gamma = result.frequencies[k, s], result.gamma_total[temperature, k, s]
                path = result.group_speed[k, s] / (4 * np.pi * gamma) if gamma > 0 else 0.0
                if (f if over == "frequency" else path) <= x[at]:
                    expected += result.mode_kappa[temperature, k, s]
        assert kappa[at] == pytest.approx(expected / result.weights.sum(), rel=1e-12)
    assert 0.0 < kappa[at] < total


def test_mean_free_path_is_speed_times_lifetime(result):
    path = mean_free_path(result)
    assert path.shape == result.gamma_total.shape
    lifetime = 1 / (
        2 * 2 * np.pi * result.gamma_total[1, 2]
    )  # ps: 1/tau is twice the half width, as an angular frequency
    np.testing.assert_allclose(path[1, 2], result.group_speed[2] * lifetime, rtol=1e-12)
    assert np.all(path[:, 0, :3] == 0)  # the acoustic modes of Gamma do not move
    free = replace(
        result, gamma_total=np.where(result.gamma_total == result.gamma_total[:, 2:3, 3:4], 0.0, result.gamma_total)
    )
    assert np.all(np.isinf(mean_free_path(free)[:, 2, 3]))
    x, kappa = cumulative(free, "mean_free_path", temperature=1)
    assert np.all(np.isfinite(x)) and kappa[-1] == pytest.approx(result.mode_kappa[1].sum() / 27, rel=1e-12)


def test_coherences_by_pairs_of_frequencies(result):
    edges, found = coherence_map(result, 12, 1)
    total = np.trace(result.kappa_coherences[1]) / 3
    assert found.sum() == pytest.approx(total, rel=1e-12) and total > 0.05
    np.testing.assert_allclose(found, found.T, atol=1e-14)
    # One bin again, from the definition.
    boltzmann, planck = 8.617333262e-5, 4.135667696e-3  # eV/K, eV/THz
    expected = np.zeros_like(found)
    for k, weight in enumerate(result.weights):
        f, gamma, v = result.frequencies[k], result.gamma_total[1, k], result.velocity_operator[k]
        for s in range(6):
            for t in range(6):
                if min(f[s], f[t]) < 1e-4 or abs(f[s] - f[t]) < 1e-4:
                    continue
                x = planck * f[[s, t]] / (boltzmann * 300.0)
                c = boltzmann * x**2 * np.exp(x) / np.expm1(x) ** 2
                omega, width = 2 * np.pi * f[[s, t]], 4 * np.pi * gamma[[s, t]]
                lorentz = width.mean() / ((omega[0] - omega[1]) ** 2 + width.mean() ** 2)
                value = omega.sum() / 4 * (c / omega).sum() * np.sum(np.abs(v[:, s, t]) ** 2) / 3 * lorentz
                value *= weight / (27 * result.crystal.volume) * 1.602176634e-19 * 1e22  # eV/K THz/Å -> W/(m K)
                bins = np.minimum(np.searchsorted(edges, f[[s, t]], side="right") - 1, 11)
                expected[bins[0], bins[1]] += value
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_errors(result):
    with pytest.raises(InputError, match="mean_free_path"):
        cumulative(result, "energy")
    with pytest.raises(InputError, match="at least 2"):
        cumulative(result, points=1)
    with pytest.raises(InputError, match="there are 2"):
        coherence_map(result, temperature=2)
