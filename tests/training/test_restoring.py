"""Restoring what a fine-tuning has moved: ridge regression in closed form, a network, and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from ase.build import bulk

from jaxmd_thermal import evaluate, hessian_columns, load_potential
from jaxmd_thermal.cli import training
from jaxmd_thermal.cli.training_settings import checked
from jaxmd_thermal.errors import InputError, UnstableError
from jaxmd_thermal.potentials import EquivariantNetwork, LennardJones
from jaxmd_thermal.training import restoring
from jaxmd_thermal.training.data import Frame
from jaxmd_thermal.training.replay import labelled, rattled
from jaxmd_thermal.training.restoring import Errors, restored

from .test_configuration import BASE, trajectory

DEEP = LennardJones(0.0104, 3.4, 5.5, "switch", switch_start=4.0)


def crystals():
    return [bulk("Ar", "fcc", a=5.2), bulk("Ar", "fcc", a=5.4, cubic=True)]


def depth(path, leaf):
    return jax.tree_util.keystr(path) == ".epsilon"


def as_frame(atoms, columns):
    return Frame(
        atoms.numbers,
        atoms.positions,
        atoms.cell.array,
        columns=np.asarray(columns),
        hessian=np.zeros((len(columns), len(atoms), 3)),
    )


def test_ridge_regression_in_closed_form():
    """All that Lennard-Jones says is linear in its depth: the minimum is that of a parabola."""
    frames = labelled(DEEP, rattled(crystals(), 2), dtype="float64")
    tuned = replace(DEEP, epsilon=1.3 * DEEP.epsilon)
    bare = [f.replace(forces=None) for f in frames]
    errors = Errors(energy=0.01, spread=0.003)
    found = restored(tuned, bare, errors=errors, trained=depth, precision="float64")
    slopes = np.array([f.energy / f.n_atoms for f in frames]) / DEEP.epsilon / errors.energy
    wanted = -slopes * 0.3 * DEEP.epsilon
    change = (slopes @ wanted) / (slopes @ slopes + errors.spread**-2)
    assert found.potential.epsilon - tuned.epsilon == pytest.approx(change, rel=1e-9)
    assert found.potential.sigma == DEEP.sigma and found.rows == 4
    left = 1e3 * errors.energy * np.sqrt(np.mean((slopes * change - wanted) ** 2))
    assert found.history[-1]["energy_meV_atom"] == pytest.approx(left, rel=1e-8)
    # Where weights are free to move, what the potential said before comes back, and half of it where half shall stay.
    free = Errors(spread=1e3)
    assert restored(tuned, frames, errors=free, trained=depth, precision="float64").potential.epsilon == pytest.approx(
        DEEP.epsilon, rel=1e-6
    )
    forces = [f.replace(energy=None) for f in frames if f.n_atoms > 1]
    some = restored(tuned, forces, errors=free, forces_kept=0.3, directions=100, trained=depth, precision="float64")
    assert some.potential.epsilon == pytest.approx(1.09 * DEEP.epsilon, rel=1e-6)
    # Along random directions of unit length a change has its own root mean square over components; 200 draws: 5 % of it.
    size = 0.7 * 0.3 * 1e3 * np.sqrt(np.mean(np.concatenate([f.forces.ravel() for f in forces]) ** 2))
    assert some.history[0]["forces_meV_A"] == pytest.approx(size, rel=0.2)
    assert some.history[-1]["forces_meV_A"] < 1e-3


def test_what_is_kept_holds_the_weights():
    """Second derivatives that shall stay pull against energies that shall come back, by their errors."""
    frames = [f.replace(forces=None) for f in labelled(DEEP, rattled(crystals(), 1), dtype="float64")]
    tuned = replace(DEEP, epsilon=1.3 * DEEP.epsilon)
    kept = [as_frame(crystals()[1], range(12))]
    found = {
        error: restored(
            tuned,
            frames,
            kept,
            errors=Errors(hessian=error, spread=1e3),
            columns=12,
            trained=depth,
            precision="float64",
        )
        for error in (1e-9, 1e9)
    }
    assert found[1e-9].rows == 2 + 12
    assert found[1e-9].potential.epsilon == pytest.approx(1.3 * DEEP.epsilon, rel=1e-6)
    assert found[1e9].potential.epsilon == pytest.approx(DEEP.epsilon, rel=1e-6)
    assert found[1e-9].history[-1]["hessian_meV_A2"] < 1e-3
    # The columns move by three tenths of the first potential's; along 240 random directions 4.5 % of it are chance.
    loose = Errors(hessian=1e9, spread=1e3)
    many = restored(tuned, frames, kept * 20, errors=loose, columns=12, trained=depth, precision="float64")
    size = 0.3 * 1e3 * np.sqrt(np.mean(hessian_columns(DEEP, crystals()[1], range(12)) ** 2))
    assert many.history[-1]["hessian_meV_A2"] == pytest.approx(size, rel=0.2)


@pytest.mark.parametrize("precision, kind", [("float32", np.float32), ("mixed", np.float64)])
def test_weights_keep_the_precision_of_the_training(precision, kind):
    frames = labelled(DEEP, rattled(crystals()[:1], 1))
    found = restored(replace(DEEP, epsilon=1.3 * DEEP.epsilon), frames, precision=precision)
    assert {np.asarray(leaf).dtype for leaf in jax.tree.leaves(found.potential)} == {np.dtype(kind)}
    assert found.history[-1]["energy_meV_atom"] < found.history[0]["energy_meV_atom"]


@pytest.mark.slow
def test_a_network_gets_its_energies_back_and_keeps_its_curvature():
    """Random changes of all weights: energies and forces return, second derivatives move far less than without `kept`."""
    base = EquivariantNetwork.create(3, ["Na", "Cl"], 3.6, 2, channels=3, lmax=1, radial=4, hidden=5, block=None)
    rng = np.random.default_rng(0)
    tuned = jax.tree.map(lambda x: x * (1 + 0.02 * rng.standard_normal(np.shape(x))) if np.ndim(x) > 1 else x, base)
    salts = [bulk("NaCl", "rocksalt", a=a) for a in (5.0, 5.3)] + [bulk("NaCl", "cesiumchloride", a=3.3)]
    frames = labelled(base, rattled(salts, 2), dtype="float64")
    atoms = bulk("NaCl", "zincblende", a=5.6)
    kept, columns = [as_frame(atoms, range(6))], range(6)
    found = restored(
        tuned, frames, kept, errors=Errors(energy=1e-4, hessian=1e-3, spread=0.02), precision="float64", columns=6
    )
    before, after = found.history[0], found.history[-1]
    assert len(found.history) == 3
    assert after["energy_meV_atom"] < 0.1 * before["energy_meV_atom"]
    said = np.array([evaluate(found.potential, f.system, ["energy"])["energy"] / f.n_atoms for f in frames])
    known = np.array([f.energy / f.n_atoms for f in frames])
    assert after["energy_meV_atom"] == pytest.approx(1e3 * np.sqrt(np.mean((said - known) ** 2)), rel=1e-6)

    def moved(potential):
        return np.abs(hessian_columns(potential, atoms, columns) - hessian_columns(tuned, atoms, columns)).max()

    alone = restored(tuned, frames, errors=Errors(energy=1e-4, spread=0.02), precision="float64")
    assert moved(found.potential) < 0.2 * moved(alone.potential)
    assert 0 < found.change < 0.05


def test_what_cannot_be_restored_is_refused(monkeypatch):
    frames = labelled(DEEP, rattled(crystals(), 1), dtype="float64")
    with pytest.raises(InputError, match="none of the 2 structures has an energy or forces"):
        restored(DEEP, rattled(crystals(), 1))
    for change, message in (
        ({"rounds": 0}, "rounds is 0"),
        ({"forces_kept": 1.5}, "forces_kept is 1.5"),
        ({"precision": "double"}, "precision is 'double'"),
        ({"trained": lambda path, leaf: False}, "nothing of LennardJones would be trained"),
    ):
        with pytest.raises(InputError, match=message):
            restored(DEEP, frames, **change)
    with pytest.raises(InputError, match="spread is 0"):
        Errors(spread=0)
    with pytest.raises(UnstableError, match=r"rattled copy 0.* is not finite"):
        restored(replace(DEEP, epsilon=np.nan), frames)
    monkeypatch.setattr(restoring, "available_memory", lambda: 100.0)
    with pytest.raises(InputError, match=r"4 rows with 2 weights need .* GB are free: take fewer"):
        restored(DEEP, frames)


def test_a_round_that_makes_it_worse_is_taken_back(monkeypatch):
    frames = labelled(DEEP, rattled(crystals(), 1), dtype="float64")
    tuned = replace(DEEP, epsilon=1.3 * DEEP.epsilon)
    straight = restoring._moved
    monkeypatch.setattr(restoring, "_moved", lambda start, change: straight(start, -change))
    found = restored(tuned, frames, precision="float64")
    assert len(found.history) == 1 and found.change == 0.0
    assert found.potential.epsilon == tuned.epsilon


def test_restoring_by_a_file(tmp_path, monkeypatch, capsys):
    """[restore] after the training; what was there is kept, and the same command again computes nothing."""
    trajectory(tmp_path / "argon.extxyz", 2)
    teacher = load_potential("lj-argon-gk")
    table = {
        "data": {"structures": [str(tmp_path / "argon.extxyz")]},
        "optimizer": {"rate": 1e-4, "weight_decay": 0.0},
        "precision": "float64",
        "restore": {"copies": 1, "forces_kept": 0.0, "rattle": 0.1},
    }
    out = tmp_path / "out"
    # Labels are those of the potential itself: start a little off, so that the training moves it.
    start = replace(teacher, epsilon=1.02 * teacher.epsilon)
    monkeypatch.setattr(training, "_named", lambda name: start)
    settings = checked(BASE | table, "'file'")
    result, forgotten = training.trained(settings, out)
    assert "restored by" in capsys.readouterr().out
    before = load_potential(str(out / "before_restoring"))
    assert abs(before.epsilon - start.epsilon) > 10 * abs(result.potential.epsilon - start.epsilon) > 0
    assert load_potential(str(out / "potential")).epsilon == result.potential.epsilon
    document = json.loads((out / "restored.json").read_text())
    assert document["history"][-1]["energy_meV_atom"] < document["history"][0]["energy_meV_atom"]
    assert set(forgotten) == {"energy_meV_atom", "forces_meV_A", "stress_GPa"}

    training.trained(settings, out, dry_run=True)
    assert f"restoring afterwards: {document['rows']} gradients of 2 weights, 0 of" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"none\.extxyz"):  # before the training, not after it
        training.trained(checked(BASE | table | {"restore": {"structures": "none.extxyz"}}, "'file'"), tmp_path / "new")
    assert not (tmp_path / "new").exists()

    def refused(*args, **kwargs):
        raise AssertionError("restored again")

    monkeypatch.setattr(restoring, "restored", refused)
    again, _ = training.trained(settings, out)
    assert again.potential.epsilon == result.potential.epsilon == load_potential(str(out / "potential")).epsilon
    (out / "restored.json").write_text('{"of"')
    with pytest.raises(AssertionError, match="restored again"):  # a damaged record is no obstacle
        training.trained(settings, out)
    (out / "restored.json").write_text(json.dumps(document))
    with pytest.raises(AssertionError, match="restored again"):
        training.trained(checked(BASE | table | {"restore": {"copies": 2}}, "'file'"), out)
    with pytest.raises(InputError, match=r"restore. needs a potential that knew something before"):
        checked(BASE | {"potential": None, "network": {"cutoff": 4.0}, "restore": {}}, "'file'")
