"""The verbs of lattice dynamics: files, resumption, reports, errors; numbers against the functions behind them."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from jaxmd_thermal.cli import main
from jaxmd_thermal.cli.crystal import stability
from jaxmd_thermal.cli.progress import Stages
from jaxmd_thermal.cli.settings import settings_for
from jaxmd_thermal.errors import CheckpointError, InputError
from jaxmd_thermal.io.ase import atoms_from
from jaxmd_thermal.io.lattice_directory import LatticeDirectory
from jaxmd_thermal.io.models import load_potential
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.conductivity import thermal_conductivity
from jaxmd_thermal.lattice.density import mesh_phonons
from jaxmd_thermal.lattice.force_constants import ForceConstants, empty_force_constants, force_constants
from jaxmd_thermal.lattice.phonons import Phonons, bands, phonons
from jaxmd_thermal.lattice.quasi_harmonic import QuasiHarmonic
from jaxmd_thermal.lattice.thermodynamics import mean_square_displacements, thermodynamics
from jaxmd_thermal.report import build_report

WIGNER = ["wigner", "argon", "--potential", "lj-argon-gk", "--mesh", "3", "3", "3"]
SMALL = ["--supercell", "2", "2", "2", "--fc3-supercell", "2", "2", "2"]


def call(*arguments):
    """Exit code of the command, run in this process."""
    with pytest.raises(SystemExit) as exit:
        main([str(a) for a in arguments])
    return exit.value.code or 0


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def argon(tmp_path_factory):
    """A finished `wigner` calculation of argon by two methods at two temperatures."""
    pytest.importorskip("phono3py")
    out = tmp_path_factory.mktemp("lattice") / "argon"
    code = call(*WIGNER, *SMALL, "--temperature", "30", "60", "--method", "wigner", "rta", "--sigma", "0.2", "--no-isotopes",
                "--protocol", "none", "--out", out)  # fmt: skip
    assert code == 0
    return out


def forbid(monkeypatch, *names):
    """Computing again is an error."""

    def refuse(*args, **kwargs):
        raise AssertionError("computed again")

    for name in names:
        monkeypatch.setattr(name, refuse)


STAGES = (
    "jaxmd_thermal.lattice.relax.relax",
    "jaxmd_thermal.lattice.force_constants.force_constants",
    "jaxmd_thermal.lattice.conductivity.thermal_conductivity",
)


# wigner


def test_results_are_those_of_the_functions(argon):
    document = json.loads((argon / "results.json").read_text())
    assert {"results", "n_atoms", "volume_A3", "settings", "versions", "seed"} <= set(document)
    assert document["n_atoms"] == 1 and document["volume_A3"] == pytest.approx(atoms_from("argon").get_volume() / 4)
    assert [(r["method"], r["temperature_K"]) for r in document["results"]] == [
        ("wigner", 30.0), ("wigner", 60.0), ("rta", 30.0), ("rta", 60.0)
    ]  # fmt: skip
    constants = ForceConstants.from_phono3py(argon / "force_constants")
    expected = thermal_conductivity(constants, (3, 3, 3), (30.0, 60.0), sigma=0.2, isotopes=False)
    for k, entry in enumerate(document["results"][:2]):
        kappa = entry["thermal_conductivity_W_mK"]
        assert np.allclose(kappa["tensor"], expected.kappa[k], rtol=1e-9, atol=1e-12)
        assert kappa["isotropic"] == pytest.approx(np.trace(expected.kappa[k]) / 3)
        assert kappa["stderr"] is None and kappa["tensor_stderr"] is None
        assert np.allclose(entry["populations_W_mK"]["tensor"], expected.kappa_populations[k], rtol=1e-9, atol=1e-12)
        assert entry["coherences_W_mK"]["isotropic"] == pytest.approx(
            np.trace(expected.kappa_coherences[k]) / 3, abs=1e-12
        )
        assert (
            entry["verdict"]["converged"]
            and "no imaginary modes on the 3x3x3 mesh and along the bands" in entry["verdict"]["text"]
        )
        with h5py.File(argon / entry["phono3py_file"]) as file:  # phono3py's names
            assert np.allclose(file["mode_kappa"][k].sum((0, 1))[:3] / 27, np.diag(expected.kappa[k]), rtol=1e-9)
        with h5py.File(argon / entry["mode_file"]) as file:
            for name in ("qpoints", "weights", "frequencies", "gamma", "mode_kappa", "heat_capacity"):
                assert np.allclose(file[name], getattr(expected, name), rtol=1e-8, atol=1e-12), name
    assert document["settings"]["supercell"] == [2, 2, 2] and document["settings"]["isotopes"] is False
    assert document["settings"]["protocol"] == "none" and document["stages"]["force_constants"]["seconds"] > 0


def test_the_same_command_computes_nothing_again(argon, monkeypatch, capsys):
    before = json.loads((argon / "results.json").read_text())
    forbid(monkeypatch, *STAGES)
    assert call("resume", argon) == 0
    assert json.loads((argon / "results.json").read_text()) == before
    assert "wigner" in json.loads((argon / "command.json").read_text())["line"]
    assert "--no-isotopes" in json.loads((argon / "command.json").read_text())["line"]


def test_another_calculation_in_the_folder_is_refused(argon, capsys):
    assert call(*WIGNER, *SMALL, "--temperature", "31", "--out", argon) == 2
    assert "temperature [30.0, 60.0] there, [31.0] here" in capsys.readouterr().err


def test_a_stage_of_another_structure_is_refused(argon, tmp_path):
    """The same command, but the file behind it has changed meanwhile."""
    folder = LatticeDirectory(argon)
    key = folder.finished["force_constants"]["key"]
    assert folder.force_constants(key) is not None
    with pytest.raises(CheckpointError, match=r'structure: .* there, "other" now'):
        folder.force_constants(key | {"structure": "other"})
    assert LatticeDirectory(tmp_path).force_constants(key) is None


def test_the_relaxed_cell_comes_back_to_the_last_bit(tmp_path):
    folder = LatticeDirectory(tmp_path)
    atoms = bulk("NaCl", "rocksalt", a=5.1 + np.pi / 7)
    atoms.positions[1] += 1e-11
    atoms.set_masses([22.5, 35.1])
    atoms.info["relaxation"] = {"protocol": "leaderboard", "converged": True, "symmetry_kept": True}
    folder.save_relaxed({"structure": "x"}, atoms, {"seconds": 1.0})
    back = folder.relaxed({"structure": "x"})
    assert back is not None and back.info == atoms.info and folder.times == {"relaxation": {"seconds": 1.0}}
    assert np.array_equal(back.positions, atoms.positions) and np.array_equal(back.cell, atoms.cell)
    assert np.array_equal(back.get_masses(), atoms.get_masses())


def test_the_page_shows_what_was_asked_for(argon):
    text = (argon / "report.html").read_text()
    for heading in ("Bands and density of states", "Linewidths", "Cumulative over frequency", "Conductivity of each mode",
                    "Cumulative over mean free path", "Conductivity over temperature", "Tensor"):  # fmt: skip
        assert f"<h3>{heading}</h3>" in text, heading
    assert "Wigner, 60 K" in text and "Green-Kubo" not in text
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text), "no outside resources"
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_a_damaged_mode_file_is_named(argon, tmp_path):
    import shutil

    copy = shutil.copytree(argon, tmp_path / "copy")
    (copy / "modes-wigner.hdf5").write_bytes(b"nothing")
    (copy / "phonons.hdf5").unlink()
    text = build_report(copy).read_text()
    assert "modes-wigner.hdf5 is missing or damaged" in text and "Linewidths" in text  # rta still has its own


def test_files_instead_of_a_potential(argon, in_folder):
    """The force constants of one calculation are the input of the next; the result is the same."""
    code = call("wigner", "--force-constants", argon / "force_constants", "--mesh", "3", "3", "3", "--temperature", "30", "60",
                "--sigma", "0.2", "--no-isotopes", "--out", "again")  # fmt: skip
    assert code == 0
    again = json.loads((in_folder / "again/results.json").read_text())["results"][1]
    first = json.loads((argon / "results.json").read_text())["results"][1]
    assert again["thermal_conductivity_W_mK"]["isotropic"] == pytest.approx(
        first["thermal_conductivity_W_mK"]["isotropic"], rel=1e-9
    )


def test_imaginary_modes_make_the_conductivity_null(argon, in_folder):
    """Force constants with the sign turned: every mode is imaginary, and the result says so instead of a number."""
    constants = ForceConstants.from_phono3py(argon / "force_constants")
    constants.replace(fc2=-np.asarray(constants.fc2)).save(in_folder / "unstable")
    code = call("wigner", "--force-constants", "unstable", "--mesh", "3", "3", "3", "--temperature", "30", "60",
                "--sigma", "0.2", "--no-isotopes", "--out", "o")  # fmt: skip
    assert code == 0
    entry, _ = json.loads((in_folder / "o/results.json").read_text())["results"]
    kappa = entry["thermal_conductivity_W_mK"]
    assert kappa["isotropic"] is None and entry["populations_W_mK"]["isotropic"] is None
    assert np.array(kappa["tensor"]).shape == (3, 3) and not np.any(np.array(kappa["tensor"]) != None)  # noqa: E711
    assert entry["verdict"]["converged"] is False
    assert re.search(r"modes are imaginary, the worst is band \d at q = \(.*\) with -.*i THz", entry["verdict"]["text"])
    page = (in_folder / "o/report.html").read_text()
    assert "imaginary" in page and "not available" in page and "jaxmd-thermal phonons" in page


def soft_at_x(constants, frequency):
    """Force constants with the lowest mode at X at -`frequency` THz; at the supercell's other points nothing changes."""
    images = constants.images2
    vectors = np.array(
        [images.vectors[row[0, 1]] for row in images.multiplicity]
    )  # whole lattice vectors: one atom a cell
    star = np.array([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]])
    shape = np.cos(2 * np.pi * vectors @ star.T).sum(1)[None, :, None, None] * np.eye(3)
    now, change = (
        float(phonons(constants.replace(fc2=x), star[:1], eigenvectors=False).frequencies[0, 0] ** 2)
        for x in (constants.fc2, shape)
    )
    return constants.replace(fc2=constants.fc2 - (now + frequency**2) / change * shape)


def test_modes_that_only_the_bands_show_imaginary(argon, in_folder):
    """X is on the path and on no odd mesh: the crystal is unstable all the same, in both verbs, their files and pages."""
    constants = soft_at_x(ForceConstants.from_phono3py(argon / "force_constants"), 0.3)
    assert mesh_phonons(constants, (3, 3, 3)).phonons.imaginary == []
    constants.save(in_folder / "soft")
    common = ["--force-constants", "soft", "--mesh", "3", "3", "3", "--temperature", "30", "60"]
    assert call("wigner", *common, "--sigma", "0.2", "--no-isotopes", "--out", "w") == 0
    assert call("phonons", *common, "--out", "p") == 0
    for entry in json.loads((in_folder / "w/results.json").read_text())["results"]:
        assert entry["verdict"]["converged"] is False and entry["thermal_conductivity_W_mK"]["isotropic"] is None
        assert re.search(
            r"modes are imaginary, the worst is band 0 at q = .* with -0\.3..i THz", entry["verdict"]["text"]
        )
    found = json.loads((in_folder / "p/phonons.json").read_text())
    worst = min(found["imaginary_modes"], key=lambda x: x["frequency_THz"])
    assert worst["frequency_THz"] == found["lowest_frequency_of_bands_THz"] <= -0.3 + 1e-9
    assert any(np.allclose(x["q"], [0.5, 0.0, 0.5]) for x in found["imaginary_modes"])
    assert f"{worst['frequency_THz']:.3f}i THz" in found["imaginary"]
    assert "! imaginary modes" in (in_folder / "p/report.html").read_text()


def test_long_waves_that_the_supercell_cannot_tell():
    """Imaginary next to Γ, where the bands are extrapolated, is said and leaves the conductivity; anywhere else it does not.
    A supercell of 2 x 2 x 2 cells: its first q-points have 1/2, so that frequencies are known beyond 1/4."""
    geometry = symmetry.geometry_of(bulk("Po", "sc", a=3.0), (2, 2, 2))
    constants = empty_force_constants(geometry, np.zeros((1, 8, 3, 3)))

    def told(*points):
        q = np.array([[0.0, 0.0, x] for x in (*points, 0.5)])
        f = np.array([[-0.2, 1.0, 2.0]] * len(points) + [[1.0, 2.0, 3.0]])
        return stability(constants, Phonons(q, f, None, None, constants.crystal))

    assert told() == ("", " and along the bands")
    unstable, remark = told(0.1, 0.24)
    assert unstable == "" and "imaginary down to -0.200i THz" in remark
    for points in ([0.1, 0.26], [0.0]):
        assert "is band 0 at q" in told(*points)[0]


# phonons


def test_phonons_of_the_same_force_constants(argon, in_folder):
    code = call("phonons", "--force-constants", argon / "force_constants", "--mesh", "4", "4", "4", "--temperature", "20",
                "60", "--grueneisen", "--out", "p")  # fmt: skip
    assert code == 0
    found = json.loads((in_folder / "p/phonons.json").read_text())
    constants = ForceConstants.from_phono3py(argon / "force_constants")
    mesh = mesh_phonons(constants, (4, 4, 4), eigenvectors=True)
    expected = thermodynamics(mesh, [20.0, 60.0])
    assert np.allclose(found["heat_capacity_J_mol_K"], expected.heat_capacity)
    assert np.allclose(found["entropy_J_mol_K"], expected.entropy)
    assert np.allclose(found["free_energy_kJ_mol"], expected.free_energy)
    assert np.allclose(found["mean_square_displacements_A2"], mean_square_displacements(mesh, [20.0, 60.0]))
    assert found["imaginary"] == "" and found["imaginary_modes"] == [] and found["n_atoms"] == 1
    assert 2.0 < found["grueneisen"]["mean"][1] < 4.0 and found["grueneisen"]["linear_expansion_1_K"] is None
    with h5py.File(in_folder / "p/phonons.hdf5") as file:
        spacing = np.diff(file["dos/frequencies"])[0]
        assert np.sum(file["dos/total"]) * spacing == pytest.approx(3.0, rel=0.02)
        notes = json.loads(file.attrs["notes"])
        assert notes["labels"][0][0] == "Γ" and len(notes["labels"]) == len(file["bands/distance"])
    assert json.loads((in_folder / "p/results.json").read_text())["results"] == []
    text = (in_folder / "p/report.html").read_text()
    for heading in ("Bands and density of states", "Heat capacity and entropy", "Mean-square displacements",
                    "Grüneisen parameters", "Thermodynamics"):  # fmt: skip
        assert heading in text
    assert "no imaginary modes" in text
    (in_folder / "p/report.html").unlink()
    assert call("report", "p") == 0 and (in_folder / "p/report.html").exists()


def test_born_charges_are_used_where_they_are_known(in_folder, capsys, monkeypatch):
    """Atoms on springs to their sites, with charges: the field splits longitudinal from transverse modes next to Γ."""
    monkeypatch.setattr("jaxmd_thermal.report.build_report", lambda out: None)
    geometry = symmetry.geometry_of(bulk("NaCl", "rocksalt", a=5.6), (2, 2, 2))
    fc2 = np.zeros((2, 16, 3, 3))
    fc2[[0, 1], symmetry.phonopy_object(geometry).primitive.p2s_map] = 3.0 * np.eye(3)
    charges = {"born": 0.5 * np.array([np.eye(3), -np.eye(3)]), "dielectric": 2.0 * np.eye(3)}
    empty_force_constants(geometry, fc2, nac=charges).save("polar")
    common = ["phonons", "--force-constants", "polar", "--mesh", "2", "2", "2"]
    assert call(*common, "--no-nac", "--dry-run") == 0
    assert "the non-analytic correction is not used (--nac: used)" in capsys.readouterr().out
    assert call(*common, "--out", "with") == 0
    assert "the non-analytic correction is used (--no-nac: not)" in capsys.readouterr().out
    assert json.loads((in_folder / "with/results.json").read_text())["settings"]["nac"] is True
    expected = bands(ForceConstants.from_phono3py("polar")).phonons[0].frequencies
    with h5py.File(in_folder / "with/phonons.hdf5") as file:
        np.testing.assert_allclose(file["bands/frequencies/000"], expected, atol=1e-9)
    assert np.ptp(expected[0, 3:]) > 0.1  # at Γ, approached along the segment; without a field all modes are alike


def test_single_precision_and_quasi_harmonic_expansion(in_folder, monkeypatch):
    """Force constants in float32 are those of the function; their rounding is that of the forces over the displacement. The
    quasi-harmonic function is called from 0 K on, and its values are written and shown."""
    asked = []

    def quasi_harmonic(potential, atoms, supercell, mesh, temperatures, **options):
        asked.append(options["volumes"])
        return QuasiHarmonic(
            temperatures, 37 + 0.01 * temperatures, 0 * temperatures, 2 + 0 * temperatures, 1e-6 * temperatures
        )

    monkeypatch.setattr("jaxmd_thermal.lattice.quasi_harmonic.quasi_harmonic", quasi_harmonic)
    common = ["phonons", "argon", "--potential", "lj-argon-gk", "--protocol", "none", "--supercell", "2", "2", "2"]
    assert call(*common, "--mesh", "2", "2", "2", "--dtype", "float32", "--temperature", "47", "20",
                "--quasi-harmonic", "0.97", "1.08", "--out", "single") == 0  # fmt: skip
    values = json.loads((in_folder / "single/phonons.json").read_text())["quasi_harmonic"]
    assert asked == [(0.97, 1.08)] and values["invalid"] == ""
    np.testing.assert_allclose(values["volume_A3"], [37.47, 37.2])
    np.testing.assert_allclose(values["volumetric_expansion_1_K"], [47e-6, 20e-6])
    with h5py.File(in_folder / "single/phonons.hdf5") as file:
        assert file["quasi_harmonic/temperatures"][0] == 0 and len(file["quasi_harmonic/volume"]) >= 31
    page = (in_folder / "single/report.html").read_text()
    assert "<h3>Quasi-harmonic expansion</h3>" in page and "volume 37.47 Å³" in page
    found = ForceConstants.from_phono3py(in_folder / "single/force_constants").fc2
    single, double = (
        force_constants(load_potential("lj-argon-gk"), atoms_from("argon"), (2, 2, 2), dtype=dtype).fc2
        for dtype in ("float32", "float64")
    )
    assert np.allclose(found, single, rtol=0, atol=1e-12)
    # Each force is a sum of terms of about 0.1 eV/Å that cancel: 1e-7 of them over 0.03 Å, and some room.
    assert 1e-9 < np.max(np.abs(single - double)) < 3e-6


def test_expansion_is_a_tensor_where_the_crystal_is_not_cubic(monkeypatch):
    """What the verb asks for and writes, with the functions behind it replaced: linear only if cubic; not without a relaxed
    cell."""
    from jaxmd_thermal.cli.crystal import Source
    from jaxmd_thermal.cli.lattice import _expansion
    from jaxmd_thermal.lattice.expansion import ThermalExpansion

    kelvin, gamma = np.array([100.0, 300.0]), np.ones((2, 3))
    found = SimpleNamespace(
        mean=lambda t: 2.0 + 0 * t, linear_expansion=lambda t, b: 1e-6 * b + 0 * t, gamma=gamma,
        mesh=SimpleNamespace(frequencies=gamma),
    )  # fmt: skip
    tensor = 1e-6 * np.array([np.diag([1.0, 1.0, 4.0]), np.diag([2.0, 2.0, 5.0])])
    # An isotropic solid of bulk modulus 50 and shear modulus 20 GPa: 3B for a dilation of norm one, 2G for a deviator.
    strains = np.array([np.eye(3) / np.sqrt(3.0), np.diag([1.0, 1.0, -2.0]) / np.sqrt(6.0)])
    home = "jaxmd_thermal.lattice."
    monkeypatch.setattr(home + "grueneisen.grueneisen", lambda *a, **k: found)
    monkeypatch.setattr(home + "grueneisen.bulk_modulus", lambda *a: 30.0)
    monkeypatch.setattr(
        home + "expansion.thermal_expansion",
        lambda *a, **k: ThermalExpansion(a[4], tensor, strains, np.diag([150.0, 40.0]), ()),
    )
    cubic, hexagonal = bulk("Ar", a=5.3), bulk("Ar", "hcp", a=3.7, c=6.1)

    def averages(atoms, protocol):
        source = Source(object(), atoms, protocol, (2, 2, 2))
        return _expansion(settings_for("phonons", {}), source, atoms, None, (2, 2, 2), kelvin)[0]

    for protocol in ("none", "converged"):
        one = averages(cubic, protocol)
        np.testing.assert_allclose(one["linear_expansion_1_K"], 30e-6)
        np.testing.assert_allclose(one["expansion_tensor_1_K"], 30e-6 * np.array([np.eye(3)] * 2))
        np.testing.assert_allclose(one["volumetric_expansion_1_K"], 90e-6)
    one = averages(hexagonal, "converged")
    assert one["linear_expansion_1_K"] is None and one["bulk_modulus_GPa"] == pytest.approx(50.0)
    np.testing.assert_allclose(one["expansion_tensor_1_K"], tensor)
    np.testing.assert_allclose(one["volumetric_expansion_1_K"], [6e-6, 9e-6])
    one = averages(hexagonal, "leaderboard")
    assert one["expansion_tensor_1_K"] is None and "--protocol converged" in one["invalid"]


# Errors and estimates


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["wigner"], r"wigner needs STRUCTURE, --potential, --mesh\. For example: jaxmd-thermal wigner silicon"),
        (WIGNER[:4], r"wigner needs --mesh"),
        (["phonons", "argon"], r"phonons needs --potential"),
        ([*WIGNER, "--method", "wigner", "wigna"], r"--method is 'wigna', did you mean 'wigner'"),
        ([*WIGNER, "--dtype", "half"], r"--dtype is 'half': it must be 'float64' or 'float32'"),
        ([*WIGNER, "--protocol", "fast"], r"--protocol is 'fast': it must be 'none', 'positions', 'converged'"),
        ([*WIGNER, "--sigma", "-1"], r"--sigma is -1.0: it must be greater than 0"),
        ([*WIGNER, "--temperature", "300", "-4"], r"--temperature is -4.0"),
        ([*WIGNER, "--ad", "--displacement", "0.01"], r"--ad takes exact derivatives"),
        ([*WIGNER, "--nac"], r"--nac needs Born charges"),
        (["phonons", *WIGNER[1:], "--quasi-harmonic", "1.1", "0.9"], r"volumes are 1\.1 to 0\.9 with 11 points"),
        ([*WIGNER, "--force-constants", "there"], r"--force-constants brings its own crystal and needs no structure"),
        (["phonons", "--force-constants", "there"], r"no file or folder 'there'"),
        (["wigner", "--force-constants", "there"], r"wigner needs --mesh"),
        ([*WIGNER, "--fc3-supercel", "3", "3", "3"], r"--fc3-supercel.*--fc3-supercell"),
        (
            ["wigner", "argon", "--potential", "lj-argon-gk", "--mesh", "900", "900", "900"],
            r"mesh \(900, 900, 900\) needs about .* GiB .* take a coarser mesh",
        ),
        ([*WIGNER, "--fc3-supercell", "16", "16", "16"], r"fc3 of 1 atoms in a supercell of 16384 needs"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(arguments, message, capsys, in_folder):
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]
    assert not list(in_folder.iterdir()), "a refused command leaves nothing behind"


def test_force_constants_without_third_order(in_folder, capsys):
    geometry = symmetry.geometry_of(atoms_from("argon"), (1, 1, 1))
    empty_force_constants(geometry, np.zeros((1, 4, 3, 3))).save("second")
    assert call("wigner", "--force-constants", "second", "--mesh", "3", "3", "3") == 2
    assert "'second' holds no third order" in capsys.readouterr().err


def test_dry_run_computes_nothing(in_folder, monkeypatch, capsys):
    pytest.importorskip("phono3py")
    forbid(monkeypatch, *STAGES)
    assert call(*WIGNER[:5], "11", "11", "11", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "supercell 3x3x3, 108 atoms, the smallest with 15 Å between its faces" in shown
    assert re.search(r"1 displaced cells of 108 atoms, \d+ of 32 atoms: about", shown)
    assert "1331 q-points" in shown and "for the conductivity" in shown
    assert (
        call("phonons", "argon", "--potential", "lj-argon-gk", "--ad", "--supercell", "2", "2", "2", "--dry-run") == 0
    )
    assert "3 derivatives of 32 atoms" in capsys.readouterr().out
    assert not list(in_folder.iterdir())


def test_default_supercells_have_the_distance_between_faces():
    from jaxmd_thermal.cli.crystal import smallest_supercell

    for atoms in (bulk("Si"), bulk("Si", cubic=True), bulk("ZnO", "wurtzite", a=3.25, c=5.2)):
        for faces in (10.0, 15.0):
            found = smallest_supercell(atoms, faces)
            for axis in range(3):
                others = np.delete(np.asarray(atoms.cell), axis, 0)
                height = abs(np.linalg.det(atoms.cell)) / np.linalg.norm(np.cross(*others))
                assert found[axis] * height >= faces - 1e-3 and (found[axis] - 1) * height < faces


def test_a_slab_is_no_crystal(in_folder, capsys):
    atoms = bulk("Ar", cubic=True)
    atoms.pbc = (True, True, False)
    write("slab.extxyz", atoms)
    assert call("phonons", "slab.extxyz", "--potential", "lj-argon-gk") == 2
    assert "'slab.extxyz' is periodic along ab" in capsys.readouterr().err


def test_options_from_a_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'structure = "silicon"\npotential = "sw-silicon"\ntemperature = 300\nmesh = 9\n[wigner]\nmethod = "rta"\n'
        "isotopes = false\nfc3_supercell = [2, 2, 2]\n"
    )
    s = settings_for("wigner", {}, file)
    assert (s.temperature, s.mesh, s.method, s.isotopes, s.fc3_supercell) == (
        (300.0,),
        (9, 9, 9),
        ("rta",),
        False,
        (2, 2, 2),
    )
    assert settings_for("phonons", {"temperature": (100.0, 200.0)}, file).temperature == (100.0, 200.0)
    file.write_text("[wigner]\nmehtod = 'rta'")
    with pytest.raises(InputError, match="unknown key 'mehtod', did you mean 'method'"):
        settings_for("wigner", {}, file)


def test_stages_tell_how_far_they_are(capsys):
    stages = Stages()
    with stages("force_constants", "2 displaced cells") as advance:
        for done in range(12):
            advance(done, 12)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "force constants: 2 displaced cells ..." and lines[1:4] == [
        "force constants: 3 of 12", "force constants: 6 of 12", "force constants: 9 of 12"
    ]  # fmt: skip
    assert re.fullmatch(r"force constants: 2 displaced cells: \d+ s", lines[4]) and len(lines) == 5
    assert set(stages.took["force_constants"]) == {"seconds", "cpu_seconds", "compile_seconds"}


def test_a_mesh_that_breaks_the_symmetry_is_refused_before_anything_is_computed(in_folder, monkeypatch, capsys):
    forbid(monkeypatch, *STAGES)
    assert call(*WIGNER[:5], "3", "3", "4", *SMALL) == 2
    assert "(3, 3, 4) breaks the symmetry" in capsys.readouterr().err
