"""The TOML files of training: strict, helpful, and enough for a whole training and its evaluation."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from jaxmd_thermal import evaluate, force_constants, load_potential, phonon_errors
from jaxmd_thermal.cli import main, phonon_evaluation, training
from jaxmd_thermal.cli.training_settings import checked, load_training
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.io.ase import builtin_structure

BASE = {
    "potential": "lj-argon-gk",
    "steps": 2,
    "data": {"structures": ["a.extxyz"]},
    "losses": {"forces": {"weight": 1.0}},
}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"stepps": 3}, r"unknown key 'stepps', did you mean 'steps'\?"),
        ({"losses": {"forces": {"wieght": 2.0}}}, r"unknown key 'losses.forces.wieght', did you mean 'weight'\?"),
        ({"data": {"phonon": ["x"]}}, r"unknown key 'data.phonon', did you mean 'phonons'\?"),
        ({"losses": {"forces": {"kind": "rmse"}}}, r"losses.forces.kind: it must be 'mae'.*'rmse'"),
        ({"losses": {}}, "at least one term"),
        ({"epochs": 3}, "one of steps and epochs"),
        ({"data": {}}, "structures, phonons, displaced or a manifest"),
        ({"optimizer": {"rate": -1.0}}, "optimizer.rate"),
        ({"steps": 0}, "steps"),
        ({"replay": {"energies_only": ["a"], "losses": {"forces": {}}}}, "energies_only needs .replay.losses.energy."),
    ],
)
def test_unknown_keys_and_wrong_values(change, message):
    with pytest.raises(InputError, match=message):
        checked(BASE | change, "'file'")


def test_example_configurations_are_valid(root):
    for name in ("train", "finetune"):
        settings = load_training(root / "experiments" / "examples" / f"{name}.toml")
        assert (settings.network is None) == (name == "finetune")
        assert (settings.potential is None) == (name == "train")
    settings = load_training(
        root / "experiments" / "phonon_finetuning" / "config.toml", {"losses.stress": {"weight": 5.0}}
    )
    assert settings.losses.stress is not None and settings.replay is not None
    with pytest.raises(InputError, match="there is no configuration file"):
        load_training(root / "nothing.toml")


def trajectory(path, count):
    """Rattled argon with the labels of a potential that is a little off."""
    teacher = load_potential("lj-argon-gk")
    rng = np.random.default_rng(0)
    frames = []
    for i in range(count):
        atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
        atoms.positions += 0.1 * rng.standard_normal(atoms.positions.shape)
        said = evaluate(teacher, atoms)
        atoms.info["compound"] = f"argon {i}"
        atoms.calc = SinglePointCalculator(atoms, energy=float(said["energy"]), forces=said["forces"])
        frames.append(atoms)
    write(path, frames)


def test_verbs(tmp_path, capsys):
    """Errors are one line with a remedy; what is typed wins over the file."""
    config = tmp_path / "fit.toml"
    config.write_text('potential = "lj-argon-gk"\nepocs = 3\n[data]\nstructures = "no.extxyz"\n[losses.forces]\n')
    for verb in ("train", "finetune"):
        with pytest.raises(SystemExit) as exit:
            main([verb, str(config)])
        assert exit.value.code == 2 and "did you mean 'epochs'?" in capsys.readouterr().err
    config.write_text(config.read_text().replace("epocs", "epochs"))
    with pytest.raises(SystemExit) as exit:
        main(["finetune", str(config), "--steps", "4", "--dry-run"])
    assert exit.value.code == 2 and "no file is called 'no.extxyz'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", "phonons", "--potential", "sw-silicon"])
    assert exit.value.code == 2 and "--manifest" in capsys.readouterr().err


def test_data_of_which_nothing_is_left(tmp_path):
    trajectory(tmp_path / "argon.extxyz", 2)
    data = {"structures": [str(tmp_path / "argon.extxyz")]}
    assert len(training.frames_of(checked(BASE | {"data": data | {"exclude": ["argon 0"]}}, "'file'").data)) == 1
    for change, message in (
        ({"max_atoms": 3}, "no structure of the data is left .max_atoms is 3.: allow for more"),
        ({"exclude": ["argon 0", "argon 1"]}, "no structure of the data is left .exclude."),
        ({"exclude": ["argon 7"]}, "exclude names .'argon 7'., which are not in the data"),
    ):
        with pytest.raises(InputError, match=message):
            training.frames_of(checked(BASE | {"data": data | change}, "'file'").data)


def test_replay_of_energies_alone(tmp_path):
    """What is replayed has the labels that its table says: all of them, or energies; without files it is made of the data."""
    trajectory(tmp_path / "argon.extxyz", 2)
    trajectory(tmp_path / "other.extxyz", 1)
    base = load_potential("lj-argon-gk")
    kept, bare = [str(tmp_path / "argon.extxyz")], [str(tmp_path / "other.extxyz")]
    data = training.frames_of(checked(BASE | {"data": {"structures": kept}}, "'file'").data)
    for files, full in (
        ({}, [True, True]),
        ({"structures": kept}, [True, True]),
        ({"structures": kept, "energies_only": bare}, [True, True, False]),
        ({"energies_only": bare}, [False]),
        ({"energies_only": bare, "rattle": 0.0, "strain": 0.0}, [False]),
    ):
        settings = checked(BASE | {"replay": files | {"copies": 2, "losses": {"energy": {}}}}, "'file'").replay
        made, unseen = training.replayed(base, settings, data, 3)
        labels = [(f.energy is not None, f.forces is not None, f.stress is not None) for f in made]
        assert labels == [(True, each, each) for each in full for _ in range(2)]
        assert len(unseen) == len(full) and all(f.energy is None for f in unseen)
        again = evaluate(base, made[-1].system)["energy"]
        assert abs(made[-1].energy - again) < 1e-5  # labels are in float32
        assert not np.allclose(unseen[-1].positions, made[-1].positions, atol=1e-3)


@pytest.mark.slow
def test_a_whole_training_by_a_file(tmp_path, monkeypatch, capsys):
    trajectory(tmp_path / "argon.extxyz", 5)
    monkeypatch.setenv("SETS", str(tmp_path))
    config = tmp_path / "fit.toml"
    config.write_text(
        """
potential = "lj-argon-gk"
epochs = 1
precision = "float64"
validation_fraction = 0.2
[data]
structures = "$SETS/*.extxyz"
[losses.forces]
weight = 1.0
[optimizer]
rate = 1e-6
"""
    )
    out = tmp_path / "out"
    assert training.run("finetune", str(config), {"out": str(out)}, dry_run=True) == 0
    said = capsys.readouterr().out
    assert "4 structures of 4 compounds, 1 for validation" in said and "4 batches an epoch" in said and not out.exists()
    assert training.run("finetune", str(config), {"out": str(out)}) == 0
    assert load_potential(str(out / "potential")).cutoff == load_potential("lj-argon-gk").cutoff
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [r["kind"] for r in lines] == ["train"] * 4 + ["validation"]
    assert "finished after 4 steps" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"train needs \[network\]"):
        training.run("train", str(config), {"out": str(out)})


@pytest.mark.slow
def test_tables_and_bands_of_evaluate_phonons(tmp_path, capsys):
    potential = load_potential("sw-silicon")
    force_constants(potential, builtin_structure("silicon"), (1, 1, 1), displacement=None).save(tmp_path / "Si")
    (tmp_path / "Si" / "phonopy.yaml").rename(tmp_path / "Si" / "phonopy_params.yaml")
    with (tmp_path / "manifest.csv").open("w") as file:
        file.write("key,split,functional\nNone,train,PBE\n")
    with pytest.raises(InputError, match="names 'None'"):
        phonon_evaluation.compounds_of((), str(tmp_path / "manifest.csv"))
    with pytest.raises(InputError, match="--manifest"):
        phonon_evaluation.compounds_of((), None)
    out = tmp_path / "out"
    assert phonon_evaluation.run(["sw-silicon"], [str(tmp_path / "Si")], mesh=5, out=str(out)) == 0
    assert "Si" in capsys.readouterr().out
    (row,) = csv.DictReader((out / "phonons.csv").open())
    expected = phonon_errors(potential, tmp_path / "Si", mesh=5)
    assert row["compound"] == "Si" and float(row["omega_max_K"]) == pytest.approx(expected["omega_max_K"], abs=1e-6)
    assert json.loads((out / "phonons.json").read_text())["sw-silicon"]["classification"]["stable"] == 1
    assert (out / "bands_Si.svg").read_text().lstrip().startswith("<?xml")
