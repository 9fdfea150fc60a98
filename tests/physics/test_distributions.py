"""Do the thermostats and barostats sample what they claim? Independent replicas against closed-form distributions.

Seeds are fixed. A test fails below p = 1e-3 (chi-square) or beyond 4 standard errors; with about 60 such comparisons
in this file an arbitrary correct code fails one of them in a few per cent of the choices of seeds, this one in none or
always.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.dynamics.base import Evaluation, kinetic_energy, maxwell_boltzmann_velocities
from jaxmd_thermal.dynamics.csvr import CSVR, chi_square
from jaxmd_thermal.dynamics.langevin import Langevin
from jaxmd_thermal.dynamics.nose_hoover import NoseHoover
from jaxmd_thermal.dynamics.npt import NPT
from jaxmd_thermal.dynamics.state import MDState
from jaxmd_thermal.units import ACCELERATION, BOLTZMANN, GPA

T = 300.0
KT = BOLTZMANN * T
LOWEST_P = 1e-3
SIGMAS = 4.0


@pytest.fixture(autouse=True)
def _double():
    with double_precision():
        yield


def replicas(ensemble, evaluate, positions, masses, cell, count, *, zero_momentum, seed, spread=0.0):
    """`count` replicas with Maxwell-Boltzmann velocities and normal displacements of `spread` Å."""

    @jax.jit
    def one(ensemble, key):
        velocity_key, displacement_key, key = jax.random.split(key, 3)
        moved = positions + spread * jax.random.normal(displacement_key, positions.shape, positions.dtype)
        first = evaluate(moved, cell)
        velocities = maxwell_boltzmann_velocities(velocity_key, masses, T, zero_momentum=zero_momentum)
        step = jnp.zeros((), jnp.int64)
        state = MDState(moved, velocities, cell, first.forces, masses, None, key, step, first.energy)
        return dataclasses.replace(state, thermostat=ensemble.init(state))

    return jax.vmap(one, (None, 0))(ensemble, jax.random.split(jax.random.key(seed), count))


@partial(jax.jit, static_argnames=("evaluate", "measure", "snapshots", "every"))
def sample(ensemble, states, timestep, *, evaluate, measure, snapshots, every):
    """`measure(state)` of all replicas at `snapshots` times, `every` steps apart."""

    def advance(state, _):
        return jax.lax.scan(lambda s, _: (ensemble.step(s, evaluate, timestep), None), state, length=every)[0], None

    def snapshot(states, _):
        states = jax.vmap(lambda s: advance(s, None)[0])(states)
        return states, jax.vmap(measure)(states)

    return jax.lax.scan(snapshot, states, length=snapshots)


def chi_square_p(values, distribution, bins=25):
    """p of a chi-square test with bins of equal probability."""
    counts = np.histogram(distribution.cdf(np.asarray(values).ravel()), bins=bins, range=(0.0, 1.0))[0]
    return stats.chisquare(counts).pvalue


def check_mean(values, expected, what):
    """Independent values: the mean within SIGMAS standard errors."""
    values = np.asarray(values)
    z = (values.mean() - expected) / (values.std(ddof=1) / np.sqrt(values.size))
    assert abs(z) < SIGMAS, f"{what}: {values.mean():.6g}, expected {expected:.6g}, {z:.1f} standard errors"


def check_variance(values, expected, what):
    values = np.asarray(values)
    check_mean((values - values.mean()) ** 2, expected, f"variance of {what}")


# --- thermostats ----------------------------------------------------------------------------------------------------

ATOMS = 4


@pytest.mark.parametrize("dof", [1, 2, 5, 2588])
def test_chi_square_variates(dof):
    """Kolmogorov-Smirnov with 20000 draws; dof = 0 (a single degree of freedom) is zero."""
    keys = jax.random.split(jax.random.key(dof), 20000)
    draws = jax.jit(jax.vmap(lambda key: chi_square(key, dof, jnp.float64)))(keys)
    assert stats.kstest(draws, "chi2", (dof,)).pvalue > LOWEST_P
    assert chi_square(keys[0], 0, jnp.float64) == 0.0


def quartic_chain(positions, cell, velocities=None):
    """Open chain of quadratic and quartic bonds, stiffer in some directions than in others: bound, anharmonic,
    conserves momentum but not angular momentum, which rescaling thermostats would otherwise keep at the value of the
    start."""
    stiffness = jnp.asarray([0.7, 1.1, 1.9])
    bond = positions[1:] - positions[:-1]
    square = jnp.sum(bond**2, axis=1, keepdims=True)
    pull = (stiffness + 20.0 * square) * bond
    forces = jnp.zeros_like(positions).at[:-1].add(pull).at[1:].add(-pull)
    return Evaluation(0.5 * jnp.sum(stiffness * bond**2) + 5.0 * jnp.sum(square**2), forces)


def thermal(state):
    virial = -jnp.sum((state.positions - state.positions.mean(0)) * state.forces)
    return kinetic_energy(state.velocities, state.masses), virial, state.velocities[0, 0]


@pytest.mark.parametrize(
    "ensemble",
    [
        Langevin(T, damping=40.0),
        Langevin(T, damping=40.0, zero_momentum=False),
        NoseHoover(T, damping=15.0),
        CSVR(T, damping=40.0),
    ],
    ids=["langevin", "langevin-drifting", "nose-hoover", "csvr"],
)
def test_kinetic_energy_and_virial_are_canonical(ensemble):
    """K is Gamma with shape f/2 and scale k_B T, f the degrees of freedom that the ensemble reports (a wrong f of 3N
    is rejected at p < 1e-30); one component is normal with variance k_B T/m (1 - m/M when the momentum is zero); sum x
    dU/dx = (3N - 3) k_B T.

    Time steps of w dt < 0.1 move variances by less than 0.25 %, a third of the statistical error. Random displacements
    at the
    start: bonds that begin in phase stay so for 1000 steps, which a thermostat of the total kinetic energy cannot
      repair."""
    masses = jnp.asarray([20.0, 30.0, 40.0, 50.0])
    states = replicas(
        ensemble,
        quartic_chain,
        jnp.zeros((ATOMS, 3)),
        masses,
        20.0 * jnp.eye(3),
        2000,
        zero_momentum=True,
        seed=11,
        spread=0.08,
    )
    _, samples = sample(ensemble, states, 2.0, evaluate=quartic_chain, measure=thermal, snapshots=4, every=150)
    kinetic, virial, component = (np.asarray(x)[1:] for x in samples)
    free = 3 * ATOMS - 3
    dof = ensemble.degrees_of_freedom(jax.tree.map(lambda x: x[0], states))
    assert dof == free + (0 if ensemble.zero_momentum else 3)
    assert chi_square_p(kinetic, stats.gamma(0.5 * dof, scale=KT)) > LOWEST_P
    wrong = 3 * ATOMS if dof == free else free
    assert chi_square_p(kinetic, stats.gamma(0.5 * wrong, scale=KT)) < 1e-30
    check_mean(virial, free * KT, "virial")
    share = 1.0 - masses[0] / masses.sum() if ensemble.zero_momentum else 1.0
    spread = np.sqrt(KT * ACCELERATION / masses[0] * share)
    assert stats.kstest(component.ravel(), stats.norm(0.0, spread).cdf).pvalue > LOWEST_P


# --- barostats ------------------------------------------------------------------------------------------------------

TRICLINIC = np.array([[5.0, 0.0, 0.0], [1.0, 5.5, 0.0], [-0.7, 0.8, 6.0]])
ROTATION = np.linalg.qr(np.random.default_rng(8).standard_normal((3, 3)))[0]


def ideal_gas(positions, cell, velocities=None):
    return Evaluation(jnp.zeros(()), jnp.zeros_like(positions), jnp.zeros((3, 3)))


def volume_of(state):
    return jnp.abs(jnp.linalg.det(state.cell))


@pytest.mark.parametrize(
    ("thermostat", "flexible"),
    [
        pytest.param(CSVR(T, damping=20.0), False, id="csvr-isotropic"),
        pytest.param(CSVR(T, damping=20.0), True, id="csvr-full-cell", marks=pytest.mark.slow),
        pytest.param(Langevin(T, 20.0, False), False, id="langevin-drifting-isotropic", marks=pytest.mark.slow),
        pytest.param(Langevin(T, 20.0, False), True, id="langevin-drifting-full-cell"),
    ],
)
def test_volume_of_an_ideal_gas(thermostat, flexible):
    """p(V) ~ V^N exp(-P V/k_B T), a Gamma distribution of shape N + 1, whether or not the momentum is held at zero
    (forgetting the measure changes N by 1 or 2: 20 % of the mean here). dt/damping = 0.02 makes the variance 1 % too
    large, a third of its standard error; a shape without resistance to shear diffuses, which leaves the volume
    alone."""
    n, count, dt = 4, 2500, 4.0
    cell = jnp.asarray(TRICLINIC @ ROTATION)
    start_volume = float(np.abs(np.linalg.det(TRICLINIC)))
    pressure = (n + 1) * KT / start_volume
    ensemble = NPT(thermostat, pressure, damping=200.0, bulk_modulus=pressure, flexible=flexible)
    positions = jnp.asarray(np.random.default_rng(0).uniform(size=(n, 3))) @ cell
    masses = jnp.full((n,), 30.0)
    states = replicas(
        ensemble, ideal_gas, positions, masses, cell, count, zero_momentum=thermostat.zero_momentum, seed=21
    )
    _, volumes = sample(ensemble, states, dt, evaluate=ideal_gas, measure=volume_of, snapshots=1, every=200)
    expected = stats.gamma(n + 1, scale=KT / pressure)
    check_mean(volumes, expected.mean(), "volume")
    check_variance(volumes, expected.var(), "volume")
    assert chi_square_p(volumes, expected) > LOWEST_P


BULK, SHEAR = 4.0 * GPA, 2.0 * GPA
REFERENCE = float(np.abs(np.linalg.det(TRICLINIC)))


def swelling(volume):
    """Energy (eV) of the toy crystals as a function of volume."""
    return 0.5 * BULK * REFERENCE * (volume / REFERENCE - 1.0) ** 2


def bulk_energy(volume):
    return swelling(volume), BULK * (volume / REFERENCE - 1.0)


def volume_distribution(power, pressure):
    """Mean and variance of p(V) ~ V^power exp(-(U(V) + P V)/k_B T) by quadrature."""
    V = np.linspace(0.05, 3.0, 20001) * REFERENCE
    log = power * np.log(V) - (swelling(V) + pressure * V) / KT
    p = np.exp(log - log.max())
    p /= integrate.trapezoid(p, V)
    mean = integrate.trapezoid(p * V, V)
    return mean, integrate.trapezoid(p * (V - mean) ** 2, V)


def wells(positions, cell, velocities=None):
    """Atoms bound to fractional sites that move with the cell, plus U(V): the virial of the atoms counts."""
    sites = np.random.default_rng(3).uniform(size=(ATOMS, 3)) @ cell
    displaced = positions - sites
    volume = jnp.abs(jnp.linalg.det(cell))
    energy, tension = bulk_energy(volume)
    # x -> x (1 + e), sites -> sites (1 + e): displacements stretch, dU = k d.(d e).
    virial = 2.0 * displaced.T @ displaced
    return Evaluation(energy + jnp.sum(displaced**2), -2.0 * displaced, virial / volume + tension * jnp.eye(3))


@pytest.mark.parametrize("pressure", [0.0, 0.5 * GPA])
def test_equation_of_state_of_atoms_in_wells(pressure):
    """The integral over atoms in wells does not depend on the cell, so p(V) ~ exp(-(U(V) + P V)/k_B T): no factor V^N,
    which the pressure of the momenta and the virial of the wells must cancel. w dt = 0.1, dt/damping = 0.02."""
    ensemble = NPT(Langevin(T, damping=20.0, zero_momentum=False), pressure, damping=200.0, bulk_modulus=BULK)
    cell = jnp.asarray(TRICLINIC)
    positions = jnp.asarray(np.random.default_rng(3).uniform(size=(ATOMS, 3))) @ cell
    masses = jnp.full((ATOMS,), 30.0)
    states = replicas(ensemble, wells, positions, masses, cell, 2500, zero_momentum=False, seed=31)
    _, volumes = sample(ensemble, states, 4.0, evaluate=wells, measure=volume_of, snapshots=1, every=250)
    mean, variance = volume_distribution(0, pressure)
    check_mean(volumes, mean, "volume")
    check_variance(volumes, variance, "volume")


def elastic(positions, cell, velocities=None):
    """Ideal gas in an elastic skin: U(V) + SHEAR V0/2 (tr C - 3), C the metric of the cell at unit volume."""
    F = np.linalg.inv(TRICLINIC) @ cell
    volume = jnp.abs(jnp.linalg.det(cell))
    scale = (volume / REFERENCE) ** (-2.0 / 3.0)
    stretch = jnp.sum(F**2) * scale
    energy, tension = bulk_energy(volume)
    shear = SHEAR * REFERENCE * (F.T @ F * scale - stretch / 3.0 * jnp.eye(3))
    energy = energy + 0.5 * SHEAR * REFERENCE * (stretch - 3.0)
    return Evaluation(energy, jnp.zeros_like(positions), shear / volume + tension * jnp.eye(3))


def metric(state):
    F = np.linalg.inv(TRICLINIC) @ state.cell
    volume = volume_of(state)
    return volume, F @ F.T * (volume / REFERENCE) ** (-2.0 / 3.0)


def mean_stretch():
    """<tr C> over unimodular F with weight exp(-a tr C): singular values s have the density prod_(i<j) |s_i^2 - s_j^2|
    in dF, on the surface s1 s2 s3 = 1 in coordinates ln s."""
    a = 0.5 * SHEAR * REFERENCE / KT
    grid = np.linspace(-1.5, 1.5, 601)
    u, v = np.meshgrid(grid, grid, indexing="ij")
    s = np.exp(2.0 * np.stack([u, v, -u - v]))
    weight = np.abs((s[0] - s[1]) * (s[1] - s[2]) * (s[2] - s[0])) * np.exp(-a * (s.sum(0) - 3.0))
    return (weight * s.sum(0)).sum() / weight.sum()


@pytest.mark.slow
def test_full_cell_of_an_elastic_solid():
    """Volume by quadrature; the six strains by an integral over singular values; and, the energy being isotropic, <C>
    must be a multiple of the unit matrix although the integrator treats a, b and c differently (dropping (3, 1, -1)
    for (1, 1, 1) in the drift moves C_00 and C_22 by more than 6 standard errors)."""
    n, pressure = 4, 0.3 * GPA
    ensemble = NPT(Langevin(T, damping=20.0), pressure, damping=200.0, bulk_modulus=BULK, flexible=True)
    cell = jnp.asarray(TRICLINIC @ ROTATION)
    masses = jnp.full((n,), 30.0)
    states = replicas(ensemble, elastic, jnp.zeros((n, 3)), masses, cell, 2500, zero_momentum=True, seed=41)
    _, (volumes, C) = sample(ensemble, states, 4.0, evaluate=elastic, measure=metric, snapshots=1, every=450)
    mean, variance = volume_distribution(n, pressure)
    check_mean(volumes[-1], mean, "volume")
    check_variance(volumes[-1], variance, "volume")
    C = np.asarray(C[-1])
    trace = mean_stretch()
    check_mean(np.trace(C, axis1=1, axis2=2), trace, "tr C")
    for a in range(3):
        check_mean(C[:, a, a], trace / 3.0, f"C_{a}{a}")
        check_mean(C[:, a, (a + 1) % 3], 0.0, f"C_{a}{(a + 1) % 3}")
