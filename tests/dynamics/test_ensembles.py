"""Integrators against closed forms, symmetries, order of convergence, and finite differences of whole trajectories.

Everything here is deterministic or runs from a fixed seed; statistics are in tests/physics/test_distributions.py.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.dynamics.base import (
    Evaluation,
    kinetic_energy,
    maxwell_boltzmann_velocities,
)
from jaxmd_thermal.dynamics.csvr import CSVR
from jaxmd_thermal.dynamics.langevin import Langevin
from jaxmd_thermal.dynamics.nose_hoover import NoseHoover
from jaxmd_thermal.dynamics.npt import NPT
from jaxmd_thermal.dynamics.nve import NVE
from jaxmd_thermal.dynamics.state import MDState
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.units import ACCELERATION, BOLTZMANN, GPA

T = 300.0
N = 6
CELL = np.array([[6.0, 0.0, 0.0], [0.7, 7.0, 0.0], [-0.4, 0.9, 8.0]])
ROTATION = np.linalg.qr(np.random.default_rng(5).standard_normal((3, 3)))[0]


@pytest.fixture(autouse=True)
def _double():
    with double_precision():
        yield


def evaluate_chain(stiffness, positions, cell, velocities=None):
    """Periodic ring along a with quadratic and quartic bonds in a cell with an elastic energy of its own: anharmonic,
    and the stress couples atoms and cell. Forces and virial by hand, which compiles several times faster than
    differentiation; `test_toy_is_its_own_derivative` checks them."""
    wrap = np.zeros((N, 3))
    wrap[0, 0] = 1.0
    bond = positions - jnp.roll(positions, 1, axis=0) + (wrap - np.array([1.0 / N, 0.0, 0.0])) @ cell
    square = jnp.sum(bond**2, axis=1, keepdims=True)
    pull = stiffness * (1.0 + 8.0 * square) * bond
    volume = jnp.dot(cell[0], jnp.cross(cell[1], cell[2]))
    swell = volume / np.linalg.det(CELL) - 1.0
    shear = cell @ cell.T - CELL @ CELL.T
    energy = stiffness * jnp.sum(0.5 * square + 2.0 * square**2) + 10.0 * swell**2 + 0.01 * jnp.sum(shear**2)
    virial = bond.T @ pull + 20.0 * swell * (1.0 + swell) * jnp.eye(3) + 0.04 * cell.T @ shear @ cell
    return Evaluation(energy, jnp.roll(pull, -1, axis=0) - pull, virial / volume)


def start(ensemble, evaluate, positions, velocities, masses, cell=CELL, seed=0):
    positions, cell = jnp.asarray(positions, jnp.float64), jnp.asarray(cell, jnp.float64)
    first = evaluate(positions, cell, velocities)
    state = MDState(
        positions=positions,
        velocities=jnp.asarray(velocities, jnp.float64),
        cell=cell,
        forces=first.forces,
        masses=jnp.asarray(masses, jnp.float64),
        thermostat=None,
        key=jax.random.key(seed),
        step=jnp.zeros((), jnp.int64),
        energy=first.energy,
    )
    return dataclasses.replace(state, thermostat=ensemble.init(state))


@partial(jax.jit, static_argnames=("evaluate", "steps"))
def run(ensemble, state, argument, timestep, *, evaluate, steps):
    """Last state and the trace of (conserved, total energy, positions) of a scan."""

    def body(state, _):
        state = ensemble.step(state, partial(evaluate, argument), timestep)
        total = kinetic_energy(state.velocities, state.masses) + state.energy
        return state, (ensemble.conserved(state), total, state.positions)

    return jax.lax.scan(body, state, length=steps)


def chain_start(ensemble, stiffness=3.0, seed=0):
    fractional = np.stack([np.arange(N) / N, np.full(N, 0.2), np.full(N, 0.6)], axis=1)
    masses = np.linspace(20.0, 40.0, N)
    positions = fractional @ CELL + 0.05 * np.random.default_rng(seed).standard_normal((N, 3))
    velocities = maxwell_boltzmann_velocities(jax.random.key(seed + 100), masses, T)
    return start(ensemble, partial(evaluate_chain, stiffness), positions, velocities, masses, seed=seed)


def every_ensemble():
    bulk = 5.0 * GPA
    return {
        "nve": NVE(),
        "langevin": Langevin(T, damping=50.0),
        "langevin-drifting": Langevin(T, damping=50.0, zero_momentum=False),
        "nose-hoover": NoseHoover(T, damping=30.0),
        "csvr": CSVR(T, damping=50.0),
        "npt": NPT(CSVR(T, damping=50.0), 0.5 * GPA, damping=200.0, bulk_modulus=bulk),
        "npt-langevin": NPT(Langevin(T, damping=50.0), 0.5 * GPA, damping=200.0, bulk_modulus=bulk, stride=2),
        "npt-flexible": NPT(CSVR(T, damping=50.0), 0.5 * GPA, damping=200.0, bulk_modulus=bulk, flexible=True),
    }


NAMES = tuple(every_ensemble())
FEW = tuple(n for n in NAMES if n not in ("langevin-drifting", "npt-langevin", "npt"))
"""One of each kind, where a compilation per ensemble is what the test costs."""


# --- closed forms ---------------------------------------------------------------------------------------------------


def well(stiffness, positions, cell, velocities=None):
    return Evaluation(0.5 * stiffness * jnp.sum(positions**2), -stiffness * positions, jnp.zeros((3, 3)))


def test_verlet_has_the_shadow_frequency_of_the_harmonic_oscillator():
    """The map is linear: x_n = x_0 cos(n a) + v_0 dt sin(n a)/sin(a) with cos(a) = 1 - (w dt)^2/2. 200 steps round 200
    times."""
    masses, k, dt, steps = np.array([12.0]), 4.0, 3.0, 200
    x0, v0 = np.array([[0.3, -0.1, 0.2]]), np.array([[0.01, 0.02, -0.005]])
    state = start(NVE(), partial(well, k), x0, v0, masses)
    _, (_, _, positions) = run(NVE(), state, k, dt, evaluate=well, steps=steps)
    angle = np.arccos(1.0 - 0.5 * k * ACCELERATION / masses[0] * dt**2)
    n = np.arange(1, steps + 1)[:, None, None]
    expected = x0 * np.cos(n * angle) + v0 * dt * np.sin(n * angle) / np.sin(angle)
    assert np.abs(positions - expected).max() < 1e-12 * np.abs(expected).max()


def test_baoab_samples_the_positions_of_a_harmonic_oscillator_exactly():
    """z' = A z + b R is linear: A by differentiation of the step, b from its known noise, the stationary covariance
    from Sigma = A Sigma A^T + b b^T. Var x = k_B T/k at any time step and friction, Var v = k_B T/m (1 - (w dt)^2/4).
    The solution
    rounds: 1e-10."""
    m, k, dt = 12.0, 4.0, 6.0
    ensemble = Langevin(T, zero_momentum=False)
    base = start(ensemble, partial(well, k), np.zeros((1, 3)), np.zeros((1, 3)), np.array([m]), seed=3)
    noise = jax.random.normal(jax.random.split(base.key)[1], (1, 3), jnp.float64)[0, 0]

    def move(z, ensemble):
        x = base.positions.at[0, 0].set(z[0])
        v = base.velocities.at[0, 0].set(z[1])
        state = dataclasses.replace(base, positions=x, velocities=v, forces=-k * x)
        new = ensemble.step(state, partial(well, k), dt)
        return jnp.stack([new.positions[0, 0], new.velocities[0, 0]])

    linear = jax.jit(lambda ensemble: (jax.jacfwd(move)(jnp.zeros(2), ensemble), move(jnp.zeros(2), ensemble) / noise))
    w2, kT = k * ACCELERATION / m, BOLTZMANN * T
    for damping in (5.0, 80.0, 1e4):
        A, b = (np.asarray(x) for x in linear(dataclasses.replace(ensemble, damping=damping)))
        covariance = np.linalg.solve(np.eye(4) - np.kron(A, A), np.outer(b, b).ravel()).reshape(2, 2)
        np.testing.assert_allclose(covariance[0, 0], kT / k, rtol=1e-10)
        np.testing.assert_allclose(covariance[1, 1], kT * ACCELERATION / m * (1.0 - 0.25 * w2 * dt**2), rtol=1e-10)
        assert abs(covariance[0, 1]) < 1e-10 * np.sqrt(covariance[0, 0] * covariance[1, 1])


# --- symmetries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nve", "nose-hoover"])
def test_deterministic_dynamics_runs_back_to_where_it_came_from(name):
    """Rounding grows along the way in an anharmonic chain; 200 steps keep it below 1e-10 Å."""
    ensemble = every_ensemble()[name]
    first = chain_start(ensemble)
    there, _ = run(ensemble, first, 3.0, 2.0, evaluate=evaluate_chain, steps=200)
    chain = there.thermostat
    if name == "nose-hoover":
        chain = chain._replace(velocities=-chain.velocities)
    turned = dataclasses.replace(there, velocities=-there.velocities, thermostat=chain)
    back, _ = run(ensemble, turned, 3.0, 2.0, evaluate=evaluate_chain, steps=200)
    assert np.abs(there.positions - first.positions).max() > 0.05
    assert np.abs(back.positions - first.positions).max() < 1e-10
    assert np.abs(back.velocities + first.velocities).max() < 1e-11


def test_toy_is_its_own_derivative():
    state = chain_start(NVE())

    def energy(positions, strain):
        F = jnp.eye(3) + strain
        return evaluate_chain(3.0, positions @ F, state.cell @ F).energy

    gradient, virial = jax.jit(jax.grad(energy, (0, 1)))(state.positions, jnp.zeros((3, 3)))
    result = evaluate_chain(3.0, state.positions, state.cell)
    np.testing.assert_allclose(result.forces, -gradient, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(result.stress * jnp.linalg.det(state.cell), virial, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "langevin-drifting"])
def test_momentum_stays_zero_and_the_conserved_quantity_constant(name):
    """Momentum to 1e-12 of sum |p|. The conserved quantity stays within 2e-3 of the kinetic energy (5e-3 with a
    barostat, whose work is a trapezoid: a random walk of third order in the strain), which is less than 2 % of what
    the energy itself does."""
    ensemble = every_ensemble()[name]
    state = chain_start(ensemble)
    last, (conserved, total, _) = run(ensemble, state, 3.0, 1.0, evaluate=evaluate_chain, steps=1000)
    p = np.asarray(last.masses[:, None] * last.velocities)
    assert np.abs(p.sum(0)).max() < 1e-12 * np.abs(p).sum()
    scale = 1.5 * N * BOLTZMANN * T
    drift = np.abs(np.asarray(conserved) - float(ensemble.conserved(state))).max()
    assert drift < (5e-3 if isinstance(ensemble, NPT) else 2e-3) * scale
    if name != "nve":
        assert np.ptp(total) > 50.0 * drift
    assert int(last.step) == 1000


@pytest.mark.parametrize("name", ["nve", "nose-hoover"])
def test_halving_the_step_cuts_the_energy_fluctuation_fourfold(name):
    """Second order: 4 in the limit, at least 3.5 asked."""
    ensemble = every_ensemble()[name]
    state = chain_start(ensemble)
    spread = []
    for dt in (2.0, 1.0):
        _, (conserved, _, _) = run(ensemble, state, 3.0, dt, evaluate=evaluate_chain, steps=1000)
        spread.append(np.std(conserved))
    assert spread[0] / spread[1] > 3.5


def test_full_cell_keeps_the_orientation_and_inverts_velocities():
    """The cell leaves its plane and axis nowhere: a stays parallel to itself and c* too (1e-12); s and pi, the scaled
    variables, are unchanged by the cell move, which is seen by switching everything else off (no forces, long
    thermostat)."""

    def free(argument, positions, cell, velocities=None):
        return Evaluation(jnp.zeros(()), jnp.zeros_like(positions), argument)

    cell = CELL @ ROTATION
    stress = jnp.asarray([[0.1, 0.03, 0.0], [0.03, -0.2, 0.05], [0.0, 0.05, 0.1]])
    ensemble = NPT(CSVR(T, damping=1e30), damping=100.0, bulk_modulus=0.5, flexible=True)
    velocities = maxwell_boltzmann_velocities(jax.random.key(0), np.full(N, 30.0), T)
    positions = np.random.default_rng(1).uniform(size=(N, 3)) @ cell
    state = start(ensemble, partial(free, stress), positions, velocities, np.full(N, 30.0), cell=cell)
    state = dataclasses.replace(state, thermostat=ensemble.init(state, stress))
    dt = 1.0
    new = ensemble.step(state, partial(free, stress), dt)
    old_cell, new_cell = np.asarray(state.cell), np.asarray(new.cell)
    assert np.abs(new_cell - old_cell).max() > 1e-3
    assert np.linalg.norm(np.cross(new_cell[0], old_cell[0])) < 1e-12 * np.linalg.norm(old_cell[0]) ** 2
    normals = [np.cross(c[0], c[1]) for c in (old_cell, new_cell)]
    assert np.linalg.norm(np.cross(*normals)) < 1e-12 * np.linalg.norm(normals[0]) ** 2
    M = np.linalg.solve(old_cell, new_cell)
    np.testing.assert_allclose(new.velocities, velocities @ np.linalg.inv(M).T, rtol=1e-11)
    moved = (positions + 0.5 * dt * velocities) @ M + 0.5 * dt * new.velocities
    np.testing.assert_allclose(new.positions, moved, rtol=1e-12)


def test_first_step_without_a_stress_and_steps_between_strides_leave_the_cell():
    ensemble = NPT(CSVR(T), 0.5 * GPA, damping=100.0, stride=3)
    state = chain_start(ensemble)
    cells = [np.asarray(state.cell)]
    for _ in range(6):
        state = ensemble.step(state, partial(evaluate_chain, 3.0), 1.0)
        cells.append(np.asarray(state.cell))
    changed = [bool(np.any(a != b)) for a, b in pairwise(cells)]
    assert changed == [False, False, True, False, False, True]


# --- transformations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FEW, pytest.param("npt", marks=pytest.mark.slow)])
def test_gradient_through_a_trajectory_agrees_with_finite_differences(name):
    """d/d(stiffness) and d/d(temperature) of a function of the last state, reverse mode against central differences in
    float64: their truncation and rounding are below 1e-8 relative at this step, 1e-6 is asked."""
    ensemble = every_ensemble()[name]
    state = chain_start(ensemble)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def loss_and_gradient(stiffness, ensemble):
        fresh = evaluate_chain(stiffness, state.positions, state.cell)
        first = dataclasses.replace(state, forces=fresh.forces, energy=fresh.energy)
        last, _ = run(ensemble, first, stiffness, 2.0, evaluate=evaluate_chain, steps=8)
        return jnp.sum(jnp.sin(3.0 * last.positions)) + 100.0 * jnp.sum(last.velocities**2) + ensemble.conserved(last)

    def loss(stiffness, ensemble):
        return loss_and_gradient(stiffness, ensemble)[0]

    by_stiffness, by_ensemble = loss_and_gradient(3.0, ensemble)[1]
    h = 1e-4
    difference = (loss(3.0 + h, ensemble) - loss(3.0 - h, ensemble)) / (2.0 * h)
    np.testing.assert_allclose(by_stiffness, difference, rtol=1e-6)
    if name == "nve":
        return

    def heated(by):
        if isinstance(ensemble, NPT):
            thermostat = dataclasses.replace(ensemble.thermostat, temperature=T + by)
            return dataclasses.replace(ensemble, thermostat=thermostat)
        return dataclasses.replace(ensemble, temperature=T + by)

    h = 1e-2
    difference = (loss(3.0, heated(h)) - loss(3.0, heated(-h))) / (2.0 * h)
    got = by_ensemble.thermostat.temperature if isinstance(ensemble, NPT) else by_ensemble.temperature
    np.testing.assert_allclose(got, difference, rtol=1e-6)


def test_new_parameters_recompile_nothing_and_one_step_evaluates_once():
    calls = 0

    def counted(positions, cell, velocities=None):
        nonlocal calls
        calls += 1
        return well(3.0, positions, cell)

    for name in FEW:
        ensemble = every_ensemble()[name]
        step = jax.jit(lambda e, s, dt: e.step(s, counted, dt))
        state = chain_start(ensemble)
        calls = 0
        state = step(ensemble, state, 1.0)
        leaves, tree = jax.tree.flatten(ensemble)
        for factor in (1.1, 1.2):
            state = step(jax.tree.unflatten(tree, [factor * leaf for leaf in leaves]), state, factor)
        assert calls == 1, name
        assert step._cache_size() == 1, name
        assert state.positions.dtype == jnp.float64 and not state.positions.weak_type


def test_an_integer_temperature_is_the_same_program():
    assert jax.tree.leaves(Langevin(300, 100)) == jax.tree.leaves(Langevin(300.0, 100.0))
    assert all(isinstance(leaf, float) for leaf in jax.tree.leaves(NPT(CSVR(300, 100), 0, 1000, 1)))


def test_vmap_over_replicas_equals_single_runs():
    """Replicas differ in velocities and keys. Batching may reorder sums, and 1000 steps let the rounding grow: 1e-9."""
    ensemble = every_ensemble()["npt-flexible"]
    states = [chain_start(ensemble, seed=s) for s in (0, 1)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    step = partial(run, evaluate=evaluate_chain, steps=1000)
    together, _ = jax.vmap(step, (None, 0, None, None))(ensemble, stacked, 3.0, 1.0)
    for i, state in enumerate(states):
        alone, _ = step(ensemble, state, 3.0, 1.0)
        np.testing.assert_allclose(together.positions[i], alone.positions, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(together.cell[i], alone.cell, rtol=1e-9, atol=1e-9)


def test_float32_forces_keep_a_float64_state():
    def single(positions, cell, velocities=None):
        result = evaluate_chain(3.0, positions, cell)
        return Evaluation(*(x.astype(jnp.float32) for x in result))

    for ensemble in every_ensemble().values():
        state = chain_start(ensemble)
        new = ensemble.step(state, single, 1.0)
        assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(lambda x: x.dtype, state)


def test_velocity_dependent_forces_see_the_velocity_at_the_end_of_the_step():
    """Drag F = -c v has v(t) = v_0 exp(-c t/m): with the predicted velocity the scheme is second order, so halving the
    step cuts the error at least 3.5 times (it would be 2 with the velocity of the half step)."""
    m, c, end = 10.0, 20.0, 64.0

    def drag(argument, positions, cell, velocities=None):
        return Evaluation(jnp.zeros(()), -argument * velocities, None)

    v0 = jnp.full((1, 3), 0.01)
    errors = []
    for dt in (1.0, 0.5):
        state = start(NVE(), partial(drag, c), np.zeros((1, 3)), v0, np.array([m]))
        last, _ = run(NVE(), state, c, dt, evaluate=drag, steps=int(end / dt))
        errors.append(np.abs(last.velocities - v0 * np.exp(-c * ACCELERATION / m * end)).max())
    assert errors[0] / errors[1] > 3.5


def test_atoms_at_rest_give_finite_values_and_gradients():
    """CSVR divides by the kinetic energy: nothing to rescale must stay nothing, without NaN."""
    ensemble = CSVR(T, zero_momentum=False)
    state = start(ensemble, partial(well, 1.0), np.zeros((2, 3)), np.zeros((2, 3)), np.ones(2))

    @jax.jit
    @jax.value_and_grad
    def square(ensemble):
        return jnp.sum(ensemble.step(state, partial(well, 1.0), 1.0).velocities ** 2)

    value, gradient = square(ensemble)
    assert value == 0.0 and np.isfinite(gradient.temperature)


def test_barostat_refuses_what_has_no_volume_and_other_thermostats():
    ensemble = NPT(CSVR(T))
    with pytest.raises(InputError, match="volume 0"):
        start(ensemble, partial(well, 1.0), np.zeros((2, 3)), np.zeros((2, 3)), np.ones(2), cell=np.zeros((3, 3)))
    with pytest.raises(InputError, match="nose-hoover"):
        NPT(NoseHoover(T))
