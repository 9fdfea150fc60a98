"""The tests that decide whether a heat flux is one, against the references of `oracles.py`."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from jaxmd_thermal import evaluate
from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.derivatives import calculate, required_cutoff
from jaxmd_thermal.errors import InputError, UnsupportedError
from jaxmd_thermal.graph import Graph
from jaxmd_thermal.neighbors import allocate
from jaxmd_thermal.potentials import EquivariantNetwork, LennardJones, StillingerWeber
from jaxmd_thermal.system import System
from jaxmd_thermal.units import AMU_A2_FS2, ASE_TIME
from tests import oracles
from tests.oracles import Messages, Opaque, random_velocities, relative, structure

jax = pytest.importorskip("jax")
jnp = jax.numpy

LJ = LennardJones(0.02, 2.0, 5.0, "switch", switch_start=4.0)
SW = replace(StillingerWeber.silicon(), species=None)
SPECIES = ("Si", "Ge")
# Vector (and higher) features; widths are small because the definition does not care, and compilation does.
NETWORKS = {
    (n, lmax): EquivariantNetwork.create(n, SPECIES, 4.0, n, channels=c, lmax=lmax, radial=3, hidden=4, neighbors=8)
    # 4 and 16 gathered features with l = 1, 2 and 18 with l = 2: sums over a multiple of 16 take a route of their own.
    for n, lmax, c in ((1, 1, 4), (2, 1, 4), (3, 1, 4), (2, 2, 2))
}
MIXED = LennardJones(
    [[0.02, 0.015], [0.015, 0.03]], [[2.0, 2.1], [2.1, 2.2]], 5.0, "switch", switch_start=4.0, species=(14, 32)
)
MODELS = {
    "lj": LJ,
    "lj-cut": LennardJones(0.02, 2.0, 5.0),
    "lj-mixed": MIXED,
    "sw": SW,
    "network-1": NETWORKS[1, 1],
    "network-2": NETWORKS[2, 1],
    "network-3": NETWORKS[3, 1],
    "network-2-l2": NETWORKS[2, 2],
    "messages-3": Messages(np.asarray(0.3), 4.0, 3, 3),
    "lj+messages-2": LJ + Messages(np.asarray(0.3), 4.0),
    "lj+network-2": MIXED + NETWORKS[2, 1],
}
SLOW = {"lj-cut", "messages-3", "network-1", "network-3", "network-2-l2", "lj+network-2"}


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


NAMES = [slow(n) if n in SLOW else n for n in MODELS]
CELLS = [structure(symbols="Si2Ge2"), structure(oracles.SHORT, "Si2Ge2", seed=3)]
"""Three to four Å high, against cutoffs of 4 to 5 Å and interaction ranges of up to 12 Å; unequal masses."""
VELOCITIES = [random_velocities(s, momentum_free=True) for s in CELLS]
FIELD = np.array([0.03, -0.01, 0.02])
FIRST = ("energies", "forces", "stress", "heat_flux", "heat_flux_potential")

TOLERANCE = 1e-12
"""Relative, float64: what is compared is the same number summed in another order."""


@cache
def engine(name, quantities=FIRST):
    """The engine's values for a structure of `CELLS`; one compilation serves all of them."""
    potential = MODELS[name]
    plan = oracles.shared_plan(CELLS, required_cutoff(potential))

    @jax.jit
    def values(p, positions, cell, numbers, neighbors, v, masses):
        return calculate(p, positions, cell, numbers, neighbors, quantities, velocities=v, masses=masses, field=FIELD)

    def at(system, v):
        with double_precision():
            neighbors = allocate(system, plan.cutoff, 0.0, plan=plan)
            out = values(potential, system.positions, system.cell, system.numbers, neighbors, v, system.masses)
            return jax.tree.map(np.asarray, out)

    return at


def test_cells_are_smaller_than_the_cutoffs():
    for system in CELLS:
        assert (1 / np.linalg.norm(np.linalg.inv(system.cell), axis=0)).min() < min(p.cutoff for p in NETWORKS.values())


@pytest.mark.parametrize("name", NAMES)
def test_unfolded_cell(name):
    """Against the definition with images, triclinic cells smaller than cutoff and interaction range: 1e-12."""
    at = engine(name)
    references = oracles.unfolded(MODELS[name], CELLS, VELOCITIES)
    for system, v, (reference, energies) in zip(CELLS, VELOCITIES, references):
        out = at(system, v)
        np.testing.assert_allclose(out["energies"], energies, rtol=0, atol=1e-12 * np.abs(energies).max())
        assert relative(out["heat_flux_potential"], reference) < TOLERANCE


def test_position_site_alone_is_wrong():
    """Negative control: what a virial-based heat flux computes is right without messages, and wrong with them."""
    system, v = CELLS[0], VELOCITIES[0]
    errors = []
    for depth in (1, 2):
        potential = Messages(np.asarray(0.3), 4.0, depth, depth)
        with double_precision():
            neighbors = allocate(system, potential.cutoff, 0.0)

            @jax.jit
            def virial_based(positions, cell, numbers, neighbors, v, potential=potential):
                graph = Graph.of(positions, cell, numbers, neighbors, potential.cutoff)
                edges = graph.edge_vectors
                adjoint = jax.grad(lambda r: jnp.sum(potential.atomic_energies(graph.with_edges(r))))(edges)
                power = jnp.where(graph.occupied, jnp.sum(adjoint * v[graph.senders], axis=-1), 0.0)
                return -jnp.einsum("nk,nkx->x", power, edges)

            flux = np.asarray(virial_based(system.positions, system.cell, system.numbers, neighbors, v))
        ((reference, _),) = oracles.unfolded(potential, [system], [v])
        errors.append(relative(flux, reference))
    assert errors[0] < TOLERANCE
    assert errors[1] > 0.05, errors


@pytest.mark.parametrize("name", ["lj-mixed", "sw", slow("network-2")])
def test_open_cluster(name):
    """J = d/dt sum_i r_i e_i along an NVE trajectory: 1e-6 relative (central differences, fourth order)."""
    from jaxmd_thermal.check import energy_moment_rate

    system = structure(1.5 * oracles.TRICLINIC, "Si6Ge3", pbc=False)
    v = random_velocities(system)
    flux = evaluate(MODELS[name], system, ("heat_flux",), velocities=v)["heat_flux"]
    assert relative(flux, energy_moment_rate(MODELS[name], system, v)) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_galilean_law(name):
    """J(v+u) - J(v) = sum_i [(e_i + m_i v_i.u + m_i u^2/2) u + (m_i v_i.u + m_i u^2/2) v_i] - (dU/dstrain) u."""
    system, v, u = CELLS[0], VELOCITIES[0], np.array([0.013, -0.007, 0.004])
    at = engine(name)
    rest, moving, boosted = at(system, 0 * v), at(system, v), at(system, v + u)
    m = np.asarray(system.masses) * AMU_A2_FS2
    energy = moving["energies"] + 0.5 * m * np.sum(v**2, axis=1)
    added = m * (v @ u) + 0.5 * m * (u @ u)
    expected = np.sum(energy + added) * u + added @ v - system.volume() * moving["stress"] @ u
    assert relative(boosted["heat_flux"] - moving["heat_flux"], expected) < 1e-11
    np.testing.assert_array_equal(rest["heat_flux"], 0.0)


def test_closed_pair_formula():
    for system, v in zip(CELLS, VELOCITIES):
        reference = oracles.pair_flux(system, v, lambda r: oracles.lennard_jones(r, 0.02, 2.0, 5.0, 4.0), 5.0)
        assert relative(engine("lj")(system, v)["heat_flux_potential"], reference) < TOLERANCE


@pytest.mark.parametrize("name", ["lj-mixed", "sw", "network-2", slow("lj+messages-2")])
def test_driving_force_is_the_transpose_of_the_flux(name):
    """sum_i F_i.v_i = J.F_e and sum_i F_i = 0, with unequal masses and zero total momentum, to rounding."""
    at = engine(name, ("driving_force", "heat_flux"))
    for system, v in zip(CELLS, VELOCITIES):
        out = at(system, v)
        assert np.ptp(system.masses) > 10 and np.abs(system.masses @ v).max() < 1e-15 * np.sum(system.masses)
        work = np.sum(out["driving_force"] * v)
        assert abs(work - out["heat_flux"] @ FIELD) < 1e-12 * np.sum(np.abs(out["driving_force"] * v))
        assert np.abs(out["driving_force"].sum(axis=0)).max() < 1e-13 * np.abs(out["driving_force"]).sum()


def test_stored_argon_reference(shared):
    """Energies, forces, virial and both fluxes of another code, 864 atoms: 1e-10 relative."""
    data = np.load(shared / "data" / "argon" / "ref_lj_argon_cubic_864.npz")
    sigma, epsilon, cutoff, start = data["params"]
    system = System(data["positions"], data["cell_rows"], np.full(864, 18, np.int32), data["masses"])
    velocities = data["velocities_ase"] / ASE_TIME
    potential = LennardJones(float(epsilon), float(sigma), float(cutoff), "switch", switch_start=float(start))
    quantities = ("energy", "energies", "forces", "stress", "heat_flux_potential", "heat_flux_convective")
    out = evaluate(potential, system, quantities, velocities=velocities)
    assert abs(out["energy"] / data["energy"] - 1) < 1e-10
    for name in ("energies", "forces"):
        assert relative(out[name], data[name]) < 1e-10
    assert relative(out["stress"] * data["volume"], data["virial"]) < 1e-10
    assert relative(out["heat_flux_potential"], data["hf_potential"] / ASE_TIME) < 1e-10
    assert relative(out["heat_flux_convective"], data["hf_convective"] / ASE_TIME) < 1e-10
    # Single precision on edges formed in double: no coordinate of the size of the cell enters.
    single = evaluate(potential, system, ("heat_flux_potential",), velocities=velocities, dtype="float32")
    assert relative(single["heat_flux_potential"], data["hf_potential"] / ASE_TIME) < 1e-4


@pytest.mark.parametrize("name", ["lj", "network-2", slow("sw"), slow("messages-3"), slow("lj+messages-2")])
def test_edge_powers(name):
    """-sum r_ij P_ij is the flux; sum_j P_ij - sum_j P_ji is de_i/dt = dU_i/dt + F_i.v_i."""
    potential, system, v = MODELS[name], CELLS[0], VELOCITIES[0]
    plan = oracles.shared_plan(CELLS, required_cutoff(potential))
    with double_precision():
        neighbors = allocate(system, plan.cutoff, 0.0, plan=plan)

        @jax.jit
        def rates(p, x, cell, numbers, neighbors):
            def energies(y):
                terms = p.terms
                return sum(t.atomic_energies(Graph.of(y, cell, numbers, neighbors, t.cutoff)) for t in terms)

            return jax.jvp(energies, (x,), (v,))[1], Graph.of(x, cell, numbers, neighbors, plan.cutoff).edge_vectors

        out = rates(potential, system.positions, system.cell, system.numbers, neighbors)
        rate, edges = (np.asarray(x) for x in out)
    powers = engine(name, ("edge_power", "atomic_power", "heat_flux_potential", "forces"))(system, v)
    alone = engine(name)(system, v)["heat_flux_potential"]
    assert relative(-np.einsum("nkx,nk->x", edges, powers["edge_power"]), alone) < TOLERANCE
    assert relative(powers["heat_flux_potential"], alone) < TOLERANCE
    assert relative(powers["atomic_power"], rate + np.sum(powers["forces"] * v, axis=1)) < 1e-11


@pytest.mark.parametrize("name", ["lj", slow("sw")])
def test_routes_agree(name):
    """Pair, row-local and message-passing evaluation of the same potential."""
    potential, system, v = MODELS[name], CELLS[0], VELOCITIES[0]
    quantities = (*FIRST[:4], "driving_force")
    routes = [Opaque.of(potential, row_local=True), Opaque.of(potential)]
    if name == "lj":
        routes.append(potential)
    results = [evaluate(p, system, quantities, velocities=v, field=FIELD) for p in routes]
    for other in results[1:]:
        for name in quantities:
            assert relative(other[name], results[0][name]) < 1e-12, name


@pytest.mark.parametrize("quantities", [("forces", "heat_flux"), slow(("forces", "driving_force"))])
def test_blocked_network_is_the_same_network(quantities):
    """Blocks of receivers (recomputed loops, replayed values) change nothing, second order included."""
    network = NETWORKS[2, 1]
    system, v = CELLS[0], VELOCITIES[0]
    blocked, whole = (replace(network, network=network.network.clone(block=n)) for n in (3, None))
    a, b = (evaluate(p, system, quantities, velocities=v, field=FIELD) for p in (whole, blocked))
    for name in quantities:
        assert relative(b[name], a[name]) < TOLERANCE, name


def test_reference_energies_are_not_in_the_flux():
    system, v = CELLS[0], random_velocities(CELLS[0])
    quantities = ("energies", "heat_flux")
    bare, constants = NETWORKS[1, 1], np.array([-163.0, -1200.5])
    shifted = replace(bare, references=constants)
    a, b = (evaluate(p, system, quantities, velocities=v) for p in (bare, shifted))
    added = np.where(np.asarray(system.numbers) == 14, *constants)
    np.testing.assert_allclose(b["energies"] - a["energies"], added, rtol=1e-14)
    np.testing.assert_array_equal(a["heat_flux"], b["heat_flux"])
    # Had they been there, they would have added exactly sum c_Z v_i.
    assert np.abs(added @ v).max() > 1e3 * np.abs(a["heat_flux"]).max()


def test_refusals():
    system = CELLS[0]
    with pytest.raises(InputError, match="velocities"):
        evaluate(LJ, system, ("heat_flux",))

    class Ewald(LennardJones):
        long_range = True

    jax.tree_util.register_dataclass(Ewald, ["epsilon", "sigma"], ["cutoff", "truncation", "switch_start", "species"])
    with pytest.raises(UnsupportedError, match="Ewald"):
        evaluate(Ewald(0.02, 2.0, 5.0), system, ("heat_flux",), velocities=random_velocities(system))
    with pytest.raises(UnsupportedError, match="row_local"):
        evaluate(Opaque.of(Messages(np.asarray(1.0), 3.6), row_local=True), system, ("forces",))
