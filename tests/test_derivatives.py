"""Forces, stress and parameter gradients against finite differences; nothing recompiles for new parameters."""

from functools import wraps

import numpy as np
import pytest

from jaxmd_thermal import evaluate
from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.derivatives import _evaluate, calculate
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.neighbors import allocate
from jaxmd_thermal.potentials import EquivariantNetwork, LennardJones, StillingerWeber
from tests.oracles import random_velocities, relative, structure

jax = pytest.importorskip("jax")
jnp = jax.numpy

NETWORK = EquivariantNetwork.create(2, ("Si", "Ge"), 3.6, 2, channels=2, lmax=1, radial=3, hidden=4, neighbors=8)
BLOCKED = EquivariantNetwork.create(2, ("Si",), 3.6, 2, channels=2, lmax=1, radial=3, hidden=4, neighbors=8, block=3)
LJ = LennardJones(0.02, 2.0, 5.0, "switch", switch_start=4.0)
MODELS = {"lj": LJ, "sw": StillingerWeber.silicon(), "network": NETWORK, "blocked": BLOCKED, "lj+network": LJ + NETWORK}
SYSTEM = structure()
VELOCITIES = random_velocities(SYSTEM)
FIELD = np.array([0.1, -0.2, 0.3])


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


def in_double(function):
    @wraps(function)
    def run(*args, **kwargs):
        with double_precision():
            return function(*args, **kwargs)

    return run


def prepared(potential):
    neighbors = allocate(SYSTEM, potential.cutoff, 0.5)

    def at(p, positions, cell, quantities):
        return calculate(
            p, positions, cell, SYSTEM.numbers, neighbors, quantities,
            velocities=VELOCITIES, masses=SYSTEM.masses, field=FIELD,
        )  # fmt: skip

    return jax.jit(at, static_argnums=3)


@pytest.mark.parametrize("name", ["lj", "sw", "network", slow("blocked"), slow("lj+network")])
@in_double
def test_forces_and_stress(name):
    """Central differences of the energy: 1e-7 relative, h^2 truncation at h = 1e-4 and rounding of the energies."""
    at = prepared(MODELS[name])
    x, cell, h = np.asarray(SYSTEM.positions), np.asarray(SYSTEM.cell), 1e-4
    out = at(MODELS[name], x, cell, ("energy", "forces", "stress"))
    forces, stress = np.asarray(out["forces"]), np.asarray(out["stress"])
    rng = np.random.default_rng(3)
    direction = rng.standard_normal(x.shape)

    def energy(positions, box):
        return float(at(MODELS[name], positions, box, ("energy", "forces", "stress"))["energy"])

    slope = (energy(x + h * direction, cell) - energy(x - h * direction, cell)) / (2 * h)
    assert abs(slope + np.sum(forces * direction)) < 1e-6 * np.abs(forces * direction).sum()
    numerical = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            strain = np.zeros((3, 3))
            strain[a, b] += h
            strain = 0.5 * (strain + strain.T)
            plus, minus = np.eye(3) + strain, np.eye(3) - strain
            numerical[a, b] = (energy(x @ plus, cell @ plus) - energy(x @ minus, cell @ minus)) / (2 * h)
    assert relative(stress, numerical / SYSTEM.volume()) < 1e-6
    np.testing.assert_allclose(stress, stress.T, atol=1e-16)
    assert np.abs(forces.sum(axis=0)).max() < 1e-12 * np.abs(forces).sum()


def test_stress_is_the_virial():
    """LJ: V stress = 1/2 sum_ij phi'(r)/r r_ij r_ij, 1e-12."""
    from tests.oracles import brute_force_pairs, lennard_jones

    _, _, r = brute_force_pairs(SYSTEM.positions, SYSTEM.cell, SYSTEM.pbc, 5.0)
    length = np.linalg.norm(r, axis=1)
    slope = lennard_jones(length, 0.02, 2.0, 5.0, 4.0)[1]
    virial = 0.5 * np.einsum("p,px,py->xy", slope / length, r, r)
    assert relative(evaluate(LJ, SYSTEM, ("stress",))["stress"] * SYSTEM.volume(), virial) < 1e-12


@pytest.mark.parametrize("name", ["lj", "sw", slow("network"), slow("blocked"), slow("lj+network")])
@in_double
def test_parameter_gradients(name):
    """jax.grad with respect to the leaves, through forces, stress, heat flux and driving force: 1e-6 relative."""
    potential = MODELS[name]
    at = prepared(potential)
    rng = np.random.default_rng(4)
    weights = {
        "forces": rng.standard_normal((4, 3)),
        "stress": rng.standard_normal((3, 3)),
        "heat_flux": rng.standard_normal(3),
        "driving_force": rng.standard_normal((4, 3)),
    }

    def properties(p):
        out = at(p, SYSTEM.positions, SYSTEM.cell, tuple(weights))
        return jnp.stack([jnp.sum(out[q] * w) for q, w in weights.items()])

    def scaled(leaf):
        return np.asarray(rng.standard_normal(np.shape(leaf)) * (0.1 + np.abs(leaf)))

    direction = jax.tree.map(scaled, potential)
    gradient = jax.jit(jax.jacrev(properties))(potential)
    along = sum(
        np.tensordot(np.asarray(g), d, axes=np.ndim(d))
        for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )

    def moved(h):
        return np.asarray(properties(jax.tree.map(lambda leaf, d: leaf + h * d, potential, direction)))

    h = 1e-4
    # Fourth order: the truncation error of the second would be what is measured.
    numerical = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    np.testing.assert_allclose(along, numerical, rtol=1e-6, atol=1e-9 * np.abs(numerical).max())


def test_new_parameters_recompile_nothing():
    quantities = ("energy", "forces", "heat_flux")
    first = evaluate(NETWORK, SYSTEM, quantities, velocities=VELOCITIES)
    compiled = _evaluate._cache_size()
    other = jax.tree.map(lambda leaf: 1.1 * leaf, NETWORK)
    second = evaluate(other, SYSTEM, quantities, velocities=VELOCITIES)
    assert _evaluate._cache_size() == compiled
    assert first["energy"] != second["energy"]


def test_precision_does_not_depend_on_the_users_setting():
    quantities = ("energy", "forces", "heat_flux")
    potential = MODELS["sw"]
    outside = evaluate(potential, SYSTEM, quantities, velocities=VELOCITIES)
    with double_precision():
        inside = evaluate(potential, SYSTEM, quantities, velocities=VELOCITIES)
    for name in quantities:
        assert outside[name].dtype == np.float64
        np.testing.assert_array_equal(outside[name], inside[name])


@pytest.mark.parametrize("name", ["lj", "sw", slow("network")])
def test_single_precision(name):
    """dtype float32: 2e-5 of the largest force and of the flux (7 digits, some of them lost by cancellation)."""
    quantities = ("forces", "heat_flux_potential", "stress")
    exact, single = (
        evaluate(MODELS[name], SYSTEM, quantities, velocities=VELOCITIES, dtype=d) for d in ("float64", "float32")
    )
    for q in quantities:
        assert relative(single[q], exact[q]) < 2e-5, q
        assert np.any(single[q] != exact[q])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: evaluate(LJ, SYSTEM, ("enthalpy",)), "enthalpy"),
        (lambda: evaluate(LJ, SYSTEM, dtype="float16"), "float16"),
        (lambda: evaluate(LJ, SYSTEM, ("heat_flux",), velocities=np.zeros((3, 3))), "shape"),
        (lambda: evaluate(LJ, SYSTEM, ("heat_flux",), velocities=np.full((4, 3), np.nan)), "finite"),
        (lambda: evaluate(LJ, SYSTEM, ("driving_force",), velocities=VELOCITIES), "field"),
        (lambda: evaluate(LJ, structure(pbc=False), ("stress",)), "stress"),
        (lambda: evaluate(object(), SYSTEM), "atomic_energies"),
        (lambda: evaluate(StillingerWeber.silicon(), structure(symbols="Ge4")), "Ge"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(InputError, match=words):
        call()
