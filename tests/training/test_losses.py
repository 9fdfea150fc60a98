"""Losses: sampled columns against the whole Hessian, gradients against finite differences, stress against `evaluate`."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

from jaxmd_thermal import evaluate, hessian_columns
from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.potentials import EquivariantNetwork, LennardJones
from jaxmd_thermal.training.batches import Batches, Shape, buckets_of, prefetched, union
from jaxmd_thermal.training.data import Frame
from jaxmd_thermal.training.losses import (
    EnergyPerAtom,
    Forces,
    HessianColumns,
    Stress,
    ThirdDerivatives,
    factors_of,
    paired,
    predictions,
    total_loss,
)
from jaxmd_thermal.training.neighborhoods import neighborhood

ALL = frozenset(("energy", "forces", "stress", "hessian", "third"))


def network() -> EquivariantNetwork:
    return EquivariantNetwork.create(
        3, ["Na", "Cl"], 3.6, 2, channels=3, lmax=1, radial=4, hidden=5, block=None, references={"Na": -1.0, "Cl": -2.5}
    )


def crystals() -> list:
    """Two different rattled crystals, one in a skewed cell of its own."""
    rng = np.random.default_rng(1)
    first = bulk("NaCl", "rocksalt", a=5.1)
    second = bulk("NaCl", "cesiumchloride", a=3.3).repeat((2, 1, 1))
    second.set_cell(second.cell.array @ (np.eye(3) + 0.05 * rng.standard_normal((3, 3))), scale_atoms=True)
    for atoms in (first, second):
        atoms.positions += 0.1 * rng.standard_normal(atoms.positions.shape) + 7.0
    return [first, second]


def labelled(atoms, rng, columns=None) -> Frame:
    """Random labels: what matters is the difference."""
    n = len(atoms)
    columns = np.arange(3 * n) if columns is None else columns
    return Frame(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array,
        energy=float(rng.standard_normal()),
        forces=rng.standard_normal((n, 3)),
        stress=rng.standard_normal((3, 3)),
        columns=columns,
        hessian=rng.standard_normal((len(columns), n, 3)),
        third=rng.standard_normal((len(columns), n, 3)),
        compound=str(atoms.symbols),
        source=f"frame of {atoms.symbols}",
    )


@pytest.fixture(scope="module", params=["pairs", pytest.param("network", marks=pytest.mark.slow)])
def case(request):
    """Potential, structures, their frames, one batch of both with all columns, and what the potential says of it."""
    rng = np.random.default_rng(2)
    potential = network() if request.param == "network" else LennardJones(0.3, 2.3, 4.5, "switch", switch_start=3.0)
    structures = crystals()
    frames = [labelled(atoms, rng) for atoms in structures]
    near = [neighborhood(f, potential.cutoff) for f in frames]
    slots = max(x.slots for x in near)
    batch = union(frames, near, Shape(3, 10, sum(len(x.owner) for x in near) + 5, slots + 2))
    with double_precision():
        said = jax.jit(predictions, static_argnames="needs")(potential, batch, needs=ALL)
        said = {name: np.asarray(value) for name, value in said.items()}
    return potential, structures, frames, batch, said


def test_a_batch_says_what_single_structures_say(case):
    potential, structures, _, _, said = case
    first = 0
    for g, atoms in enumerate(structures):
        n = len(atoms)
        alone = evaluate(potential, atoms, ("energy", "forces", "stress"))
        mine = slice(first, first + n)
        assert said["energy"][g] == pytest.approx(float(alone["energy"]), abs=1e-11)
        np.testing.assert_allclose(said["forces"][mine], alone["forces"], atol=1e-11)
        np.testing.assert_allclose(said["stress"][g], alone["stress"], atol=1e-12)
        columns = hessian_columns(potential, atoms, np.arange(3 * n))
        np.testing.assert_allclose(said["hessian"][: 3 * n, mine], columns, atol=1e-10)
        first += n
    assert said["energy"][2] == 0.0 and not said["forces"][first:].any()
    assert not said["hessian"][6:, :2].any(), "a structure without a column is not moved"


@pytest.mark.parametrize("columns", [1, 2])
def test_training_steps_say_what_single_structures_say(case, columns):
    """Without third derivatives, as in training: one column and several take routes of their own."""
    potential, structures, frames, _, _ = case
    near = [neighborhood(f, potential.cutoff) for f in frames]
    shape = Shape(2, 7, sum(len(x.owner) for x in near), max(x.slots for x in near))
    chosen = [np.arange(4, 4 + columns), np.arange(1, 1 + columns)]
    batch = union(frames, near, shape, chosen)
    with double_precision():
        said = jax.jit(predictions, static_argnames="needs")(potential, batch, needs=ALL - {"third"})
        said = {name: np.asarray(value) for name, value in said.items()}
    first = 0
    for g, (atoms, mine) in enumerate(zip(structures, chosen, strict=True)):
        alone, rows = evaluate(potential, atoms, ("energy", "forces", "stress")), slice(first, first + len(atoms))
        assert said["energy"][g] == pytest.approx(float(alone["energy"]), abs=1e-11)
        np.testing.assert_allclose(said["forces"][rows], alone["forces"], atol=1e-11)
        np.testing.assert_allclose(said["stress"][g], alone["stress"], atol=1e-12)
        np.testing.assert_allclose(said["hessian"][:, rows], hessian_columns(potential, atoms, mine), atol=1e-10)
        first += len(atoms)


def test_third_derivatives_are_slopes_of_the_hessian(case):
    potential, structures, _, _, said = case
    atoms, step = structures[0], 1e-4
    for column in (0, 4):
        sides = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions.reshape(-1)[column] += sign * step
            sides.append(hessian_columns(potential, moved, [column])[0])
        np.testing.assert_allclose(said["third"][column, :2], (sides[0] - sides[1]) / (2 * step), atol=1e-6)


def test_sampled_columns_average_to_the_whole_hessian(case):
    """The mean of single-column losses over all columns is the loss of the full matrix."""
    potential, _, frames, _, said = case
    frame = frames[0]
    full = np.mean(np.abs(said["hessian"][:6, :2] - frame.hessian))
    term = HessianColumns()
    near = neighborhood(frame, potential.cutoff)
    shape = Shape(1, 2, len(near.owner), near.slots)
    loss = jax.jit(lambda p, b: total_loss(p, b, [term], {"hessian": 1.0})[0])
    with double_precision():
        single = [float(loss(potential, union([frame], [near], shape, [np.array([c])]))) / 6 for c in range(6)]
        shared = float(loss(potential, union([frame], [near], shape))) / 36
    assert np.mean(single) == pytest.approx(full, abs=1e-10)
    assert shared == pytest.approx(full, abs=1e-10)


@pytest.mark.slow
def test_gradient_by_the_weights_equals_finite_differences(case):
    potential, _, _, batch, _ = case
    losses = [
        EnergyPerAtom(0.3),
        Forces(0.5, "norm"),
        Stress(2.0, "huber"),
        HessianColumns(1.0),
        ThirdDerivatives(0.1, "mse"),
    ]
    with double_precision():
        factors = factors_of(losses, [batch], 0)
        loss = jax.jit(lambda params: total_loss(params, batch, losses, factors)[0])
        params = jax.tree.map(jnp.asarray, potential)
        gradient = jax.jit(jax.grad(loss))(params)
        rng = np.random.default_rng(5)
        for _ in range(2):
            way = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), params)
            slope = sum(float(jnp.vdot(a, b)) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(way)))
            h = 1e-6

            def at(t, way=way):
                return float(loss(jax.tree.map(lambda p, w: p + t * w, params, way)))

            # Five points: the fourth derivative of the loss along a random way is large.
            numeric = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
            assert slope == pytest.approx(numeric, rel=1e-6)


def second_order(case, columns):
    """A batch with some columns, its loss, and the loss's gradient by `paired`, as functions of the potential."""
    potential, _, frames, _, _ = case
    losses = [EnergyPerAtom(0.3), Forces(0.5, "norm"), Stress(2.0, "huber"), HessianColumns(1.0)]
    near = [neighborhood(f, potential.cutoff) for f in frames]
    shape = Shape(2, 7, sum(len(x.owner) for x in near), max(x.slots for x in near))
    batch = union(frames, near, shape, [np.arange(columns)] * 2)
    factors = factors_of(losses, [batch], 0)

    def loss(p):
        return total_loss(p, batch, losses, factors)[0]

    def gradient(p):
        predicted = predictions(p, batch, ALL - {"third"})
        adjoint = jax.grad(lambda q: sum(factors[t.name] * t.sums(q, batch)[0] for t in losses))(predicted)
        return jax.grad(lambda p: paired(p, batch, adjoint))(p)

    return jax.tree.map(np.asarray, potential), loss, gradient


def test_paired_gradient_equals_finite_differences(case):
    """Three columns share a batch. A random way through the weights, five points."""
    potential, loss, gradient = second_order(case, 3)
    rng = np.random.default_rng(6)
    way = jax.tree.map(lambda x: x * rng.standard_normal(x.shape), potential)
    with double_precision():
        slope = sum(np.vdot(a, b) for a, b in zip(jax.tree.leaves(jax.jit(gradient)(potential)), jax.tree.leaves(way)))
        compiled, h = jax.jit(loss), 1e-5

        def at(t):
            return float(compiled(jax.tree.map(lambda p, w: p + t * w, potential, way)))

        numeric = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    assert float(slope) == pytest.approx(numeric, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 3])
def test_paired_gradient_is_the_gradient(case, columns):
    """One reverse pass over directional derivatives, against automatic differentiation of the whole loss."""
    potential, loss, gradient = second_order(case, columns)
    with double_precision():
        expected, found = jax.jit(jax.grad(loss))(potential), jax.jit(gradient)(potential)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12 * (1.0 + np.abs(np.asarray(a)).max(initial=0.0)))


def test_terms_against_numpy(case):
    _, _, frames, batch, said = case
    predicted = {name: jnp.asarray(value) for name, value in said.items()}
    forces = np.concatenate([said["forces"][:2] - frames[0].forces, said["forces"][2:6] - frames[1].forces])
    energies = np.array([(said["energy"][g] - f.energy) / f.n_atoms for g, f in enumerate(frames)])
    stress = np.stack([said["stress"][g] - f.stress for g, f in enumerate(frames)])

    def mean(term):
        loss, error = term.sums(predicted, batch)
        return float(loss) / term.count(batch), float(error) / term.count(batch)

    with double_precision():
        size = np.abs(forces)
        huber = np.where(size <= 0.4, size**2 / 2, 0.4 * (size - 0.2))
        lengths = np.linalg.norm(forces, axis=1).mean()
        assert mean(Forces(kind="norm")) == pytest.approx((lengths, 1e3 * lengths), rel=1e-5)
        assert mean(Forces(kind="huber", delta=0.4)) == pytest.approx((huber.mean(), 1e3 * size.mean()), rel=1e-5)
        assert mean(Forces(kind="mse"))[0] == pytest.approx((forces**2).mean(), rel=1e-5)
        assert mean(EnergyPerAtom()) == pytest.approx(
            (np.abs(energies).mean(), 1e3 * np.abs(energies).mean()), rel=1e-5
        )
        assert mean(Stress(kind="norm"))[0] == pytest.approx(np.linalg.norm(stress, axis=(1, 2)).mean(), rel=1e-5)
        assert mean(Stress())[1] == pytest.approx(160.21766208 * np.abs(stress).mean(), rel=1e-5)


def test_labels_that_are_missing_count_for_nothing(case):
    potential, _, frames, _, _ = case
    bare = [
        frames[0].replace(energy=None, stress=None, hessian=None, third=None, columns=None),
        frames[1].replace(forces=None),
    ]
    near = [neighborhood(f, potential.cutoff) for f in bare]
    batch = union(bare, near, Shape(2, 6, sum(len(x.owner) for x in near), max(x.slots for x in near)))
    assert EnergyPerAtom().count(batch) == 1 and Forces().count(batch) == 6 and HessianColumns().count(batch) == 12 * 12
    assert factors_of([Forces(3.0)], [batch, batch], 0) == {"forces": 0.25}
    assert factors_of([Forces(lambda step: 2.0 * step)], [batch], 3) == {"forces": 1.0}


def test_a_cluster_without_a_cell_beside_a_crystal_with_a_stress():
    """The gradient by the weights beside five-point finite differences; the cluster adds forces alone."""
    potential = LennardJones(0.01, 3.4, 6.0, "switch", switch_start=5.0)
    rng = np.random.default_rng(8)
    crystal = bulk("Ar", "fcc", a=5.2, cubic=True)
    apart = 3.8 * np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    frames = [
        Frame(crystal.numbers, crystal.positions, crystal.cell.array, stress=1e-3 * rng.standard_normal((3, 3))),
        Frame(np.full(3, 18), apart, np.zeros((3, 3)), (False,) * 3, forces=0.1 * rng.standard_normal((3, 3))),
    ]
    near = [neighborhood(f, potential.cutoff) for f in frames]
    batch = union(frames, near, Shape(2, 7, sum(len(x.owner) for x in near), max(x.slots for x in near)))
    losses = [Forces(0.5, "mse"), Stress(2e3, "mse")]
    factors = factors_of(losses, [batch], 0)
    names = frozenset(("forces", "stress"))

    def gradient(p):
        predicted = predictions(p, batch, names)
        adjoint = jax.grad(lambda q: sum(factors[t.name] * t.sums(q, batch)[0] for t in losses))(predicted)
        return jax.grad(lambda p: paired(p, batch, adjoint))(p)

    with double_precision():
        potential = jax.tree.map(np.asarray, potential)
        both = jax.jit(jax.value_and_grad(lambda p: total_loss(p, batch, losses, factors)[0]))
        slopes = [jax.jit(gradient)(potential), both(potential)[1]]
        h = 1e-4

        def at(t):
            return float(both(replace(potential, sigma=np.asarray(3.4 + t)))[0])

        numeric = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    # Five points leave h^4 of the fifth derivative, 1e-9 here.
    assert [float(s.sigma) for s in slopes] == pytest.approx([numeric] * 2, rel=1e-7)


def test_terms_refuse_nonsense():
    with pytest.raises(InputError, match="huber"):
        Forces(kind="hubert")
    with pytest.raises(InputError, match="weight"):
        Stress(-1.0)
    with pytest.raises(InputError, match="norm"):
        EnergyPerAtom(kind="norm")


def test_buckets_waste_least():
    costs = [(10, 4), (12, 4), (8, 40), (9, 44), (100, 48)]
    assert buckets_of(costs, 2) == [[0, 1], [2, 3, 4]]
    assert buckets_of(costs, 1) == [[0, 1, 2, 3, 4]]
    assert sorted(i for group in buckets_of(costs, 5) for i in group) == [0, 1, 2, 3, 4]


def argon(n, rng, side=5.3):
    atoms = bulk("Ar", "fcc", a=side, cubic=True).repeat((n, 1, 1))
    atoms.positions += 0.05 * rng.standard_normal(atoms.positions.shape)
    return labelled(atoms, rng, columns=np.arange(3))


def test_epochs_visit_every_frame_once_and_repeat_exactly():
    rng = np.random.default_rng(0)
    frames = [argon(n, rng) for n in (1, 2, 1, 3, 2, 1, 1)] + [argon(1, rng, side=4.2)]

    def make(seed):
        return Batches(frames, 5.0, 3, buckets=2, columns=2, seed=seed)

    batches = make(4)
    assert len(batches.shapes) == 2
    for epoch in (0, 1):
        packs = batches.plan(epoch)
        assert sorted(i for p in packs for i in p.frames) == list(range(8))
        assert packs == make(4).plan(epoch)
        for pack in packs:
            batch = batches.assemble(pack, epoch)
            assert batch.index.shape == (pack.shape.atoms, pack.shape.slots)
            assert batch.sizes.sum() == batch.atoms.sum() == sum(frames[i].n_atoms for i in pack.frames)
    assert batches.plan(0) != batches.plan(1) and batches.plan(0) != make(5).plan(0)
    pack = batches.plan(0)[0]
    np.testing.assert_array_equal(batches.assemble(pack, 3).columns, make(4).assemble(pack, 3).columns)
    drawn = np.stack([batches.assemble(pack, e).columns[:, 0] for e in range(60)])
    counts = np.bincount(drawn.ravel() - drawn.min(), minlength=3)
    assert counts.sum() == 120 and counts.min() > 20, "columns are drawn evenly, and no column twice"
    assert (drawn[:, 0] != drawn[:, 1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("slab", [False, True])
def test_padding_changes_nothing(slab):
    """Lennard-Jones in a cell smaller than the cutoff, and in a slab."""
    potential = LennardJones(0.01, 3.4, 6.0, "switch", switch_start=5.0)
    structure = bulk("Ar", "fcc", a=5.2, cubic=slab)
    structure.positions += 0.1
    if slab:
        structure.center(vacuum=3.0, axis=2)
        structure.pbc = (True, True, False)
    pbc = tuple(bool(x) for x in structure.pbc)
    frame = Frame(structure.numbers, structure.positions, structure.cell.array, pbc)
    near, n, extra = neighborhood(frame, 6.0), len(structure), 7
    shape = Shape(1 + extra, n + extra, len(near.owner) + extra, near.slots + extra)
    with double_precision():
        said = jax.jit(predictions, static_argnames="needs")(
            potential, union([frame], [near], shape), needs=frozenset(("energy", "forces"))
        )
    expected = evaluate(potential, structure)
    assert float(said["energy"][0]) == pytest.approx(float(expected["energy"]), abs=1e-12)
    np.testing.assert_allclose(said["forces"][:n], expected["forces"], atol=1e-12)


def test_prefetching_keeps_order_and_errors():
    assert list(prefetched((lambda i=i: i) for i in range(20))) == list(range(20))

    def broken():
        raise InputError("frame 3")

    with pytest.raises(InputError, match="frame 3"):
        list(prefetched([lambda: 1, broken]))
    stream = prefetched((lambda i=i: i) for i in range(10**9))
    assert next(stream) == 0
    stream.close()
