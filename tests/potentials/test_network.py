"""The equivariant network: symmetries, smoothness, precision, and nothing that depends on capacities."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from jaxmd_thermal import evaluate
from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.derivatives import calculate
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.graph import Graph, Recorder
from jaxmd_thermal.neighbors import allocate, make_plan
from jaxmd_thermal.potentials import EquivariantNetwork
from jaxmd_thermal.potentials.network import cutoff_function
from jaxmd_thermal.potentials.tensor_product import coupling, paths
from jaxmd_thermal.system import System
from tests.oracles import open_neighbors, structure

jax = pytest.importorskip("jax")
jnp = jax.numpy
SMALL = dict(channels=2, radial=3, hidden=4, neighbors=8)
NETWORK = EquivariantNetwork.create(7, ("Si", "Ge"), 4.0, 2, lmax=2, **SMALL)
CLUSTER = structure(symbols="Si3Ge3", pbc=False, seed=8, spacing=1.4)


@pytest.fixture(scope="module")
def at():
    """Energies and forces of the cluster at other positions, compiled once."""
    with double_precision():
        plan = replace(make_plan(CLUSTER, 12.0), cutoff=4.0)

    @jax.jit
    def evaluated(potential, positions, numbers, neighbors):
        return calculate(potential, positions, CLUSTER.cell, numbers, neighbors, ("energies", "forces"))

    def run(positions, numbers=CLUSTER.numbers, potential=NETWORK):
        with double_precision():
            system = CLUSTER.replace(positions=np.asarray(positions), numbers=np.asarray(numbers))
            out = evaluated(potential, positions, numbers, allocate(system, 4.0, plan=replace(plan, slots=8)))
            return np.asarray(out["energies"]), np.asarray(out["forces"])

    return run


def test_rotation_reflection_translation_permutation(at):
    """E(3) and permutations: 1e-12 of the largest value, which is rounding."""
    rng = np.random.default_rng(0)
    x = np.asarray(CLUSTER.positions)
    energies, forces = at(x)
    assert np.abs(forces).max() > 1e-3 and np.ptp(energies) > 1e-3
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    for q in (turn, -turn, np.diag([1.0, 1.0, -1.0])):
        e, f = at(x @ q.T)
        np.testing.assert_allclose(e, energies, rtol=0, atol=1e-12 * np.abs(energies).max())
        np.testing.assert_allclose(f, forces @ q.T, rtol=0, atol=1e-12 * np.abs(forces).max())
    e, f = at(x + np.array([3.0, -100.0, 0.4]))
    np.testing.assert_allclose(
        f, forces, rtol=0, atol=1e-11 * np.abs(forces).max()
    )  # coordinates of 100 Å cost two digits
    order = rng.permutation(len(x))
    e, f = at(x[order], np.asarray(CLUSTER.numbers)[order])
    np.testing.assert_allclose(e, energies[order], rtol=0, atol=1e-12 * np.abs(energies).max())
    np.testing.assert_allclose(f, forces[order], rtol=0, atol=1e-12 * np.abs(forces).max())


def test_species_matter(at):
    energies, _ = at(CLUSTER.positions)
    swapped, _ = at(CLUSTER.positions, np.where(np.asarray(CLUSTER.numbers) == 14, 32, 14).astype(np.int32))
    assert np.abs(energies - swapped).max() > 1e-3


def test_smooth_cutoff():
    """The cutoff function and three of its derivatives vanish at the cutoff; so energies fade like the fourth power."""
    with double_precision():
        f = cutoff_function
        for order in range(4):
            assert abs(float(f(jnp.float64(1.0 - 1e-9)))) < 10.0 ** (6 - 9 * (4 - order)), order
            assert float(f(jnp.float64(1.0 + 1e-9))) == 0.0
            f = jax.grad(f)
        assert float(cutoff_function(jnp.float64(0.0))) == 1.0
        network = EquivariantNetwork.create(1, ("Si",), 4.0, 1, lmax=1, **SMALL)
        neighbors = open_neighbors(np.array([[0.0, 0, 0], [3.9, 0, 0]]), 4.5)

        @jax.jit
        def energy(r):
            positions = jnp.zeros((2, 3)).at[1, 0].set(r)
            graph = Graph.of(positions, jnp.eye(3), np.array([14, 14]), neighbors, 4.0)
            return jnp.sum(network.atomic_energies(graph))

        alone = float(energy(4.2))
        assert float(energy(4.0)) == alone
        near, nearer = (abs(float(energy(4.0 - d)) - alone) for d in (0.2, 0.1))
        assert near > 1e-9 and near / nearer > 12  # 2^4, less what higher powers contribute


@pytest.mark.slow
def test_capacity_does_not_matter():
    """More slots for neighbours: the same numbers to 1e-14."""
    system = structure(symbols="Si2Ge2")
    network = EquivariantNetwork.create(7, ("Si", "Ge"), 4.0, 2, lmax=1, **SMALL)
    results = []
    with double_precision():
        plan = allocate(system, 4.0, 0.0).plan
        for more in (0, 13):
            neighbors = allocate(system, 4.0, 0.0, plan=replace(plan, slots=plan.slots + more))
            out = jax.jit(calculate, static_argnums=5)(
                network, system.positions, system.cell, system.numbers, neighbors, ("energies", "forces")
            )
            results.append(jax.tree.map(np.asarray, out))
    for name in results[0]:
        largest = np.abs(results[0][name]).max()
        np.testing.assert_allclose(results[1][name], results[0][name], rtol=0, atol=1e-14 * max(largest, 1.0))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_isolated_atom(dtype):
    out = evaluate(NETWORK, Atoms("Si"), ("energy", "forces"), dtype=dtype)
    assert np.isfinite(out["energy"]) and np.all(out["forces"] == 0)


def test_weights_do_not_depend_on_the_precision_setting():
    outside = EquivariantNetwork.create(jax.random.key(5), ("Si",), 4.0, 2, lmax=1, **SMALL)
    with double_precision():
        inside = EquivariantNetwork.create(5, (14,), 4.0, 2, lmax=1, **SMALL)
    assert jax.tree.structure(outside) == jax.tree.structure(inside)
    assert hash(outside.network) == hash(inside.network)
    for a, b in zip(jax.tree.leaves(outside), jax.tree.leaves(inside)):
        assert isinstance(a, np.ndarray) and a.dtype == np.float64
        np.testing.assert_array_equal(a, b)
    other = EquivariantNetwork.create(6, ("Si",), 4.0, 2, lmax=1, **SMALL)
    assert np.any(other.params["embedding"] != outside.params["embedding"])


def test_couplings_conserve_parity():
    assert paths(0, 2, 2) == ((0, 0, 0), (0, 1, 1), (0, 2, 2))
    assert len(paths(3, 3, 3)) == 23
    for l1, l2, l3 in paths(2, 2, 2):
        assert (l1 + l2 + l3) % 2 == 0
        np.testing.assert_allclose(np.sum(coupling(l1, l2, l3) ** 2), 2 * l3 + 1)


def test_references_and_species():
    network = EquivariantNetwork.create(0, ("Si", "Ge"), 4.0, 1, lmax=0, references={"Ge": -5.5, 14: -2.0}, **SMALL)
    np.testing.assert_array_equal(network.reference_energies(np.array([32, 14, 14])), [-5.5, -2.0, -2.0])
    assert network.species == (14, 32) and network.interaction_steps == 1
    with pytest.raises(InputError, match="Ar"):
        evaluate(network, Atoms("Ar"))


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"layers": 0}, "layers"),
        ({"layers": 9}, "layers"),
        ({"lmax": 7}, "lmax"),
        ({"cutoff": 0.0}, "cutoff"),
        ({"species": ("Si", "Si")}, "species"),
        ({"species": ()}, "species"),
        ({"species": ("Xx",)}, "Xx"),
        ({"references": {"Ar": 1.0}}, "references"),
        ({"channels": 0}, "channels"),
    ],
)
def test_refusals(changes, word):
    with pytest.raises(InputError, match=word):
        EquivariantNetwork.create(**{"key": 0, "species": ("Si",), "cutoff": 4.0, "layers": 1, **changes})


def test_structures_without_neighbours_of_each_other():
    """Two far atoms are two isolated ones."""
    one = evaluate(NETWORK, Atoms("Si"), "energy")["energy"]
    two = evaluate(NETWORK, Atoms("Si2", positions=[[0, 0, 0], [9, 0, 0]]), "energy")["energy"]
    assert two == pytest.approx(2 * one, rel=1e-14)
    assert isinstance(System.from_atoms(Atoms("Si")), System)


@pytest.mark.parametrize(
    "dtype, carried, listener, rows",
    [
        ("float32", 1, None, 8),
        ("float32", 2, None, 8),
        ("float32", 4, None, 4),
        ("float64", 1, None, 8),
        ("float64", 4, None, 2),
        ("float64", 1, Recorder(), 4),
        ("float64", 64, None, 1),
    ],
)
def test_blocks_are_smaller_where_derivatives_are_carried_along(dtype, carried, listener, rows):
    """Eight rows of 8 bytes a value fill the cache of a CPU; the result is that of all rows at once to the last bit."""
    with double_precision():
        system = System.from_atoms(bulk("Si", cubic=True).repeat((2, 1, 1)))
        neighbors = allocate(system, 4.0, 0.0)
        graph = Graph.of(
            np.asarray(system.positions), np.asarray(system.cell), np.asarray(system.numbers), neighbors, 4.0,
            np.dtype(dtype), listener=listener, carried=carried,
        )  # fmt: skip
        seen = []

        def function(part, mine):
            seen.append(part.n_atoms)
            return mine * jnp.max(part.distances_squared * part.mask, axis=1)

        factors = np.arange(1.0, 1.0 + graph.n_atoms)
        found = graph.map_rows(function, rows=(factors,), block=8)
        assert set(seen) == {rows if jax.default_backend() == "cpu" else graph.n_atoms}
        np.testing.assert_array_equal(found, function(graph, factors))
