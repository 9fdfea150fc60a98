"""The accumulators against NumPy on the whole series; in scan, under vmap, across a restart."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import lfilter

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.observables.base import Observable, Observe
from jaxmd_thermal.observables.correlator import MultipleTauCorrelator, integrate_lags
from jaxmd_thermal.transport.green_kubo import green_kubo_from_flux
from jaxmd_thermal.transport.green_kubo_correlation import green_kubo_from_correlation
from jaxmd_thermal.transport.statistics import autocorrelation, running_integral
from jaxmd_thermal.units import green_kubo_prefactor


@pytest.fixture(autouse=True)
def _double():
    with double_precision():
        yield


def signal(frames=1000, tau=20.0, components=3, seed=0):
    phi = np.exp(-1.0 / tau)
    rng = np.random.default_rng(seed)
    x = lfilter([np.sqrt(1 - phi**2)], [1.0, -phi], rng.standard_normal((frames + 400, components)), axis=0)[400:]
    x[:, 1] += 0.5 * x[:, 0]  # a cross correlation
    return x


def accumulate(observable, x, state=None):
    state = observable.init(x[0]) if state is None else state
    return jax.jit(lambda s, v: jax.lax.scan(lambda s, v: (observable.update(s, v), None), s, v)[0])(state, x)


def raw_correlation(x, lags):
    """<x_a(0) x_b(n)> without removing a mean."""
    return np.array([x[: len(x) - n].T @ x[n:] / (len(x) - n) for n in lags])


def test_first_level_is_exact():
    """1e-12: sums of 1000 products in another order, 1e-16 each; with the mean off it is the FFT's."""
    x = signal()
    observable = MultipleTauCorrelator(levels=5, points=16)
    assert isinstance(observable, Observable)
    out = observable.finalize(accumulate(observable, x))
    np.testing.assert_array_equal(out["lag"][:16], np.arange(16))
    np.testing.assert_allclose(out["correlation"][:16], raw_correlation(x, range(16)), atol=1e-12)
    centred = x - x.mean(axis=0)
    out = observable.finalize(accumulate(observable, centred))
    np.testing.assert_allclose(out["correlation"][:16], autocorrelation(centred[None], 15)[0], atol=1e-12)
    np.testing.assert_array_equal(out["pairs"][:16], 1000 - np.arange(16))


def test_later_levels_are_correlations_of_block_means():
    """Exact against an independent oracle: the same correlation of the series averaged in blocks of 3^level."""
    x = signal(1000)
    observable = MultipleTauCorrelator(levels=4, points=6, average=3)
    out = observable.finalize(accumulate(observable, x))
    start = 6
    for level in (1, 2, 3):
        size = 3**level
        count = len(x) // size
        blocks = x[: count * size].reshape(count, size, 3).mean(axis=1)
        lags = range(2, 6)
        np.testing.assert_array_equal(out["lag"][start : start + 4], size * np.arange(2, 6))
        np.testing.assert_allclose(out["correlation"][start : start + 4], raw_correlation(blocks, lags), atol=1e-12)
        start += 4
    assert start == len(out["lag"])


def test_conductivity_of_an_ornstein_uhlenbeck_flux():
    """The running integral at 10 tau equals that of the FFT on the same data to 1 % (averaging and trapezoid errors:
    (points/2)^-2/12 of the slope each); the conductivity is the exact one within 3 of its stated errors, 5 % at most.
    """
    tau, frames, volume, temperature, dt = 20.0, 50_000, 9000.0, 80.0, 20.0
    x = np.stack([signal(frames, tau, seed=seed) for seed in range(4)])
    observable = MultipleTauCorrelator(levels=12, points=16)
    states = jax.jit(jax.vmap(lambda v: accumulate(observable, v)))(x)
    out = [observable.finalize(jax.tree.map(lambda a, i=i: a[i], states)) for i in range(4)]
    lag = out[0]["lag"]
    running = integrate_lags(lag, np.mean([o["correlation"] for o in out], axis=0), 1.0)
    fft = running_integral(autocorrelation(x, 400).mean(axis=0), 1.0)
    at = int(np.searchsorted(lag, 200))
    np.testing.assert_allclose(running[at], fft[lag[at]], atol=0.01 * tau)

    result = green_kubo_from_correlation(out, dt, volume, temperature)
    one = green_kubo_prefactor(volume, temperature) * dt * tau
    exact = np.array([[1.0, 0.5, 0.0], [0.5, 1.25, 0.0], [0.0, 0.0, 1.0]]) * one
    assert abs(result.isotropic - np.trace(exact) / 3) < 3 * result.isotropic_stderr < 3 * 0.05 * one
    assert np.all(np.abs(result.kappa - exact) < 3.5 * result.stderr) and result.verdict.converged
    direct = green_kubo_from_flux(x, dt, volume, temperature, estimator="direct")
    assert abs(result.isotropic - direct.isotropic) < np.hypot(result.isotropic_stderr, direct.isotropic_stderr)
    assert result.details["correlation_time_fs"] == pytest.approx(dt * tau, rel=0.25)
    assert len(result.plot().axes) == 2
    plane = green_kubo_from_correlation(out, dt, volume, temperature, directions=[[1, 0, 0], [0, 0, 1]])
    assert plane.isotropic == pytest.approx((plane.kappa[0, 0] + plane.kappa[2, 2]) / 2, rel=1e-12)
    assert np.isnan(plane.kappa[1]).all()


def test_a_correlation_that_ends_too_early_is_not_converged():
    """Lags of 80 fs at most, tau of 400 fs: the integral has hardly begun."""
    observable = MultipleTauCorrelator(levels=2, points=4)
    out = observable.finalize(accumulate(observable, signal(2000)))
    with pytest.raises(InputError, match=r"6 lags in half of the run; at least 8"):
        green_kubo_from_correlation([out], 20.0, 9000.0, 80.0)
    observable = MultipleTauCorrelator(levels=4, points=4)
    out = observable.finalize(accumulate(observable, signal(2000)))
    result = green_kubo_from_correlation([out], 20.0, 9000.0, 80.0)
    assert not result.verdict.converged and "give the correlator more levels" in result.verdict.text
    with pytest.raises(InputError, match="one or more with the same lags"):
        green_kubo_from_correlation([], 20.0, 9000.0, 80.0)


def test_restart_and_vmap_change_nothing():
    """A scan cut in two, and the same under vmap, are bitwise the uncut one: the state is all there is."""
    x = signal(300)
    observable = MultipleTauCorrelator(levels=6, points=8)
    whole = accumulate(observable, x)
    halves = accumulate(observable, x[137:], accumulate(observable, x[:137]))
    both = jax.vmap(lambda v: accumulate(observable, v))(jnp.stack([2 * x, x]))
    batch = jax.tree.map(lambda a: a[1], both)
    for other in (halves, batch):
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(other)):
            np.testing.assert_array_equal(a, b)
    assert whole.count.dtype == jnp.int64


def test_counts_beyond_32_bits():
    x = signal(64)
    observable = MultipleTauCorrelator(levels=3, points=4)
    state = accumulate(observable, x)
    late = replace(state, count=state.count + 2**33)
    assert int(accumulate(observable, x, late).count) == 2**33 + 128


def test_gradient_goes_through():
    """d C_00(1) / d x_0 = x_1 / (N - 1): the accumulator is differentiable like any scan."""
    x = signal(20)
    observable = MultipleTauCorrelator(levels=2, points=4)
    slope = jax.grad(lambda v: accumulate(observable, v, observable.init(x[0])).products[0, 1, 0, 0] / 19)(x)
    assert slope[0, 0] == pytest.approx(x[1, 0] / 19, rel=1e-12)


def test_observe_feeds_every_replica():
    """Entries of a sample are added up, one accumulator a replica."""
    a, b = signal(50), signal(50, seed=1)
    sample = {"heat_flux_potential": jnp.stack([a, b], 1), "heat_flux_convective": 0.1 * jnp.stack([b, a], 1)}
    observer = Observe(MultipleTauCorrelator(levels=1, points=2))
    hash(observer)
    state = observer.init(jax.tree.map(lambda v: v[0], sample))
    state = jax.lax.scan(lambda s, row: (observer.update(s, row), None), state, sample)[0]
    first, second = observer.finalize(state)
    np.testing.assert_allclose(first["mean"], (a + 0.1 * b).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(second["mean"], (b + 0.1 * a).mean(axis=0), rtol=1e-12)
    with pytest.raises(InputError, match="no 'stres', did you mean 'stress'"):
        Observe(MultipleTauCorrelator(levels=1, points=2), ("stres",)).update(state, {"stress": jnp.zeros((2, 3, 3))})


def test_messages():
    with pytest.raises(InputError, match=r"points = 15.*multiple of average"):
        MultipleTauCorrelator(points=15)
    observable = MultipleTauCorrelator(levels=2, points=4)
    with pytest.raises(InputError, match="has seen no value"):
        observable.finalize(observable.init(np.zeros(3)))
    with jax.enable_x64(False), pytest.raises(InputError, match="64-bit"):
        observable.init(np.zeros(3))
