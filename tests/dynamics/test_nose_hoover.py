"""The Nosé-Hoover chain alone: order of its factorisation, and jax-md as an oracle."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.dynamics.nose_hoover import ChainState, NoseHoover, suzuki_yoshida_weights
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.units import BOLTZMANN

T = 300.0


@pytest.fixture(autouse=True)
def _double():
    with double_precision():
        yield


def test_suzuki_yoshida_weights_cancel_the_orders_they_claim():
    """Sum of weights 1 and of cubes 0 (order 4), of fifth powers 0 too for 7 weights (order 6; constants have 15
    digits)."""
    for order in (1, 3, 5, 7):
        assert abs(sum(suzuki_yoshida_weights(order)) - 1.0) < 1e-14
    for order in (3, 5, 7):
        assert abs(sum(w**3 for w in suzuki_yoshida_weights(order))) < 1e-13
    assert abs(sum(w**5 for w in suzuki_yoshida_weights(7))) < 1e-13
    with pytest.raises(InputError, match="1, 3, 5 or 7"):
        suzuki_yoshida_weights(4)


@pytest.mark.slow
@pytest.mark.parametrize(("chain", "substeps", "weights"), [(3, 1, 1), (5, 2, 7)])
def test_chain_agrees_with_jax_md(chain, substeps, weights):
    """Same masses, same half steps of a chain whose atoms are one kinetic energy. jax-md casts the substep to float32
    unless it is the whole step: 1e-13 with one weight, 1e-5 (rounding of the step times its growth) with seven. Its
    tables for three and five weights are not Suzuki's and only of second order, so there is nothing to compare."""
    simulate = pytest.importorskip("jax_md.simulate")
    n, dt, tau = 5, 2.0, 30.0
    mine = NoseHoover(T, tau, chain, substeps, weights, zero_momentum=False)
    # Strongly typed numbers, or jax-md's float32 constants win the promotion.
    kT = jnp.float64(BOLTZMANN * T)
    theirs = simulate.nose_hoover_chain(jnp.float64(dt), chain, substeps, weights, jnp.float64(tau))
    tolerance = 1e-13 if weights == 1 else 1e-5
    kinetic = jnp.float64(1.2 * 1.5 * n) * kT
    other = theirs.initialize(3 * n, kinetic, kT)
    np.testing.assert_allclose(mine._masses(n), other.mass, rtol=1e-15)
    links = ChainState(jnp.zeros(chain), jnp.zeros(chain))
    factor = jnp.ones(())
    half_step = jax.jit(lambda links, factor: mine._half_step(links, kinetic * factor**2, n, dt))
    other_half_step = jax.jit(lambda factor, other: theirs.half_step(factor, other, kT))
    for _ in range(40):
        links, scale = half_step(links, factor)
        other_factor, other = other_half_step(factor, other)
        factor = factor * scale
        np.testing.assert_allclose(factor, other_factor, rtol=tolerance)
        other = other.set(kinetic_energy=kinetic * other_factor**2)
    momenta = np.asarray(links.velocities * mine._masses(n))
    assert np.abs(momenta - other.momentum).max() < 100 * tolerance * np.abs(momenta).max()
    assert np.abs(links.positions - other.position).max() < 100 * tolerance * np.abs(links.positions).max()
