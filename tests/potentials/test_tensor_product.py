"""The sum over neighbours by cuEquivariance is that by matrix products; its kernels themselves need a GPU."""

from __future__ import annotations

import sys

import cuequivariance_jax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.potentials.tensor_product import SWITCH, neighbor_sum, paths

CHANNELS = (3, 2)
L_EDGE, L_OUT = 2, 1


@pytest.fixture
def arguments():
    """Harmonics, features of two degrees and weights of 2 atoms with 3 neighbours each."""
    rng = np.random.default_rng(5)
    weights = sum(CHANNELS[l1] for l1, _, _ in paths(len(CHANNELS) - 1, L_EDGE, L_OUT))
    sent = [rng.normal(size=(2, 3, 2 * degree + 1, c)) for degree, c in enumerate(CHANNELS)]
    # Y_0 = 1, which one of the two forms knows and the other reads.
    harmonics = np.concatenate([np.ones((2, 3, 1)), rng.normal(size=(2, 3, 8))], axis=-1)
    return harmonics, sent, rng.normal(size=(2, 3, weights))


def with_derivatives(harmonics, sent, weights):
    """Sums, the gradient of a function of them, and that gradient's derivative along a direction."""

    def function(harmonics, sent, weights):
        return sum(jnp.sum(jnp.sin(x)) for x in neighbor_sum(harmonics, sent, weights, L_OUT))

    def gradient(*arguments):
        slope, *others = jax.grad(function, argnums=(0, 1, 2))(*arguments)
        return (slope[..., 1:], *others)  # nothing is differentiated with respect to Y_0

    direction = jax.tree.map(lambda x: 0.3 * x + 0.1, (harmonics, sent, weights))
    direction[0][..., 0] = 0.0
    with double_precision():
        arguments, direction = jax.tree.map(jnp.asarray, ((harmonics, sent, weights), direction))
        return neighbor_sum(*arguments, L_OUT), jax.jvp(gradient, arguments, direction)


def test_cuequivariance(arguments, monkeypatch):
    ours = with_derivatives(*arguments)
    monkeypatch.setenv(SWITCH, "cuequivariance")
    if jax.__version_info__ >= (0, 12) and cuequivariance_jax.__version__ == "0.13.0":
        with pytest.raises(InputError, match=r"does not run with jax .*below 0.12"):
            neighbor_sum(*arguments, L_OUT)
        return
    theirs = with_derivatives(*arguments)
    assert len(jax.tree.leaves(ours)) == 2 + 2 * 4
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-13 * np.abs(a).max())  # sums in another order


def test_the_switch(arguments, monkeypatch):
    monkeypatch.setenv(SWITCH, "magic")
    with pytest.raises(InputError, match=r"'magic'.*'matmul' or 'cuequivariance'"):
        neighbor_sum(*arguments, L_OUT)
    monkeypatch.setenv(SWITCH, "cuequivariance")
    monkeypatch.setitem(sys.modules, "cuequivariance_jax", None)
    with pytest.raises(InputError, match=r"not installed.*cuda12"):
        neighbor_sum(*arguments, L_OUT)
