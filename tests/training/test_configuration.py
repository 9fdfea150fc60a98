"""The TOML files of training: strict, helpful, and enough for a whole training and its evaluation."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from jaxmd_thermal import evaluate, force_constants, load_potential, phonon_errors
from jaxmd_thermal.cli import main, phonon_evaluation, training, training_replay
from jaxmd_thermal.cli.training_settings import checked, load_training
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.io import datasets, models
from jaxmd_thermal.io.ase import builtin_structure
from jaxmd_thermal.training import optimizers
from jaxmd_thermal.training.evaluation import FORCE_CONSTANTS, METRICS, CompoundErrors, Harmonic, PhononTable

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
        ({"network": {"cutoff": 4.0}}, "give one of potential .finetune. and .network. .train."),
        ({"patience": 3}, r"patience needs validation_fraction or \[validation\]"),
        (
            {"losses": {"forces": {"weight": -1}}},
            r"losses.forces.weight: it must be greater than or equal to 0 \(it is -1\)",
        ),
        ({"losses": {"forces": {"weight": {"start": 1, "end": -2}}}}, "losses.forces.weight.end: .* 0 .it is -2"),
        (
            {"losses": {"forces": {"weight": {"start": 1, "ende": 2}}}},
            "'losses.forces.weight.ende', did you mean 'end'",
        ),
        ({"replay": {"energies_only": ["a"], "losses": {"forces": {}}}}, "energies_only needs .replay.losses.energy."),
        ({"restore": {"forces_kept": 2}}, "restore.forces_kept: it must be less than or equal to 1 .it is 2."),
        ({"restore": {"losses": {}}}, "unknown key 'restore.losses'"),
        ({"potential": None, "network": {"cutoff": 4.0}, "repeats": 2}, "repeats needs a potential to start from"),
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
    assert settings.losses.stress is not None and settings.replay is not None and settings.devices == 1
    with pytest.raises(InputError, match="there is no configuration file"):
        load_training(root / "nothing.toml")


def trajectory(path, count, seed=0):
    """Rattled argon with the labels of a potential that is a little off."""
    teacher = load_potential("lj-argon-gk")
    rng = np.random.default_rng(seed)
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


def test_what_a_training_says_at_its_end(tmp_path, monkeypatch, capsys):
    """Forgetting is measured on copies of what was replayed, and said to be."""
    config = tmp_path / "fit.toml"
    config.write_text('potential = "lj-argon-gk"\nepochs = 3\n[data]\nstructures = "no.extxyz"\n[losses.forces]\n')
    result = SimpleNamespace(stopped="finished", steps=4, best_step=3, errors=lambda: [(3, {"forces meV/Å": 2.0})])
    monkeypatch.setattr(training, "trained", lambda *_, **__: (result, {"forces_meV_A": 1.5}))
    assert training.run("finetune", str(config), {}) == 0
    said = capsys.readouterr().out
    assert 'changed on other copies of the replayed structures: {"forces_meV_A": 1.5}' in said
    assert "finished after 4 steps; the potential of step 3" in said and "validation: forces meV/Å 2" in said


@pytest.mark.slow
def test_the_example_of_training_runs_on_such_data(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    trajectory(tmp_path / "data" / "silicon.extxyz", 3)
    example = str(root / "experiments" / "examples" / "train.toml")
    trajectory(tmp_path / "data" / "silicon_validation.extxyz", 2)  # the first two of the other file
    with pytest.raises(InputError, match=r"2 of the structures for validation are trained on as well.*frame 0"):
        training.run("train", example, {}, dry_run=True)
    trajectory(tmp_path / "data" / "silicon_validation.extxyz", 2, seed=1)
    assert training.run("train", example, {}, dry_run=True) == 0
    assert "3 structures of 3 compounds, 2 for validation" in capsys.readouterr().out


def test_validation_takes_the_rows_of_the_manifest_that_are_for_it():
    tables = {"data": {"manifest": "m.csv"}, "validation": {"manifest": "m.csv"}}
    settings = checked(BASE | tables, "'file'")
    assert (settings.data.split, settings.validation.split) == (("train",), ("validation",))
    settings = checked(BASE | tables | {"validation": {"manifest": "m.csv", "split": "test"}}, "'file'")
    assert settings.validation.split == ("test",)


def test_files_of_one_name_are_compounds_of_their_own(tmp_path, monkeypatch):
    """phonopy's usual layout has a folder for each compound; replay takes one structure of each."""
    files = [tmp_path / name / "phonopy_params.yaml" for name in ("NaCl", "LiF")]
    for file in files:
        file.parent.mkdir()
        file.write_text("")
    asked = []
    monkeypatch.setattr(datasets, "read_phonon_frames", lambda path, compound, **_: asked.append(compound) or [])
    with pytest.raises(InputError, match="no structure"):
        training.frames_of(checked(BASE | {"data": {"phonons": str(tmp_path / "*" / "*.yaml")}}, "'file'").data)
    assert asked == ["LiF/phonopy_params", "NaCl/phonopy_params"]


def test_what_is_wrong_with_files_names_them(tmp_path):
    """Unknown elements and files that cannot be read, of the data and of the replay."""
    trajectory(tmp_path / "argon.extxyz", 2)
    data = [str(tmp_path / "argon.extxyz")]
    silicon = BASE | {"potential": None, "network": {"cutoff": 4.0, "species": ["Si"]}, "data": {"structures": data}}
    with pytest.raises(InputError, match=r"argon.extxyz', frame 0.* holds Ar"):
        training.trained(checked(silicon, "'file'"), tmp_path / "out", dry_run=True)
    (tmp_path / "bad.xyz").write_text("nonsense")
    write(tmp_path / "silicon.extxyz", bulk("Si", "diamond", a=5.43))
    frames = training.frames_of(checked(BASE | {"data": {"structures": data}}, "'file'").data)
    for file, message in (
        ("bad.xyz", "bad.xyz' cannot be read as structures"),
        ("silicon.extxyz", "silicon.extxyz', frame 0.* Si"),
    ):
        table = {"structures": str(tmp_path / file), "losses": {"energy": {}}}
        with pytest.raises(InputError, match=message):
            training_replay.replayed(
                load_potential("lj-argon-gk"), checked(BASE | {"replay": table}, "'file'").replay, frames, 3
            )


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


def test_third_derivatives_are_read_where_the_loss_asks_for_them(tmp_path, monkeypatch):
    (tmp_path / "phonopy.yaml").touch()
    asked = []
    monkeypatch.setattr(datasets, "read_phonon_frames", lambda path, third, **_: asked.append(third) or [])
    monkeypatch.setattr(training, "potential_of", lambda settings, data: None)
    data = {"phonons": [str(tmp_path / "phonopy.yaml")]}
    for losses in ({"forces": {}}, {"forces": {}, "third": {}}):
        settings = checked(BASE | {"data": data, "losses": losses}, "'file'")
        with pytest.raises(InputError, match="no structure of the data is left"):
            training.trained(settings, tmp_path / "out")
    assert asked == [False, True]


def test_devices_that_are_not_there():
    import jax

    there = jax.devices()
    assert training.devices_of(0) == there and training.devices_of(1) == there[:1]
    with pytest.raises(InputError, match=f"devices is 99, but there are {len(there)} here: give at most"):
        training.devices_of(99)


def test_schedules_last_as_long_as_the_training(tmp_path, monkeypatch):
    """Three structures make two batches of up to two, so that two epochs are four steps, not three."""
    trajectory(tmp_path / "argon.extxyz", 3)
    lengths = []
    rate = optimizers.rate
    monkeypatch.setattr(optimizers, "rate", lambda *given: lengths.append(given[2]) or rate(*given))
    document = {
        "potential": "lj-argon-gk", "epochs": 2, "batch_size": 2, "buckets": 1, "precision": "float64",
        "data": {"structures": [str(tmp_path / "argon.extxyz")]},
        "losses": {"forces": {"weight": {"start": 2.0, "end": 0.5}}},
        "optimizer": {"rate": 1e-6, "schedule": "linear", "weight_decay": 0.0},
    }  # fmt: skip
    result, _ = training.trained(checked(document, "'file'"), tmp_path / "out", quiet=True)
    assert lengths == [result.steps] == [4]
    weights = [1e3 * e["loss"] / e["forces meV/Å"] for _, e in result.errors("train")]
    np.testing.assert_allclose(weights, [2.0, 1.5, 1.0, 0.5], rtol=1e-9)


def test_repeats_are_trainings_of_the_next_seeds_and_their_mean_is_taken(tmp_path, capsys):
    """Two structures a batch of one: the order, and with it the weights, depends on the seed."""
    from jax.tree import leaves

    trajectory(tmp_path / "argon.extxyz", 5)
    document = BASE | {
        "steps": 3, "precision": "float64", "average": 0.0, "data": {"structures": [str(tmp_path / "argon.extxyz")]},
        "optimizer": {"rate": 1e-3, "weight_decay": 0.0},
    }  # fmt: skip
    single = [
        training.trained(checked(document | {"seed": seed}, "'file'"), tmp_path / f"{seed}", quiet=True)[0].potential
        for seed in (4, 5)
    ]
    assert single[0].epsilon != single[1].epsilon
    settings = checked(document | {"seed": 4, "repeats": 2}, "'file'")
    found, _ = training.trained(settings, tmp_path / "both", quiet=True)
    for mean, one, other in zip(leaves(found.potential), *map(leaves, single), strict=True):
        np.testing.assert_allclose(mean, (np.asarray(one) + np.asarray(other)) / 2, rtol=1e-14)
    saved = load_potential(str(tmp_path / "both" / "potential"))
    assert saved.epsilon == found.potential.epsilon
    capsys.readouterr()
    again, _ = training.trained(settings, tmp_path / "both")
    said = capsys.readouterr()
    assert "training 2 of 2" in said.out and "step 1 of" not in said.err  # both are finished
    assert again.potential.epsilon == found.potential.epsilon


def test_replay_of_energies_alone(tmp_path):
    """What is replayed has the labels that its table says: all of them, or energies; without files it is made of the data."""
    trajectory(tmp_path / "argon.extxyz", 2)
    trajectory(tmp_path / "other.extxyz", 1)
    base = load_potential("lj-argon-gk")
    kept, bare = [str(tmp_path / "argon.extxyz")], [str(tmp_path / "other.extxyz")]
    data = training.frames_of(checked(BASE | {"data": {"structures": kept}}, "'file'").data)
    for files, full in (
        ({}, [True, True]),
        ({"structures": kept, "energies_only": bare}, [True, True, False]),
        ({"energies_only": bare, "rattle": 0.0, "strain": 0.0}, [False]),
        ({"structures": kept, "energies_only": bare, "energies_only_copies": 3}, [True, True, False]),
    ):
        settings = checked(BASE | {"replay": files | {"copies": 2, "losses": {"energy": {}}}}, "'file'").replay
        made, unseen = training_replay.replayed(base, settings, data, 3)
        labels = [(f.energy is not None, f.forces is not None, f.stress is not None) for f in made]
        bare_copies = settings.energies_only_copies or 2
        assert labels == [(True, each, each) for each in full for _ in range(2 if each else bare_copies)]
        assert len({np.asarray(f.positions).tobytes() for f in made}) == (len(made) if settings.rattle else 1)
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


def table_of(**errors):
    """A table with one absolute error for every metric of a compound; None: the evaluation failed."""
    said = Harmonic(500.0, 0.0, 1.0, 1.0, 1.0, True)
    rows = tuple(
        CompoundErrors(name, "PBE", 2, {}, None, said, "no minimum") if error is None else
        CompoundErrors(name, "PBE", 2, dict.fromkeys((*METRICS, *FORCE_CONSTANTS), error), said, said)
        for name, error in errors.items()
    )  # fmt: skip
    return PhononTable(rows, 300.0, "reference", 5)


def test_an_unknown_protocol_is_refused_before_anything_is_computed():
    with pytest.raises(InputError, match="no protocol 'leaderbord', did you mean 'leaderboard'"):
        phonon_evaluation.evaluated(
            {"one": load_potential("sw-silicon")}, {"Si": "nothing.yaml"}, {}, relaxed="leaderbord"
        )


def test_numbers_that_no_compound_gives_are_null(tmp_path):
    phonon_evaluation.written({"one": table_of(NaCl=None)}, tmp_path)
    document = json.loads((tmp_path / "phonons.json").read_text(), parse_constant=pytest.fail)
    assert document["one"]["means_per_atom"]["omega_max_K"] is None


def test_potentials_are_compared_on_what_both_can_do():
    """A failure on the hardest compound is no merit."""
    before, after = table_of(NaCl=2.0, MgB2=100.0, Si=4.0), table_of(NaCl=1.0, MgB2=None, Si=2.0)
    assert (
        after.relative_to(before) == 0.5 and before.relative_to(after) == 2.0 and after.only_one_has(before) == {"MgB2"}
    )
    said = phonon_evaluation.summary_of({"one": before, "two": after})
    assert (
        "two over one: 0.500" in said and "compounds left out, as only one of the two has errors for them: 1)" in said
    )
    assert "left out" not in phonon_evaluation.summary_of({"one": before, "two": before})


def test_nothing_of_one_name_is_dropped(tmp_path, monkeypatch, capsys):
    """Potentials and compounds of two folders; what no folder tells apart is refused by name."""
    for name in ("a/p.yaml", "b/p.yaml", "Ba0.5Sr0.5TiO3.yaml", "Ba0.25Sr0.75TiO3.yaml", "NaCl.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("a/potential", "b/potential"):
        (tmp_path / name).mkdir()
    files = [str(p) for p in sorted(tmp_path.rglob("*.yaml"))]
    seen = []
    monkeypatch.setattr(models, "load_potential", lambda place: place)
    monkeypatch.setattr(
        phonon_evaluation, "evaluated", lambda *given, **_: seen.extend(given[:2]) or {"model": table_of(Si=1.0)}
    )
    places = ["nequix-mp-1", *(str(tmp_path / name) for name in ("a/potential", "b/potential"))]
    assert phonon_evaluation.run(places, files) == 0
    assert seen[0] == dict(zip(("nequix-mp-1", "a/potential", "b/potential"), places, strict=True))
    assert seen[1].keys() == {"a/p", "b/p", "Ba0.5Sr0.5TiO3", "Ba0.25Sr0.75TiO3", "NaCl"}
    assert sorted(map(str, seen[1].values())) == files
    with pytest.raises(InputError, match="would all be called 'nequix-mp-1'"):
        phonon_evaluation.run(["nequix-mp-1"] * 2, files)
    (tmp_path / "a" / "NaCl.yaml").touch()
    (tmp_path / "a" / "manifest.csv").write_text("key,split,functional\nNaCl,train,PBE\n")
    manifest = str(tmp_path / "a" / "manifest.csv")
    with pytest.raises(InputError, match="of the manifest are both called 'NaCl'"):
        phonon_evaluation.compounds_of([str(tmp_path / "NaCl.yaml")], manifest)
    assert len(phonon_evaluation.compounds_of([str(tmp_path / "a" / "NaCl.yaml")], manifest)[0]) == 1


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
