"""The virial-velocity correlation against double loops over stored samples."""

import jax
import numpy as np
import pytest

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.observables.virial_velocity import PARTS, VirialVelocityCorrelator

LAGS, FRAMES, REPLICAS, ATOMS = 7, 93, 2, 3


@pytest.fixture(scope="module")
def series():
    rng = np.random.default_rng(5)
    shape = (FRAMES, REPLICAS, ATOMS, 3)
    return {"driving_virial": rng.normal(size=shape), "velocities": rng.normal(size=shape)}


def gathered(observer, series):
    with double_precision():
        samples = {k: jax.numpy.asarray(v) for k, v in series.items()}
        start = observer.init({k: v[0] for k, v in samples.items()})
        state, _ = jax.lax.scan(lambda s, x: (observer.update(s, x), None), start, samples)
        return observer.finalize(state)


def looped(series, first):
    """Mean over all pairs of samples, both from `first` on; sums in another order: 1e-12."""
    w, v = series["driving_virial"][first:], series["velocities"][first:]
    out = []
    for lag in range(-LAGS, LAGS + 1):
        pairs = [(i, i + lag) for i in range(len(w)) if 0 <= i + lag < len(w)]
        out.append(np.mean([np.sum(w[i] * v[j], axis=(1, 2)) for i, j in pairs], axis=0))
    return np.array(out).T


@pytest.mark.parametrize("discarded", [0, 1, 30, 46])
def test_pairs_of_the_onset_are_left_out(series, discarded):
    """Whole parts of the run are left out: the first sample that counts is less than a part (5 of 93) later than asked for."""
    observer = VirialVelocityCorrelator(LAGS, FRAMES)
    found, first = observer.correlation(gathered(observer, series), discarded)
    assert discarded <= first < discarded + np.ceil(FRAMES / PARTS)
    np.testing.assert_allclose(found, looped(series, first), rtol=0, atol=1e-12)


def test_every_lag_keeps_pairs(series):
    """90 lags of 93 samples: nothing can be left out."""
    observer = VirialVelocityCorrelator(90, FRAMES)
    found, first = observer.correlation(gathered(observer, series), 40)
    assert first == 0 and np.all(np.isfinite(found))


def test_lags_and_samples_must_fit(series):
    with pytest.raises(InputError, match=r"lags is 93 of 93 samples"):
        VirialVelocityCorrelator(93, FRAMES)
    with pytest.raises(InputError, match=r"lags is 0 of 93 samples"):
        VirialVelocityCorrelator(0, FRAMES)
    with pytest.raises(InputError, match=r"has 93 samples, .* prepared for 100"):
        gathered(VirialVelocityCorrelator(LAGS, 100), series)
