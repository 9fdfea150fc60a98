"""Files of conductivities against those that phono3py writes itself, and read by its tools."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice.conductivity import thermal_conductivity
from jaxmd_thermal.lattice.force_constants import ForceConstants
from jaxmd_thermal.lattice.metrics import srd, srme

h5py = pytest.importorskip("h5py")
phono3py = pytest.importorskip("phono3py")

MESH = (4, 4, 4)
OPTIONS = {"mesh": MESH, "temperatures": (300.0, 500.0), "sigma": 0.3}


@pytest.fixture(scope="module")
def silicon(shared):
    return ForceConstants.from_phono3py(shared / "data/dft_fc3/Si.yaml.xz")


@pytest.fixture(scope="module")
def theirs(silicon, tmp_path_factory):
    """A file that phono3py wrote: relaxation-time approximation, isotopes, walls, normal and Umklapp processes."""
    from jaxmd_thermal.lattice import symmetry

    folder = tmp_path_factory.mktemp("phono3py")
    phonon = symmetry.phono3py_object(silicon.geometry)
    phonon.fc2, phonon.fc3 = silicon.fc2, silicon.fc3
    phonon.mesh_numbers, phonon.sigmas = MESH, [0.3]
    phonon.init_phph_interaction()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        phonon.run_thermal_conductivity(
            temperatures=OPTIONS["temperatures"], write_kappa=True, is_isotope=True, is_N_U=True, boundary_mfp=0.1
        )
    (file,) = folder.glob("kappa*.hdf5")
    with h5py.File(file) as f:
        return file, {k: f[k][()] for k in f}


def contents(path):
    with h5py.File(path) as f:
        return {k: f[k][()] for k in f}


def test_file_of_the_relaxation_time_approximation(silicon, theirs, tmp_path):
    file, expected = theirs
    result = thermal_conductivity(silicon, method="rta", boundary=1e3, **OPTIONS)
    path = result.save(tmp_path)
    assert path == tmp_path / file.name
    # Either file is a reference: ours holds what the result does, phono3py's another split of degenerate modes.
    assert srme(result, path, 500.0) < 1e-12
    assert srd(result, file, 500.0) == pytest.approx(
        srd(result, {"kappa_TOT_ave": expected["kappa"][1, :3].mean()}, 500.0)
    )
    difference = (
        np.abs(result.mode_kappa[1] - expected["mode_kappa"][1, ..., :3].mean(-1)).sum() / expected["weight"].sum()
    )
    kappas = np.trace(result.kappa[1]) / 3 + expected["kappa"][1, :3].mean()
    assert srme(result, file, 500.0) == pytest.approx(2 * difference / kappas)
    with pytest.raises(InputError, match=r"has no `temperature`; it holds fc3"):
        srd(result, silicon.save(tmp_path / "fc") / "fc3.hdf5")
    found = contents(path)
    # Indices of grid points belong to phono3py's own numbering, which its tools do not need.
    assert set(expected) - set(found) == {"grid_point", "version"} and not set(found) - set(expected)
    for key in found:
        assert found[key].shape == expected[key].shape, key
        assert np.asarray(found[key]).dtype == np.asarray(expected[key]).dtype, key
    shift = found["qpoint"] - expected["qpoint"]
    np.testing.assert_allclose(shift, np.rint(shift), atol=1e-12)
    for key in ("weight", "mesh", "temperature", "boundary_mfp", "sigma"):
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-12)
    for key in ("frequency", "heat_capacity", "kappa_unit_conversion"):
        np.testing.assert_allclose(found[key], expected[key], rtol=2e-6, atol=1e-4)
    for key in ("gamma", "gamma_isotope", "gamma_N", "gamma_U"):
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-5, atol=1e-7, err_msg=key)
    # phono3py takes one velocity for each mode of a degenerate block, here they come from the whole block: compare the others.
    single = np.array([[np.sum(np.abs(f - x) < 1e-4) == 1 for x in f] for f in result.frequencies])
    assert single.sum() >= 6
    squares, other = found["gv_by_gv"][single], expected["gv_by_gv"][single]
    np.testing.assert_allclose(squares, other, atol=1e-4 * other.max())
    speeds, other = (np.linalg.norm(x["group_velocity"][single], axis=-1) for x in (found, expected))
    np.testing.assert_allclose(speeds, other, atol=1e-4 * other.max())
    np.testing.assert_allclose(found["mode_kappa"][:, single], expected["mode_kappa"][:, single], atol=1e-2)
    n = found["weight"].sum()
    np.testing.assert_allclose(found["mode_kappa"].sum((1, 2)) / n, found["kappa"], rtol=1e-10, atol=1e-10)
    total = found["gamma"] + found["gamma_isotope"] + result.gamma_boundary
    with np.errstate(divide="ignore", invalid="ignore"):
        formula = np.nan_to_num(found["heat_capacity"] / (2 * total), posinf=0.0)
    formula = found["kappa_unit_conversion"] * formula[..., None] * found["gv_by_gv"]
    np.testing.assert_allclose(found["mode_kappa"], formula, atol=1e-9)


def test_tetrahedra_without_a_choice_of_eigenvectors(silicon, monkeypatch):
    """Linewidths of phono3py when it averages over degenerate modes as we do: no arbitrary choice is left in either."""
    import inspect

    from jaxmd_thermal.lattice import isotopes, symmetry

    mesh = (7, 7, 7)
    phonon = symmetry.phono3py_object(silicon.geometry)
    if "average_degenerate_weights" not in inspect.signature(phonon.init_phph_interaction).parameters:
        pytest.skip("this phono3py cannot average over degenerate modes")
    phonon.fc2, phonon.fc3, phonon.mesh_numbers = silicon.fc2, silicon.fc3, mesh
    phonon.init_phph_interaction(average_degenerate_weights=True, exclude_gamma_acoustic=True)
    phonon.run_thermal_conductivity(temperatures=[300.0], is_isotope=True)
    # Near a kink of the weights the mean of both sides is off by their distance; smaller than usual, that does not count.
    monkeypatch.setattr(isotopes, "EITHER_SIDE", 1e-8)
    isotopes.isotope_linewidths.clear_cache()
    result = thermal_conductivity(silicon, mesh, block_average=True)
    isotopes.isotope_linewidths.clear_cache()
    three = result.gamma_normal[0] + result.gamma_umklapp[0]
    expected = np.reshape(phonon.thermal_conductivity.gamma, three.shape)
    # Where f - f' - f'' is zero at a vertex by symmetry, too: neither leaves its tetrahedra out.
    assert np.abs(three - expected).max() < 2e-6 * expected.max()
    # Of isotopes, some weights jump at the very frequency that is asked for (`isotopes.EITHER_SIDE`): there phono3py's value
    # is one of two, as its rounding has it. The other modes agree.
    expected = np.reshape(phonon.thermal_conductivity.gamma_isotope, three.shape)
    some = expected > 1e-3 * expected.max()
    ratio = result.gamma_isotope[some] / expected[some]
    assert np.median(np.abs(ratio - 1)) < 1e-5 and np.mean(ratio) == pytest.approx(1, abs=0.1)


def test_accumulation_by_phono3py(silicon, tmp_path):
    silicon.save(tmp_path)
    result = thermal_conductivity(silicon, **OPTIONS)
    path = result.save(tmp_path / "kappa-wigner.hdf5")
    found = contents(path)
    np.testing.assert_allclose(found["kappa_intra"] + found["kappa_inter"], found["kappa"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found["mode_kappa"].sum((1, 2)) / 64, found["kappa"], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found["mode_kappa"][..., :3].mean(-1), result.mode_kappa, rtol=1e-9, atol=1e-12)
    for option in ((), ("--mfp",)):
        command = [sys.executable, "-c", "from phono3py.scripts.phono3py_kaccum import run; run()", *option, path.name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        blocks = done.stdout.split("# ")
        rows = [[float(x) for x in line.split()] for line in blocks[-1].splitlines()[1:] if line.strip()]
        assert "500" in blocks[-1].splitlines()[0]
        np.testing.assert_allclose(rows[-1][1:4], found["kappa"][1, :3], rtol=2e-2)
