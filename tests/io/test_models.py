"""Potentials by name, from files and from exported folders: the same bits, or an error that says what is wrong."""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from ase.build import bulk

from jaxmd_thermal import evaluate, load_potential, save_potential
from jaxmd_thermal.errors import InputError, OutputError
from jaxmd_thermal.io.models import REGISTRY
from jaxmd_thermal.potentials import EquivariantNetwork, LennardJones, Nequix, Potential, So3krates, StillingerWeber


@pytest.mark.parametrize(
    "name, epsilon, sigma, cutoff, truncation, start",
    [
        ("lj-argon-cut25", 0.0103206594, 3.4, 8.5, "cut", None),
        ("lj-argon-jmd25", 0.0104, 3.405, 8.5125, "switch", 6.81),
        ("lj-argon-gk", 0.01042, 3.405, 10.5, "switch", 9.0),
    ],
)
def test_argon_sets(name, epsilon, sigma, cutoff, truncation, start):
    p = load_potential(name)
    assert (float(p.epsilon), float(p.sigma)) == (epsilon, sigma)
    assert p.cutoff == pytest.approx(cutoff, rel=1e-15) and p.truncation == truncation
    assert p.switch_start == (None if start is None else pytest.approx(start, rel=1e-15))
    with pytest.raises(InputError, match="does not know Si; it knows Ar"):
        evaluate(p, bulk("Si"))


def test_every_built_in_name_loads():
    for name in REGISTRY:
        assert load_potential(name).cutoff > 0


def test_a_potential_is_returned_as_it_is():
    p = load_potential("lj-argon-gk")
    assert load_potential(p) is p


@pytest.mark.parametrize(
    "typed, meant", [("lj-argon-gkk", "lj-argon-gk"), ("sw_silicon", "sw-silicon"), ("SW-silicon", "sw-silicon")]
)
def test_unknown_name_names_the_nearest(typed, meant):
    with pytest.raises(InputError, match=f"unknown potential '{typed}', did you mean '{meant}'.*lj-argon-cut25"):
        load_potential(typed)


def test_wrong_kind_of_argument():
    with pytest.raises(InputError, match="loaded from int"):
        load_potential(3)


def test_from_a_file(tmp_path):
    file = tmp_path / "ar.toml"
    file.write_text(
        'type = "LennardJones"\nepsilon = 0.01042\nsigma = 3.405\ncutoff = 10.5\n'
        'truncation = "switch"\nswitch_start = 9.0\n'
    )
    p, q = load_potential(file), load_potential("lj-argon-gk")
    assert p.cutoff == q.cutoff and p.switch_start == q.switch_start and np.asarray(p.epsilon) == np.asarray(q.epsilon)
    for text, message in [
        ('type = "LenardJones"', "did you mean 'LennardJones'"),
        ('type = "LennardJones"\nepsilon = 1.0\nsgima = 1.0', "no option 'sgima', did you mean 'sigma'"),
        ('type = "LennardJones"\nepsilon = 1.0', "sigma"),
        ("type = ", "cannot read the potential"),
        ('type = "StillingerWeber"\nepsilon = 2.0', "takes no options"),
    ]:
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            load_potential(file)
    (tmp_path / "model.xyz").write_text("")
    with pytest.raises(InputError, match=r"only \.nqx weights and \.toml"):
        load_potential(tmp_path / "model.xyz")


class Boom:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "model.pth", "model.nqx", "model.toml", "model"])
@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_pickles_are_never_loaded(name, kind, tmp_path):
    file = tmp_path / name
    if kind == "pickle":
        file.write_bytes(pickle.dumps(Boom()))
    else:  # as PyTorch writes them
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("data.pkl", pickle.dumps(Boom()))
    with pytest.raises(InputError, match=r"could run any code.*save plain weights there"):
        load_potential(file)


def test_a_text_pickle_is_known_by_its_name(tmp_path):
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(Boom(), protocol=0))
    with pytest.raises(InputError, match="could run any code"):
        load_potential(tmp_path / "old.pkl")


def test_a_folder_without_a_potential(tmp_path):
    with pytest.raises(InputError, match=r"holds no potential: needed is potential\.json .*hyperparameters\.json"):
        load_potential(tmp_path)


def test_a_published_name_is_suggested_too():
    with pytest.raises(InputError, match="unknown potential 'nequix-mp1', did you mean 'nequix-mp-1'"):
        load_potential("nequix-mp1")


# Our own format


def mixture():
    epsilon = np.array([[0.01, 0.012], [0.012, 0.015]])
    return LennardJones(epsilon, 3.4, 8.5, "switch", switch_start=7.0, species=(18, 36))


def networks():
    return {
        "equivariant": lambda: EquivariantNetwork.create(
            0, ["Si", "Ge"], 4.5, 2, channels=4, references={"Si": -1 / 3}
        ),
        "nequix": lambda: Nequix.create(0, ["Si", "C"], 4.5, channels=(4, 3), layers=2, l_edge=1, hidden=(8,)),
        "so3krates": lambda: So3krates.create(
            0, ["Sn", "Se"], 4.5, 2, features=12, heads=4, references={"Sn": -1e5 / 3}
        ),
    }


POTENTIALS = {
    **{name: build for name, (build, _) in REGISTRY.items()},
    "mixture": mixture,
    **networks(),
    "sum": lambda: networks()["equivariant"]() + StillingerWeber.silicon() + mixture(),
}


def same_bits(p, q):
    (leaves_p, tree_p), (leaves_q, tree_q) = jax.tree.flatten(p), jax.tree.flatten(q)
    assert tree_p == tree_q and hash(tree_p) == hash(tree_q)  # else every loaded potential would be compiled anew
    for a, b in zip(leaves_p, leaves_q, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.mark.parametrize("name", POTENTIALS)
def test_round_trip(name, tmp_path):
    p = POTENTIALS[name]()
    folder = save_potential(p, tmp_path / "deep" / "exported")
    q = load_potential(str(folder))
    assert type(q) is type(p)
    same_bits(p, q)
    # No folder, user or host is told to whoever gets the files.
    for file in folder.rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()
    document = json.loads((folder / "potential.json").read_text())
    assert document["units"]["energy"] == "eV" and document["written_with"].keys() == {"jaxmd_thermal", "jax", "numpy"}
    assert [p.name for p in folder.parent.iterdir()] == ["exported"]


def test_round_trip_of_other_precisions(tmp_path):
    p = jax.tree.map(lambda x: np.asarray(x, np.float32), networks()["equivariant"]())
    same_bits(p, load_potential(save_potential(p, tmp_path / "f32")))
    on_device = jax.tree.map(jax.numpy.asarray, p)
    same_bits(p, load_potential(save_potential(on_device, tmp_path / "device")))


def test_an_export_is_not_overwritten_by_chance(tmp_path):
    folder = save_potential(load_potential("lj-argon-gk"), tmp_path / "p")
    with pytest.raises(InputError, match=r"exists already: choose another folder, or save_potential.*overwrite=True"):
        save_potential(mixture(), folder)
    save_potential(mixture(), folder, overwrite=True)
    same_bits(load_potential(folder), mixture())
    assert [p.name for p in tmp_path.iterdir()] == ["p"]
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="exists and holds no exported potential"):
        save_potential(mixture(), tmp_path / "other", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_potential(mixture(), tmp_path / "file" / "p")


def test_what_cannot_be_exported(tmp_path):
    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Mine(Potential):
        k: float

    for bad, message in [
        (Mine(1.0), "this object is Mine, which cannot be exported"),
        (Mine(1.0) + mixture(), "parts/0 is Mine"),
        (LennardJones(np.array(1j), 3.4, 8.5), "epsilon is ndarray"),
    ]:
        with pytest.raises(InputError, match=message):
            save_potential(bad, tmp_path / "bad")
        assert list(tmp_path.iterdir()) == []


def set_layers(document):
    document["potential"]["fields"]["network"]["fields"]["layers"] = 3


def set_channels(document):
    document["potential"]["fields"]["network"]["fields"]["channels"] = 8


def set_species(document):
    document["potential"]["fields"]["species"] = {"tuple": [14]}


def drop(*keys):
    def change(document):
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return change


def put(value, *keys):
    def change(document):
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


FIELDS = ("potential", "fields")


@pytest.mark.parametrize(
    "change, message",
    [
        (set_layers, r"another architecture: .*should have the shape"),
        (set_channels, r"another architecture: '\['embedding'\]' should have the shape \(2, 8\), found \(2, 4\)"),
        (set_species, r"another architecture: 'references' should have the shape \(1,\), found \(2,\)"),
        (drop(*FIELDS, "cutoff"), r"EquivariantNetwork needs the fields .*missing are \[cutoff\]"),
        (drop(*FIELDS, "network", "fields", "lmax"), r"missing are \[lmax\]"),
        (drop(*FIELDS, "params", "dict", "readout_1"), "'readout_1'|readout_1"),
        (put(1.0, *FIELDS, "skin"), r"unknown are \[skin\]"),
        (
            put("EquivariantNetwrk", "potential", "potential"),
            "unknown class 'EquivariantNetwrk', did you mean 'Equivariant",
        ),
        (put("Layer2", *FIELDS, "network", "module"), "unknown class 'Layer2'"),
        (put("os", *FIELDS, "network", "module"), "unknown class 'os'"),
        (put({"array": "0099"}, *FIELDS, "scale"), "describes no potential .KeyError"),
        (put({"call": "os.system"}, *FIELDS, "scale"), r"keys \['call'\] that is not understood"),
        (
            put([9, 9], "arrays", "0000", "shape"),
            r"'params/embedding' should be float64 of shape \(9, 9\), found float64 of",
        ),
        (put("float32", "arrays", "0000", "dtype"), "'params/embedding' should be float32"),
        (put("0" * 64, "digest"), "are damaged .*checksum"),
        (put(2, "version"), "has version 2 of the format, this program reads 1: install the version .*0.1.0"),
        (put({"energy": "kcal/mol"}, "units"), "is in the units .*kcal/mol"),
        (drop("arrays"), "lacks arrays"),
        (put("something", "format"), "not of the format 'jaxmd_thermal potential'"),
    ],
)
def test_weights_and_architecture_must_belong_together(change, message, tmp_path):
    folder = save_potential(networks()["equivariant"](), tmp_path / "p")
    file = folder / "potential.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=message):
        load_potential(folder)


@pytest.mark.parametrize(
    "change",
    [put(9.0, *FIELDS, "network", "fields", "neighbors"), put(-1.0, *FIELDS, "cutoff"), put("abc", *FIELDS, "cutoff")],
)
def test_numbers_of_the_architecture_are_as_they_were_written(change, tmp_path):
    """They make other energies, and shapes of parameters do not tell."""
    folder = save_potential(networks()["equivariant"](), tmp_path / "p")
    file = folder / "potential.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"was changed|describes no potential|cutoff"):
        load_potential(folder)


def test_damaged_exports(tmp_path):
    folder = save_potential(mixture(), tmp_path / "p")
    text = (folder / "potential.json").read_text()
    (folder / "potential.json").write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="cannot read"):
        load_potential(folder)
    (folder / "potential.json").write_text(text)
    largest = max((p for p in (folder / "parameters").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-1] ^= 1
    largest.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged .*checksum"):
        load_potential(folder)
