"""Estimators against closed forms, direct sums, and the silica reference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.transport import cepstral as ceps
from jaxmd_thermal.transport import statistics as st
from jaxmd_thermal.transport.spectral import spectral_conductivity
from jaxmd_thermal.units import green_kubo_prefactor, hnemd_prefactor


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def ornstein_uhlenbeck(frames, tau, replicas=1, components=3, seed=0):
    """C(n) = exp(-n/tau), n in frames."""
    phi = np.exp(-1.0 / tau)
    rng = np.random.default_rng(seed)
    start = phi * rng.standard_normal((replicas, 1, components))
    white = np.sqrt(1 - phi**2) * rng.standard_normal((replicas, frames, components))
    return lfilter([1.0], [1.0, -phi], white, axis=1, zi=start)[0]


def test_silica_reference(shared):
    """argon.md, estimator reference: 2.205099 +- 0.215248 W/(m K), P* = 34 at f* = 27.78 THz (1e-5: its own spread)."""
    data = np.load(shared / "data" / "green_kubo" / "silica_flux.npz")
    flux = data["flux1"][None].astype(float) * 1e-3
    scale = green_kubo_prefactor(float(data["Volume"]), float(data["Temperature"]))
    estimate = ceps.cepstral_estimate(flux, float(data["DT_FS"]), frequency_cutoff=27.78)
    assert (estimate.block, estimate.coefficients, estimate.samples) == (18, 34, 5554)
    assert scale * estimate.value == pytest.approx(2.205099, rel=1e-5)
    assert scale * estimate.stderr == pytest.approx(0.215248, rel=1e-5)
    assert scale * ceps.cepstral_estimate(flux, 1.0, block=17).value == pytest.approx(1.958, abs=5e-4)


def test_periodogram_is_the_transform_of_the_autocorrelation():
    """Wiener-Khinchin on a short series by direct sums; rounding only."""
    x, dt = noise(1, 16, 1), 2.5
    frequencies, power = st.periodogram(x, dt)
    lags = np.arange(-15, 16)
    biased = np.array([np.sum(x[0, : 16 - abs(n), 0] * x[0, abs(n) :, 0]) / 16 for n in lags])
    for f, s in zip(frequencies, power[0, :, 0]):
        direct = dt * np.sum(biased * np.cos(2 * np.pi * f * lags * dt / 1000.0))
        assert s == pytest.approx(direct, abs=1e-12)


def test_autocorrelation_equals_the_double_loop():
    x = noise(2, 40, 3)
    c = st.autocorrelation(x, 10)
    y = x - x.mean(axis=1, keepdims=True)
    for n in range(11):
        direct = np.einsum("rta,rtb->rab", y[:, : 40 - n], y[:, n:]) / (40 - n)
        np.testing.assert_allclose(c[:, n], direct, atol=1e-13)  # rounding of an FFT of length 50


def test_running_integral_is_exact_for_a_line():
    c = 3.0 - 0.5 * np.arange(6)
    t = 2.0 * np.arange(6)
    np.testing.assert_allclose(st.running_integral(c, 2.0), 3.0 * t - 0.125 * t**2, atol=1e-13)


def test_block_means_keep_the_zero_frequency_power():
    """The box filter folds nothing onto f = 0: the sum over all frames is the same."""
    x = noise(1, 240, 3)
    fine, coarse = st.periodogram(x, 1.0)[1], st.periodogram(st.block_means(x, 6), 6.0)[1]
    np.testing.assert_allclose(fine[:, 0], coarse[:, 0], rtol=1e-12)
    assert st.block_means(x, 7).shape[1] == 34  # even


def test_cepstral_coefficients_of_a_known_spectrum():
    """ln S of an autoregressive process has the cepstrum phi^n / n, and C_0 = ln of the white noise's power."""
    phi, count = 0.6, 256
    k = np.arange(count // 2 + 1)
    power = 1.0 / np.abs(1 - phi * np.exp(-2j * np.pi * k / count)) ** 2
    large = 1e12  # so many components that the bias psi(l) - ln l vanishes
    _, c = ceps.cepstral_coefficients(power, large)
    n = np.arange(1, 20)
    np.testing.assert_allclose(c[1:20], phi**n / n, atol=1e-11)
    assert c[0] == pytest.approx(0.0, abs=1e-11)


def test_akaike_equals_the_sum_over_bins():
    import scipy.fft
    from scipy.special import polygamma

    y, c = ceps.cepstral_coefficients(np.abs(noise(33)) + 0.1, 3)
    weights = np.r_[0.5, np.ones(31), 0.5]
    for p in (1, 5, 32):
        model = scipy.fft.dct(np.where(np.arange(33) < p, c, 0.0), type=1)
        expected = np.sum(weights * (y - model) ** 2) / polygamma(1, 3) + 2 * p
        assert ceps.akaike(c, 3)[p - 1] == pytest.approx(expected, rel=1e-12)


def test_filter_removes_an_oscillation_and_keeps_the_integral():
    """Knoop's filter on exp(-t/tau) + cos at 10 THz: the smooth integral has the plain one's plateau to 1 %."""
    dt = 2.0
    t = dt * np.arange(20000)
    slow, fast = np.exp(-t / 1000.0), np.exp(-t / 3000.0) * np.cos(2 * np.pi * 10e-3 * t)
    smooth, _ = st.filtered_integral(slow + 5 * fast, dt, 1.0)
    np.testing.assert_allclose(smooth[2000:4000], 1000.0 * (1 - np.exp(-t[2000:4000] / 1000.0)), atol=10.0)
    assert smooth[0] == pytest.approx(0.0, abs=1.0)  # odd extension


def test_automatic_cutoff_and_correlation_time():
    """C = exp(-n/10) crosses the noise sqrt(10/1e5) = 0.01 at n = 10 ln 100 = 46."""
    c = np.exp(-np.arange(400) / 10.0)
    assert abs(st.automatic_cutoff(c, 1e5) - 46) <= 1
    assert st.correlation_time(c, 2.0) == pytest.approx(20.0, rel=0.01)  # sums for integrals: 1/(12 tau^2)


@pytest.mark.parametrize("optical", [0.0, 3.0])
def test_direct_error_is_the_scatter_of_running_integrals(optical):
    """400 series, integral at 10 tau, with and without an optical mode of 30 times the power at its frequency.

    15 %: 4 sigma of a standard deviation from 400 values. Without the mode it is close to 2 sqrt(t_c/T).
    """
    x = ornstein_uhlenbeck(4000, 10.0, replicas=400, components=1)
    phase = np.exp(2j * np.pi * 0.1 * np.arange(4000))[:, None]
    slow = ornstein_uhlenbeck(4000, 30.0, replicas=400, components=2, seed=1)
    x = x + optical * ((slow[:, :, :1] + 1j * slow[:, :, 1:]) * phase).real
    frequencies, power = st.periodogram(x - x.mean(axis=1, keepdims=True), 1.0)
    running = st.running_integral(st.autocorrelation(x, 200)[:, :, 0, 0], 1.0, axis=1)
    for window in (1, 11):
        values = running[:, 100 - window // 2 : 101 + window // 2].mean(axis=1)
        stated = np.mean([st.direct_error(frequencies, p, 1, 100.0, window) for p in power[:, :, 0]])
        assert values.std() == pytest.approx(stated, rel=0.15)
    if not optical:
        assert stated == pytest.approx(st.running_error(10.0, 100.0, 4000.0), rel=0.15)


def test_effective_components():
    x = noise(4, 5000, 3)
    assert ceps.effective_components(x) == 12
    assert ceps.effective_components(x * [1.0, 0.0, 1e-9]) == pytest.approx(4.0, rel=1e-6)
    turn = np.linalg.qr(noise(3, 3, seed=1))[0]
    y = x * [3.0, 1.0, 1.0]
    assert ceps.effective_components(y) == pytest.approx(ceps.effective_components(y @ turn), rel=1e-12)


def test_anisotropic_flux_is_not_biased():
    """S = diag(20, 1, 1), axes turned: pooling three unequal components is 25 % too low; the principal axes are not."""
    axes = np.linalg.qr(noise(3, 3, seed=1))[0]
    x = (ornstein_uhlenbeck(20000, 5.0, replicas=100) * np.sqrt([20.0, 1.0, 1.0])) @ axes
    exact = 22.0 / 3.0 * 0.5 * (1 + np.exp(-0.2)) / (1 - np.exp(-0.2))
    estimates = [ceps.cepstral_mean(y[None], 1.0, 4, aic_factor=2.0, unbias=True) for y in x]
    values = np.array([e.value for e in estimates])
    assert values.mean() == pytest.approx(exact, rel=0.04)  # 4 standard errors of 100 values at 10 %
    assert np.mean([e.stderr for e in estimates]) == pytest.approx(values.std(), rel=0.25)
    naive = [ceps.cepstral_estimate(y[None], 1.0, block=4, coefficients=12, unbias=True).value for y in x]
    assert np.mean(naive) < 0.85 * exact


def test_tensor_by_polarisation():
    """A rotated diagonal tensor comes back with its off-diagonal elements, within four of its own standard errors."""
    axes = np.linalg.qr(noise(3, 3, seed=4))[0]
    x = (ornstein_uhlenbeck(20000, 5.0, replicas=10, seed=2) * np.sqrt([4.0, 1.0, 0.3])) @ axes
    exact = axes.T @ np.diag([4.0, 1.0, 0.3]) @ axes * 0.5 * (1 + np.exp(-0.2)) / (1 - np.exp(-0.2))
    value, error = ceps.cepstral_tensor(x, 1.0, block=2, coefficients=24)
    assert np.all(np.abs(value - exact) < 4 * error)
    assert np.abs(exact[0, 1]) > 3 * error[0, 1]  # the test can tell


def test_block_error_of_white_noise():
    x = noise(100000)
    assert st.block_error(x, 50) == pytest.approx(1 / np.sqrt(1e5), rel=0.4)  # 4 sigma of a variance from 50


def test_messages():
    with pytest.raises(InputError, match=r"blocks of 50 leave 2 samples.*at least 8"):
        st.block_means(noise(1, 100, 3), 50)
    with pytest.raises(InputError, match=r"no power .* bin 0"):
        ceps.cepstral_estimate(noise(1, 100, 3) * 0.0, 1.0)
    with pytest.raises(InputError, match=r"filter of 0.1 THz spans"):
        st.filtered_integral(np.ones(100), 1.0, 0.1)


def test_spectral_conductivity_of_a_closed_form():
    """K(t) = A exp(-t^2/2 s^2) cos(w t) + an odd part: Gaussians at +-w; the integral is K(0)'s kappa to rounding."""
    amplitude, s, f0, dt = 3e-4, 150.0, 4.0, 2.0
    t = dt * np.arange(-1000, 1001)
    even = amplitude * np.exp(-0.5 * (t / s) ** 2) * np.cos(2 * np.pi * f0 * t / 1000.0)
    odd = np.exp(-0.5 * (t / s) ** 2) * np.sin(2 * np.pi * 3.0 * t / 1000.0)
    result = spectral_conductivity(even + odd, dt, 1e4, 50.0, 2e-3, taper=False)
    f = result.frequency
    width = 1000.0 / (2 * np.pi * s)
    lines = sum(np.exp(-0.5 * ((f - sign * f0) / width) ** 2) for sign in (1, -1))
    exact = hnemd_prefactor(1e4, 50.0) / 2e-3 * amplitude * lines / (np.sqrt(2 * np.pi) * width)
    np.testing.assert_allclose(result.conductivity, exact, atol=1e-10 * exact.max())
    total = hnemd_prefactor(1e4, 50.0) * amplitude / 2e-3
    assert result.integral == pytest.approx(total, rel=1e-12)
    assert spectral_conductivity(even, dt, 1e4, 50.0, 2e-3).integral == pytest.approx(total, rel=1e-12)
    with pytest.raises(InputError, match="odd number"):
        spectral_conductivity(even[1:], dt, 1e4, 50.0, 2e-3)
