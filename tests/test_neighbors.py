"""The neighbour list against image loops and vesin, in any cell; validity while atoms and cell move; capacities."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from ase import Atoms
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxmd_thermal import Calculator, evaluate, hessian_columns, potentials
from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import CapacityError, InputError, Status, UnstableError
from jaxmd_thermal.neighbors import NeighborPlan, allocate, build, make_plan, outdated, refresh
from jaxmd_thermal.sites import check_sites
from jaxmd_thermal.system import System
from tests.oracles import brute_force_pairs, sorted_pairs, structure

jax = pytest.importorskip("jax")

CUTOFF, SKIN, N_ATOMS = 3.5, 0.5, 6
PERIODICITIES = [(True, True, True), (True, False, True), (False, False, True), (False, False, False)]
ROOM = dict(slots=144, ghosts=(64, 320, 1400), images=(2, 2, 2), bins=(6, 6, 12), run=96)
"""Room for the worst of the random cells, so that all of one periodicity share one compiled program."""
deterministic = partial(settings, derandomize=True, deadline=None, database=None)

build_one = jax.jit(build, static_argnames="plan")


def plan_for(pbc, **changes) -> NeighborPlan:
    ghosts = tuple(int(g) for g in np.cumsum(np.diff(ROOM["ghosts"], prepend=0) * np.array(pbc)))
    return NeighborPlan(cutoff=CUTOFF, skin=SKIN, pbc=pbc, **{**ROOM, "ghosts": ghosts, **changes})


def random_cell(rng, skew: float):
    """Rows in general position; heights from 2.5 to 9 Å."""
    lower = np.diag(rng.uniform(2.5, 9.0, 3)) + np.tril(rng.uniform(-1, 1, (3, 3)) * skew, -1)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    return lower[rng.permutation(3)] @ turn


def random_positions(rng, cell, pbc, spread):
    """Atoms anywhere within `spread` cells; along open directions inside the cell."""
    fractional = rng.uniform(size=(N_ATOMS, 3)) + np.array(pbc) * rng.integers(-spread, spread + 1, (N_ATOMS, 3))
    return fractional @ cell


def listed_pairs(neighbors, positions, cell, cutoff):
    """(i, j, vectors) of the list within the cutoff, at positions and cell that may have changed since the build."""
    with double_precision():
        extended = np.asarray(neighbors.extended(jax.numpy.asarray(positions), jax.numpy.asarray(cell)))
    index, owners = np.asarray(neighbors.index), np.asarray(neighbors.owners)
    rows = np.arange(len(index))[:, None]
    vectors = extended[index] - extended[: len(index), None]
    i, k = np.nonzero((index != rows) & (np.linalg.norm(vectors, axis=-1) < cutoff))
    return i, owners[index[i, k]], vectors[i, k]


def assert_complete(neighbors, positions, cell, pbc, cutoff=CUTOFF):
    expected = brute_force_pairs(np.asarray(positions), np.asarray(cell), pbc, cutoff)
    assert sorted_pairs(*listed_pairs(neighbors, positions, cell, cutoff)) == sorted_pairs(*expected)


@pytest.mark.parametrize("pbc", PERIODICITIES, ids=str)
@given(seed=st.integers(0, 2**32 - 1), skew=st.sampled_from([0.0, 2.0, 5.0]), spread=st.sampled_from([0, 3]))
@deterministic(max_examples=40)
def test_pairs_of_random_cells(pbc, seed, skew, spread):
    """Pairs with their images, exactly those of explicit loops, to reach (cutoff + skin) and to the cutoff."""
    rng = np.random.default_rng(seed)
    cell = random_cell(rng, skew)
    assume((1 / np.linalg.norm(np.linalg.inv(cell), axis=0)).min() > 2.2)
    positions = random_positions(rng, cell, pbc, spread)
    with double_precision():
        neighbors = build_one(positions, cell, plan=plan_for(pbc))
    assert Status(int(neighbors.status)) == Status.OK, Status(int(neighbors.status))
    assert_complete(neighbors, positions, cell, pbc, CUTOFF + SKIN)
    assert_complete(neighbors, positions, cell, pbc)


@given(seed=st.integers(0, 2**32 - 1), skew=st.sampled_from([0.0, 3.0]))
@deterministic(max_examples=15)
def test_pairs_agree_with_vesin(seed, skew):
    vesin = pytest.importorskip("vesin")
    rng = np.random.default_rng(seed)
    cell = random_cell(rng, skew)
    assume((1 / np.linalg.norm(np.linalg.inv(cell), axis=0)).min() > 2.2)
    positions = random_positions(rng, cell, (True,) * 3, 0)
    i, j, vectors = vesin.NeighborList(cutoff=CUTOFF, full_list=True).compute(
        points=positions, box=cell, periodic=True, quantities="ijD"
    )
    with double_precision():
        neighbors = build_one(positions, cell, plan=plan_for((True,) * 3))
    ours = sorted_pairs(*listed_pairs(neighbors, positions, cell, CUTOFF))
    assert ours == sorted_pairs(np.asarray(i), np.asarray(j), np.asarray(vectors))


def test_allocate_finds_its_capacities():
    """Plans made from the structure alone, for shapes of cells that no random draw hits."""
    tiny = np.array([[2.2, 0.1, 0.0], [0.9, 2.3, 0.2], [-0.7, 0.8, 2.4]])
    needle = np.diag([2.0, 2.5, 40.0])
    for cell, atoms in ((tiny, "Si"), (needle, "Si9"), (np.diag([60.0, 60.0, 60.0]), "Si2")):
        system = structure(cell, atoms, spacing=1.3, seed=1)
        with double_precision():
            neighbors = allocate(system, 4.2, 0.3)
        assert_complete(neighbors, system.positions, system.cell, system.pbc, 4.2)
        assert Status(int(neighbors.status)) == Status.OK


def test_rows_without_neighbours_and_one_atom():
    with double_precision():
        neighbors = allocate(System.from_atoms(Atoms("Ar")), 3.0)
    assert np.all(np.asarray(neighbors.index) == 0) and neighbors.owner.shape == (0,)


MOVES_PLAN = plan_for((True,) * 3, slots=64, ghosts=(48, 160, 520), run=48)
CELL = np.array([[6.0, 0.2, 0.1], [1.5, 6.2, -0.3], [-1.0, 0.8, 6.4]])


@pytest.fixture(scope="module")
def moving():
    """A list, and compiled `refresh` and `outdated` for it."""
    system = structure(CELL, f"Si{N_ATOMS}", seed=6, spacing=1.8)
    with double_precision():
        return system, build_one(system.positions, system.cell, plan=MOVES_PLAN), jax.jit(refresh), jax.jit(outdated)


def strained(kind):
    strain = np.eye(3)
    if kind == "compression":
        strain *= 0.95
    elif kind == "small compression":
        strain *= 0.995
    elif kind == "shear":
        strain[0, 1] = 0.06
    elif kind == "expansion":
        strain *= 1.05
    return strain


@pytest.mark.parametrize("kind", ["compression", "small compression", "shear", "expansion"])
def test_valid_when_the_cell_changes(moving, kind):
    """The box changes with the atoms, or under them: after `refresh` no pair is missing."""
    system, neighbors, fresh, late = moving
    deformation = strained(kind)
    cell = system.cell @ deformation
    for positions in (system.positions @ deformation, system.positions):
        with double_precision():
            due = bool(late(neighbors, positions, cell))
            updated = fresh(neighbors, positions, cell)
        assert Status(int(updated.status)) == Status.OK
        assert_complete(updated, positions, cell, system.pbc)
        # Half a percent on the fly is what the skin is for.
        if kind == "small compression" and positions is not system.positions:
            assert not due and np.array_equal(updated.index, neighbors.index)


def test_valid_when_atoms_are_wrapped_or_jump(moving):
    system, neighbors, fresh, late = moving
    x, cell = np.asarray(system.positions), np.asarray(system.cell)
    wrapped = x - np.floor(x @ np.linalg.inv(cell)) @ cell
    far = x.copy()
    far[2] += 0.5 * SKIN * 1.02 * np.array([0.6, 0.0, 0.8])
    near = x.copy()
    near[2] += 0.5 * SKIN * 0.98 * np.array([0.6, 0.0, 0.8])
    for positions, expected in ((wrapped, True), (far, True), (near, False), (x, False)):
        with double_precision():
            assert bool(late(neighbors, positions, cell)) == expected
            updated = fresh(neighbors, positions, cell)
        assert_complete(updated, positions, cell, system.pbc)


@given(seed=st.integers(0, 2**32 - 1))
@deterministic(max_examples=8)
def test_random_walks_lose_no_pair(moving, seed):
    """Atoms and cell wander; the list is rebuilt when `outdated` says so, and is complete at every step."""
    system, neighbors, fresh, late = moving
    rng = np.random.default_rng(seed)
    x, cell, rebuilds = np.asarray(system.positions), np.asarray(system.cell), 0
    for _ in range(25):
        deformation = np.eye(3) + 2e-3 * rng.standard_normal((3, 3))
        x, cell = (x + 0.03 * rng.standard_normal(x.shape)) @ deformation, cell @ deformation
        with double_precision():
            rebuilds += bool(late(neighbors, x, cell))
            neighbors = fresh(neighbors, x, cell)
        assert_complete(neighbors, x, cell, system.pbc)
    assert 0 < rebuilds < 25 and Status(int(neighbors.status)) == Status.OK


def test_zero_skin_is_outdated_by_any_move(moving):
    system, _, fresh, late = moving
    moved = system.positions + 1e-9 * np.eye(N_ATOMS, 3)
    with double_precision():
        neighbors = build_one(system.positions, system.cell, plan=replace(MOVES_PLAN, skin=0.0))
        assert bool(late(neighbors, moved, system.cell))
        updated = fresh(neighbors, moved, system.cell)
    assert_complete(neighbors, system.positions, system.cell, system.pbc)
    assert_complete(updated, moved, system.cell, system.pbc)


@pytest.mark.parametrize(
    "bit, changes, entry",
    [
        (Status.NEIGHBORS, {"slots": 3}, 0),
        pytest.param(Status.GHOSTS, {"ghosts": (2, 160, 520)}, 1, marks=pytest.mark.slow),
        (Status.GHOSTS, {"ghosts": (48, 50, 520)}, 2),
        pytest.param(Status.GHOSTS, {"ghosts": (48, 160, 162)}, 3, marks=pytest.mark.slow),
        (Status.BINS, {"run": 1}, 4),
    ],
)
def test_overflow_is_reported_and_repaired(moving, bit, changes, entry):
    """What does not fit sets its bit and says how much is needed; a grown plan holds it."""
    system, *_ = moving
    plan = replace(MOVES_PLAN, **changes)
    with double_precision():
        tight = build_one(system.positions, system.cell, plan=plan)
        assert Status(int(tight.status)) & bit
        required = np.asarray(tight.required)
        if entry == 0:
            centres = brute_force_pairs(system.positions, CELL, system.pbc, CUTOFF + SKIN)[0]
            assert required[0] == np.bincount(centres).max()
        have = {0: plan.slots, 1: plan.ghosts[0], 2: plan.ghosts[1], 3: plan.ghosts[2], 4: plan.run}[entry]
        assert required[entry] > have
        grown = allocate(system, CUTOFF, SKIN, plan=plan)
    assert Status(int(grown.status)) == Status.OK
    assert_complete(grown, system.positions, system.cell, system.pbc)


def test_status_is_sticky(moving):
    system, _, fresh, _ = moving
    with double_precision():
        tight = build_one(system.positions, system.cell, plan=replace(MOVES_PLAN, slots=3))
        spread_out = fresh(tight, 2.0 * system.positions, 2.0 * system.cell)
    assert Status(int(spread_out.status)) & Status.NEIGHBORS
    assert spread_out.required[0] == tight.required[0]


def test_geometry_beyond_the_plan(moving):
    system, _, _, _ = moving
    with double_precision():
        squeezed = build_one(0.25 * system.positions, 0.25 * system.cell, plan=MOVES_PLAN)
    assert Status(int(squeezed.status)) & Status.GEOMETRY


@pytest.mark.parametrize("where", ["positions", "cell"])
def test_non_finite_is_no_matter_of_capacity(moving, where):
    system, neighbors, fresh, late = moving
    positions, cell = np.array(system.positions), np.array(system.cell)
    (positions if where == "positions" else cell)[1, 2] = np.nan
    with double_precision():
        assert bool(late(neighbors, positions, cell))
        status = Status(int(fresh(neighbors, positions, cell).status))
    assert status & Status.NON_FINITE and not status & Status.capacity()


def test_replicas_share_one_decision(moving):
    """Leading axes are replicas: one of them moves, all lists are rebuilt and complete."""
    system, _, _, _ = moving
    rng = np.random.default_rng(1)
    x = np.stack([system.positions + 0.05 * rng.standard_normal((N_ATOMS, 3)) for _ in range(3)])
    cells = np.stack([system.cell] * 3)
    with double_precision():
        neighbors = allocate(system.replace(positions=x, cell=cells), CUTOFF, SKIN, plan=MOVES_PLAN)
        fresh = jax.jit(refresh)
        same = fresh(neighbors, x + 0.01, cells)
        assert np.array_equal(same.reference_positions, x)
        x[1, 0] += 0.4
        moved = fresh(neighbors, x, cells)
    assert np.array_equal(moved.reference_positions, x)
    for r in range(3):
        assert_complete(jax.tree.map(lambda leaf, r=r: leaf[r], moved), x[r], cells[r], system.pbc)


def test_refresh_ahead_reports_a_list_that_came_too_late(moving):
    system, neighbors, _, _ = moving
    ahead = jax.jit(refresh)
    x, cell = np.asarray(system.positions), np.asarray(system.cell)
    with double_precision():
        early = ahead(neighbors, x, cell, x + np.array([[0.3, 0, 0]] + [[0, 0, 0]] * 5))
        late = ahead(neighbors, x + np.array([[0.3, 0, 0]] + [[0, 0, 0]] * 5), cell, x)
    assert Status(int(early.status)) == Status.OK
    assert Status(int(late.status)) == Status.STALE


def test_two_atoms_on_one_site():
    lj = potentials.LennardJones(0.01, 3.4, 5.0)
    atoms = Atoms("Ar2", positions=[[0.0, 0, 0], [8.0, 0, 1e-5]], cell=np.diag([8.0] * 3), pbc=True)
    with pytest.raises(InputError, match="one site"):
        evaluate(lj, atoms)
    with double_precision():
        system = System.from_atoms(atoms)
        with pytest.raises(InputError, match=r"atoms (0 and 1|1 and 0)"):
            check_sites(system, allocate(system, 5.0))


def test_atoms_that_overlap():
    """A network says nothing of cores that overlap; a pair potential, or a sum with one, does."""
    network = potentials.EquivariantNetwork.create(0, (14,), 4.0, 1, channels=4)
    lj = potentials.LennardJones(0.01, 2.0, 4.0)
    near, apart = (Atoms("Si2", positions=[[0.0, 0, 0], [0, 0, d]], cell=[9.0] * 3, pbc=True) for d in (0.88, 0.90))
    for wrong in (lambda: evaluate(network, near), lambda: Calculator(network).get_potential_energy(near)):
        with pytest.raises(InputError, match=r"\(Si\) and . \(Si\) overlap.* 0.880 Å apart.* under 0.888 Å .*units"):
            wrong()
    evaluate(network, apart)
    evaluate(lj, near)
    evaluate(lj + network, near)


def test_columns_are_one_list():
    atoms = Atoms("Ar2", positions=[[0.0, 0, 0], [0, 0, 3.8]], cell=[9.0] * 3, pbc=True)
    lj = potentials.LennardJones(0.01, 3.4, 4.0)
    np.testing.assert_array_equal(hessian_columns(lj, atoms, 5), hessian_columns(lj, atoms, [5]))
    with pytest.raises(InputError, match=r"columns have the shape \(2, 2\)"):
        hessian_columns(lj, atoms, np.array([[0, 1], [5, 4]]))


def test_a_potential_that_is_not_finite():
    atoms = Atoms("Ar2", positions=[[0.0, 0, 0], [0, 0, 3.0]], cell=[9.0] * 3, pbc=True)
    for wrong in (evaluate, lambda potential, atoms: hessian_columns(potential, atoms, [0])):
        with pytest.raises(UnstableError, match="not finite"):
            wrong(potentials.LennardJones(float("nan"), 3.4, 4.0), atoms)


@pytest.mark.parametrize("cutoff, skin", [(0.0, 1.0), (np.inf, 1.0), (np.nan, 1.0), (3.0, -0.1), (3.0, np.nan)])
def test_refusals(cutoff, skin):
    with pytest.raises(InputError, match=r"cutoff|skin"):
        make_plan(structure(), cutoff, skin)


def test_hopeless_capacities_are_named():
    system = structure(CELL, "Si6", spacing=1.8, seed=6)
    with double_precision(), pytest.raises(CapacityError, match="slots"):
        allocate(system, CUTOFF, SKIN, plan=replace(MOVES_PLAN, slots=3), attempts=1)
