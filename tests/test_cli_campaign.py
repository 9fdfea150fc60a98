"""The campaign over many compounds and the comparison with dynamics: order, files, restart, failures, tables, reports."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from jaxmd_thermal.cli import campaign, main
from jaxmd_thermal.cli.settings import settings_for
from jaxmd_thermal.errors import InputError, UnstableError
from jaxmd_thermal.io.hdf5 import write_arrays
from jaxmd_thermal.io.phonondb import PER_MODEL, STRUCTURES, chosen, published, read_compounds
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.grid import make_grid

FACE_CENTRED = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def call(*arguments):
    """Exit code of the command, run in this process."""
    with pytest.raises(SystemExit) as exit:
        main([str(a) for a in arguments])
    return exit.value.code or 0


def fake_data(folder):
    """A data folder with two "compounds": fcc argon, and simple cubic argon, which is unstable. DFT values are made up."""
    folder.mkdir()
    cells = {
        "Ar": (bulk("Ar", "fcc", a=5.3, cubic=True), FACE_CENTRED, 225, 2, 2),
        "ArX": (bulk("Ar", "sc", a=3.4), None, 221, 4, 3),
    }
    columns = {k: {} for k in ("mp_id", "qpoints", "weights", "temperatures", "kappa_TOT_ave", "mode_kappa_TOT_ave")}
    frames = []
    for i, (name, (atoms, primitive, number, second, third)) in enumerate(cells.items()):
        geometry = symmetry.geometry_of(
            atoms.copy(), (second,) * 3, None, np.eye(3) if primitive is None else primitive
        )
        crystal = symmetry.crystal_of(symmetry.phonopy_object(geometry).primitive)
        grid = make_grid(crystal.lattice, (2, 2, 2), symmetry.point_group(crystal))
        ir = grid.irreducible
        modes = 0.1 / 3 * np.ones((len(ir), 3)) * grid.weights[:, None]
        values = (f"mp-{i + 1}", grid.qpoints[ir].tolist(), grid.weights.tolist(), [300.0], [0.1], [modes.tolist()])
        for column, value in zip(columns.values(), values):
            column[str(i)] = value
        atoms.info = {
            "mp_id": f"mp-{i + 1}", "name": name, "symm.no": number, "q_mesh": np.array([2, 2, 2]),
            "fc2_supercell": second * np.eye(3, dtype=int), "fc3_supercell": third * np.eye(3, dtype=int),
        }  # fmt: skip
        if primitive is not None:
            atoms.info["primitive_matrix"] = primitive
        frames.append(atoms)
    write(folder / STRUCTURES, frames)
    (folder / "kappas_phononDB_PBE_noNAC.json.gz").write_bytes(gzip.compress(json.dumps(columns).encode()))
    head = "mp_id,formula,sg,kappa_dft,model_key,kappa_ml,srme,censored,imag,broken_sym,freq_w1_THz\n"
    rows = (
        "mp-1,Ar,225,0.1,lj-argon-gk,0.02,0.7,False,False,False,0\nmp-1,Ar,225,0.1,other,0.02,0.3,False,False,False,0\n"
    )
    (folder / PER_MODEL).write_text(head + rows)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return fake_data(tmp_path_factory.mktemp("campaign") / "data")


@pytest.fixture
def data(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(original, tmp_path / "data")


@pytest.fixture
def in_process(monkeypatch):
    """Jobs run in this process instead of Dask's, with `answers` instead of physics; records which were computed."""
    state = SimpleNamespace(answers={}, computed=[])

    class Future:
        def __init__(self, value=None, problem=None):
            self.value, self.status, self.problem = value, "error" if problem else "finished", problem

        def result(self):
            return self.value

        def exception(self):
            return self.problem

    class Client:
        def submit(self, function, job, **_):
            try:
                return Future(function(job))
            except KeyboardInterrupt as error:  # stands for a worker that was killed
                return Future(problem=error)

    @contextmanager
    def client(distributed, settings):
        yield Client()

    def computed(job, folder):
        mp_id = job["compound"].mp_id
        state.computed.append(mp_id)
        answer = state.answers[mp_id]
        if isinstance(answer, BaseException):
            raise answer
        c = job["compound"]
        k = answer * np.ones((1, len(c.dft["weights"]), 3)) / 3 * c.dft["weights"][:, None]
        arrays = {
            "qpoints": c.dft["qpoints"],
            "weights": c.dft["weights"],
            "mode_kappa": k,
            "temperatures": np.array([300.0]),
        }
        write_arrays(folder / "modes-wigner.hdf5", arrays)
        return {"kappa": answer, "populations": answer, "coherences": 0.0, "mode_file": "modes-wigner.hdf5"}

    monkeypatch.setattr(campaign, "_client", client)
    monkeypatch.setattr(campaign, "_distributed", lambda: SimpleNamespace(as_completed=lambda futures: futures))
    monkeypatch.setattr(campaign, "_computed", computed)
    return state


CAMPAIGN = ["campaign", "phonondb103", "--data", "data", "--potential", "lj-argon-gk", "--out", "o"]


def table(folder):
    with (folder / "table.csv").open() as file:
        return {row["mp_id"]: row for row in csv.DictReader(file)}


def test_table_and_metrics(data, in_process, capsys):
    in_process.answers = {"mp-1": 0.06, "mp-2": UnstableError("3 of 24 modes are imaginary")}
    assert call(*CAMPAIGN) == 0
    rows = table(data.parent / "o")
    first, second = rows["mp-1"], rows["mp-2"]
    # All modes alike: the symmetric error of the modes is that of their sum, 2 * 0.04/0.16.
    for key, expected in (("kappa", 0.06), ("kappa_dft", 0.1), ("sre", 0.5), ("srme", 0.5), ("srd", -0.5),
                          ("published_kappa", 0.02), ("published_srme", 0.7), ("published_median_srme", 0.5)):  # fmt: skip
        assert float(first[key]) == pytest.approx(expected), key
    assert (second["kappa"], second["srd"], second["sre"], second["srme"]) == ("", "", "2", "2")
    assert first["dtype"] == "float64"
    assert (
        "imaginary" in second["failed"]
        and second["error"] == ""
        and first["jax"]
        and float(first["peak_memory_GB"]) > 0
    )
    document = json.loads((data.parent / "o/campaign.json").read_text())
    assert document["means"] == pytest.approx({"srme": 1.25, "sre": 1.25, "srd": -0.5}) and document["failed"] == 1
    page = (data.parent / "o/report.html").read_text()
    assert (
        "3 of 24 modes are imaginary" in page
        and "2 of 2 compounds, 1 failed" in page
        and "<h3>Conductivities</h3>" in page
    )
    assert "jaxmd-thermal campaign phonondb103 --data data" in page
    assert "mean of 2 of 2 compounds: SRME 1.2500" in capsys.readouterr().out


def test_done_compounds_are_skipped_and_errors_are_tried_again(data, in_process):
    in_process.answers = {"mp-1": 0.06, "mp-2": RuntimeError("no memory")}
    call(*CAMPAIGN)
    assert (
        in_process.computed == ["mp-1", "mp-2"]
        and table(data.parent / "o")["mp-2"]["error"] == "RuntimeError: no memory"
    )
    in_process.answers["mp-2"] = KeyboardInterrupt("killed")  # the worker dies
    call("resume", "o")
    assert in_process.computed == ["mp-1", "mp-2", "mp-2"]
    row = table(data.parent / "o")["mp-2"]
    assert row["error"] == "the worker died: killed" and row["srme"] == "2"
    in_process.answers["mp-2"] = 0.1
    call(*CAMPAIGN)
    assert in_process.computed[3:] == ["mp-2"] and float(table(data.parent / "o")["mp-2"]["srme"]) == pytest.approx(
        0, abs=1e-12
    )
    call(*CAMPAIGN)
    assert len(in_process.computed) == 4
    (data.parent / "o/report.html").unlink()
    assert call("report", "o") == 0 and "phonondb103" in (data.parent / "o/report.html").read_text()


def test_a_campaign_grows_in_pieces(data, in_process, capsys):
    in_process.answers = {"mp-1": 0.06, "mp-2": 0.1}
    call(*CAMPAIGN, "--compounds", "Ar")
    assert in_process.computed == ["mp-1"] and list(table(data.parent / "o")) == ["mp-1"]
    call(*CAMPAIGN, "--compounds", "mp-2", "Ar")
    assert in_process.computed == ["mp-1", "mp-2"] and len(table(data.parent / "o")) == 2
    assert call(*CAMPAIGN, "--protocol", "ksrme") == 2
    assert "protocol leaderboard there, ksrme here" in capsys.readouterr().err


def test_results_of_a_worker_without_our_disk_are_kept(data, in_process):
    compound = read_compounds(data)[0]
    settings = SimpleNamespace(potential="lj-argon-gk", protocol="leaderboard", dtype="float64")
    record = campaign._empty(compound, settings) | {"kappa": 0.1, "mode_file": "modes-wigner.hdf5"}
    campaign._keep(data.parent / "far/mp-1", record, b"modes")
    assert (data.parent / "far/mp-1/modes-wigner.hdf5").read_bytes() == b"modes"
    assert json.loads((data.parent / "far/mp-1/result.json").read_text())["kappa"] == 0.1


def test_other_q_points_than_the_reference_are_a_failure(data, in_process):
    in_process.answers = {"mp-1": 0.06, "mp-2": 0.06}
    call(*CAMPAIGN)
    with h5py.File(data.parent / "o/compounds/mp-1/modes-wigner.hdf5", "a") as file:
        file["qpoints"][...] = file["qpoints"][...] + 0.1
    call(*CAMPAIGN)
    row = table(data.parent / "o")["mp-1"]
    assert row["srme"] == "2" and "q-points are not those of the reference" in row["failed"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (CAMPAIGN[:2], r"campaign needs --data, --potential"),
        (
            [*CAMPAIGN[:3], "nowhere", *CAMPAIGN[4:]],
            r"'nowhere' holds no phononDB-PBE-structures.extxyz and no .*k_SRME",
        ),
        ([*CAMPAIGN, "--compounds", "Arr"], r"--compounds: there is no 'Arr', did you mean 'Ar'"),
        ([*CAMPAIGN, "--protocol", "quick"], r"--protocol is 'quick': it must be 'leaderboard' or 'ksrme'"),
        ([*CAMPAIGN, "--workers", "0"], r"--workers is 0"),
        (["campaign", "other"], r"--name is 'other': it must be 'phonondb103'"),
        ([*CAMPAIGN[:-4], "--potential", "lj-argn"], r"unknown potential 'lj-argn'"),
    ],
)
def test_errors(data, arguments, message, capsys):
    assert call(*arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (data.parent / "o").exists()


def test_damaged_data_are_named(data):
    kappas = data / "kappas_phononDB_PBE_noNAC.json.gz"
    kappas.write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"noNAC.json.gz' is not readable .* fetch it again"):
        read_compounds(data)
    frames = data / STRUCTURES
    frames.write_text(frames.read_text().replace("q_mesh", "q_mush", 1))
    kappas.write_bytes(gzip.compress(json.dumps({k: {} for k in ("mp_id", "qpoints", "weights", "temperatures",
                                                                 "kappa_TOT_ave", "mode_kappa_TOT_ave")}).encode()))  # fmt: skip
    with pytest.raises(InputError, match=r"structure 1: the entry 'q_mesh' is missing"):
        read_compounds(data)


def test_dask_missing(data, monkeypatch, capsys):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "distributed":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert call(*CAMPAIGN) == 2
    assert "pip install 'jaxmd-thermal[campaign]'" in capsys.readouterr().err


def test_the_103_solids(shared, root):
    """The published data: order of work, the protocol's cells, and q-points in the order of our own grid."""
    folder = shared / "data/phonondb103"
    compounds = read_compounds(folder)
    assert len(compounds) == 103 and [c.name for c in compounds[:8]] == "NaCl LiBr KBr LiF MgO KCl CaO PbTe".split()
    assert [c.label for c in compounds[8:15]] == [
        "GaAs zincblende", "SiC zincblende", "BeO zincblende", "ZnTe zincblende", "BeO wurtzite", "AlN wurtzite", "ZnO wurtzite"
    ]  # fmt: skip
    assert [c.label for c in chosen(compounds, ["BeO", "AlN-wurtzite"])] == [
        "BeO zincblende",
        "BeO wurtzite",
        "AlN wurtzite",
    ]
    expected = {"rocksalt": (4, 4, 2, 2, (19, 19, 19)), "zincblende": (4, 4, 2, 2, (19, 19, 19)),
                "wurtzite": (5, 3, 3, 2, (19, 19, 15))}  # fmt: skip
    for c in compounds:
        a, b, x, y, mesh = expected[c.kind]
        assert np.array_equal(c.supercell, np.diag([a, a, b])) and np.array_equal(c.fc3_supercell, np.diag([x, x, y]))
        assert c.mesh == mesh and c.dft_nac is not None
    for c in (compounds[0], compounds[12]):
        geometry = symmetry.geometry_of(c.atoms, (1, 1, 1), None, c.primitive)
        crystal = symmetry.crystal_of(symmetry.phonopy_object(geometry).primitive)
        grid = make_grid(crystal.lattice, c.mesh, symmetry.point_group(crystal))
        off = grid.qpoints[grid.irreducible] - c.dft["qpoints"]
        assert np.abs(off - np.rint(off)).max() < 1e-9 and np.array_equal(grid.weights, c.dft["weights"])
    asked = settings_for("campaign", {}, root / "experiments/phonondb103/config.toml").compounds
    assert chosen(compounds, asked) == compounds[:15]
    each, means = published(folder, "nequix-mp-1")
    assert each["mp-22862"]["kappa"] == 6.9048 and each["mp-22862"]["models"] == 40 and means["srme"] == 0.4461


def test_cores_are_shared_out():
    assert [campaign.share_of([0, 1, 2, 3, 6], worker, 2) for worker in (0, 1)] == [[0, 2, 6], [1, 3]]
    assert [campaign.share_of([4, 5], worker, 3) for worker in (0, 1, 2)] == [[4], [5], [4]]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes to cores")
def test_jobs_run_on_the_cores_of_their_worker():
    distributed = pytest.importorskip("distributed")
    mine = sorted(os.sched_getaffinity(0))

    def cores(_):
        return sorted(os.sched_getaffinity(0))

    with campaign._client(distributed, SimpleNamespace(scheduler="local", workers=2)) as client:
        addresses = list(client.scheduler_info()["workers"])
        found = [client.submit(cores, a, workers=[a]).result() for a in addresses]
    expected = [campaign.share_of(mine, worker, 2) for worker in (0, 1)]
    assert sorted(found) == sorted(expected)


@pytest.mark.slow
def test_real_jobs_over_dask(data, monkeypatch):
    """Both compounds by real workers; a worker is killed in the midst of the first, which is finished all the same."""
    pytest.importorskip("distributed")
    import signal
    import threading
    import time

    import psutil

    def kill_one():
        for _ in range(600):
            time.sleep(0.2)
            for child in psutil.Process(os.getpid()).children(recursive=True):
                started = data.parent / "o/compounds/mp-1"
                if started.exists() and child.memory_info().rss > 3e8 and not (started / "result.json").exists():
                    child.send_signal(signal.SIGKILL)
                    return

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    assert call(*CAMPAIGN) == 0
    rows = table(data.parent / "o")
    assert 0 < float(rows["mp-1"]["kappa"]) < 0.1 and not rows["mp-1"]["failed"] and not rows["mp-1"]["error"]
    assert "imaginary" in rows["mp-2"]["failed"] and rows["mp-2"]["srme"] == "2"
    assert float(rows["mp-1"]["cpu_seconds"]) > 0


# compare


def test_compare_puts_everything_into_one_report(tmp_path, monkeypatch):
    """The parts by stand-ins that write what the verbs write; what is tested is what `compare` asks of them and merges."""
    from jaxmd_thermal.cli import commands, lattice

    monkeypatch.chdir(tmp_path)
    asked = {}
    tensor = np.eye(3)

    def entry(method, value, error, **more):
        kappa = {"tensor": (value * tensor).tolist(), "tensor_stderr": None if error is None else (error * tensor).tolist(),
                 "isotropic": value, "stderr": error}  # fmt: skip
        return {"method": method, "temperature_K": 50.0, "thermal_conductivity_W_mK": kappa, "details": {},
                "verdict": {"converged": True, "text": "converged"}} | more  # fmt: skip

    def keep(verb, typed, results, n_atoms):
        asked[verb + typed.get("populations", "")] = typed
        document = {
            "results": results,
            "n_atoms": n_atoms,
            "volume_A3": 38.8 * n_atoms,
            "settings": {},
            "versions": {},
            "seed": 0,
        }
        out = tmp_path / typed["out"]
        out.mkdir(parents=True)
        (out / "results.json").write_text(json.dumps(document))

    def run_lattice(verb, typed, config, *, dry_run=False, show=True):
        populations = typed.get("populations", "quantum")
        details = {"settings": {"populations": populations, "mesh": [3, 3, 3]}}
        values = {"wigner": 0.4, "rta": 0.39, "lbte": 0.5}
        results = [entry(m, values[m], None, details=details, mode_file=f"modes-{m}.hdf5") for m in typed["method"]]
        keep(verb, typed, results, 1)
        free = np.array([1.0, 40.0, 45.0])
        modes = {
            "frequencies": np.array([[1.0, 1.5, 2.0]]), "weights": np.array([1]), "temperatures": np.array([50.0]),
            "group_speed": np.array([[5.0, 5.0, 5.0]]), "gamma_total": (5.0 / (4 * np.pi * free))[None, None],
            "gamma_normal": np.ones((1, 1, 3)), "gamma_umklapp": np.ones((1, 1, 3)),
            "mode_kappa": np.array([[[0.01, 0.3, 0.09]]]), "velocity_operator": np.ones((1, 3, 3, 3), complex),
        }  # fmt: skip
        for method in typed["method"]:
            write_arrays(
                tmp_path / typed["out"] / f"modes-{method}.hdf5",
                modes,
                {"settings": details["settings"], "volume_A3": 38.8},
            )

    def run_dynamics(verb, typed, config, *, dry_run=False, show=True):
        keep(verb, typed, [entry(verb, {"green-kubo": 0.45, "hnemd": 0.44}[verb], 0.02)], 256)

    monkeypatch.setattr(lattice, "run", run_lattice)
    monkeypatch.setattr(commands, "run", run_dynamics)
    command = ["compare", "argon", "--potential", "lj-argon-gk", "--temperature", "50", "--supercell", "4", "4", "4", "--steps",
               "5000", "--mesh", "3", "3", "3", "--out", "c"]  # fmt: skip
    assert call(*command) == 0
    quantum, classical = asked["wigner"], asked["wignerclassical"]
    assert quantum["protocol"] == "positions" and quantum["isotopes"] is False and quantum["mesh"] == (3, 3, 3)
    assert classical["force_constants"] == "c/lattice-quantum/force_constants" and "potential" not in classical
    assert asked["green-kubo"]["steps"] == 5000 and asked["green-kubo"]["supercell"] == (4, 4, 4)
    # 0.2 over the mean free path (45 Å) up to which 90 % of the heat is carried.
    assert asked["hnemd"]["driving_force"] == ((0.004, 0.0, 0.0),)
    document = json.loads((tmp_path / "c/results.json").read_text())
    assert [r["method"] for r in document["results"]] == ["wigner", "rta", "lbte"] * 2 + ["green-kubo", "hnemd"]
    assert {r["n_atoms"] for r in document["results"]} == {1, 256} and document["n_atoms"] is None
    assert document["results"][3]["mode_file"] == "lattice-classical/modes-wigner.hdf5"
    page = (tmp_path / "c/report.html").read_text()
    for text in ("Lattice dynamics beside molecular dynamics", "Wigner, classical", "BTE, full, quantum", "256 atoms",
                 "-2.5 σ (-11 %)", "1 atoms, mesh 3×3×3"):  # fmt: skip
        assert text in page, text
