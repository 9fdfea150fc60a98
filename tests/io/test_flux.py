"""Every supported flux file: values, units, spacing, and messages that name file, line, column and remedy."""

from __future__ import annotations

import re

import h5py
import numpy as np
import pytest

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.io.flux import read_flux

FLUX = np.round(np.random.default_rng(0).standard_normal((6, 3)), 6)


def lammps_log(rows=FLUX, names="c_flux[1] c_flux[2] c_flux[3]", extra="", style="metal", step="0.004"):
    body = "\n".join(
        f"{1000 + 10 * i:10d} {80.0 + i:8.3f} {x:.6f} {y:.6f} {z:.6f} 9000.5" for i, (x, y, z) in enumerate(rows)
    )
    return f"""LAMMPS (29 Aug 2024)
units           {style}
Setting up Verlet run ...
  Unit style    : {style}
  Current step  : 0
  Time step     : {step}
Per MPI rank memory allocation (min/avg/max) = 4.4 | 4.4 | 4.4 Mbytes
   Step          Temp          Volume
         0   70.0 9000.5
       500   71.0 9000.5
Loop time of 0.6 on 1 procs for 500 steps with 256 atoms

Setting up Verlet run ...
  Unit style    : {style}
  Time step     : {step}
   Step          Temp   {names}   Volume
{body}
{extra}Loop time of 1.2 on 1 procs for 50 steps with 256 atoms
Total wall time: 0:00:02
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="log.lammps"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_lammps_log(write):
    """metal: eV Å/ps to eV Å/fs; time step, temperature and volume from the log, of the run that has the flux."""
    series = read_flux(write(lammps_log()))
    np.testing.assert_allclose(series.flux, 1e-3 * FLUX[None], rtol=1e-14)
    assert series.timestep == pytest.approx(40.0, rel=1e-12)
    assert (series.volume, series.temperature) == (9000.5, 82.5)


def test_lammps_real_units(write):
    """1 eV is 23.060547830619 kcal/mol (CODATA 2018); times are fs already."""
    series = read_flux(write(lammps_log(style="real", step="2")))
    np.testing.assert_allclose(series.flux, FLUX[None] / 23.060547830619, rtol=1e-9)
    assert series.timestep == 20.0


def test_lammps_fix_ave_time(write):
    rows = "\n".join(f"{20 * i} {x} {y} {z}" for i, (x, y, z) in enumerate(FLUX))
    path = write(f"# Time-averaged data for fix out\n# TimeStep c_hf[1] c_hf[2] c_hf[3]\n{rows}\n", "flux.dat")
    series = read_flux(path, timestep=20.0, volume=8000.0)
    np.testing.assert_allclose(series.flux, 1e-3 * FLUX[None], rtol=1e-14)
    assert (series.timestep, series.volume, series.temperature) == (20.0, 8000.0, None)
    with pytest.raises(InputError, match=r"flux.dat: the time step is not in the file; .*20 steps apart"):
        read_flux(path)


def test_lammps_columns_are_found_by_name(write):
    """Six entries of heat/flux beside a stress: the first three of the flux. Ambiguous or unknown: say which."""
    log = lammps_log().replace("c_flux[1]", "c_press[1] c_press[2] c_press[3] c_flux[1]")
    log = re.sub(r"(?m)^( +10\d0 +\S+) ", r"\1 7 8 9 ", log)
    np.testing.assert_allclose(read_flux(write(log)).flux, 1e-3 * FLUX[None], rtol=1e-14)
    picked = read_flux(write(log), columns=("c_press[1]", "c_press[2]", "c_press[3]"))
    np.testing.assert_allclose(picked.flux[0, 0], [7e-3, 8e-3, 9e-3])
    with pytest.raises(InputError, match=r"no column 'c_flx\[1\]', did you mean 'c_flux\[1\]'"):
        read_flux(write(lammps_log()), columns=("c_flx[1]", "c_flux[2]", "c_flux[3]"))


def test_lammps_variables_may_be_densities(write):
    path = write(lammps_log(names="v_Jx v_Jy v_Jz"))
    with pytest.raises(InputError, match=r"line \d+, column v_Jx: .*density=True or False"):
        read_flux(path)
    np.testing.assert_allclose(read_flux(path, density=False).flux, 1e-3 * FLUX[None], rtol=1e-14)
    np.testing.assert_allclose(read_flux(path, density=True).flux, 9.0005 * FLUX[None], rtol=1e-14)


def test_several_files_are_replicas(write):
    paths = [write(lammps_log(), "a"), write(lammps_log(2 * FLUX[:4]), "b")]
    series = read_flux(paths)
    assert series.flux.shape == (2, 4, 3)
    np.testing.assert_allclose(series.flux[1], 2e-3 * FLUX[:4], rtol=1e-14)
    with pytest.raises(InputError, match=r"b: 20 fs between rows, but .*a has 40"):
        read_flux([paths[0], write(lammps_log(step="0.002"), "b")])


def test_gpumd_compute(write):
    """Columns x, y, z of each group, potential before kinetic; eV^1.5 amu^-0.5 is 1/10.1805 eV Å/fs (ASE's unit)."""
    potential, kinetic = FLUX, 0.1 * FLUX
    one = np.hstack([potential, kinetic])
    path = write("\n".join(" ".join(f"{v:.9e}" for v in row) for row in one), "compute.out")
    expected = 1.1 * 0.09822694788 * FLUX[None]
    np.testing.assert_allclose(read_flux(path, timestep=10.0).flux, expected, rtol=1e-8)
    split = [np.stack([0.25 * part, 0.75 * part], axis=-1).reshape(6, 6) for part in (potential, kinetic)]
    two = write("\n".join(" ".join(f"{v:.9e}" for v in row) for row in np.hstack(split)), "compute.out")
    np.testing.assert_allclose(read_flux(two, timestep=10.0, groups=2).flux, expected, rtol=1e-8)
    with pytest.raises(InputError, match=r"line 1: 12 columns; for 1 group\(s\) .* set groups"):
        read_flux(two, timestep=10.0)
    with pytest.raises(InputError, match=r"compute.out: the time step is not in the file"):
        read_flux(two)
    with pytest.raises(InputError, match=r"hac.out: holds a correlation .*compute 0 10 1 jp jk"):
        read_flux(write("0 1 2\n", "hac.out"))


def test_npz(tmp_path, shared):
    np.savez(tmp_path / "a.npz", flux=np.stack([FLUX, FLUX]), timestep=4.0, volume_A3=10.0, temperature_K=80.0)
    series = read_flux(tmp_path / "a.npz")
    np.testing.assert_array_equal(series.flux[1], FLUX)
    assert (series.timestep, series.volume, series.temperature) == (4.0, 10.0, 80.0)
    silica = read_flux(shared / "data" / "green_kubo" / "silica_flux.npz")
    assert silica.flux.shape == (1, 100000, 3) and silica.timestep == 1.0
    assert silica.flux[0, 0, 0] == pytest.approx(-0.26530586)  # metal
    np.savez(tmp_path / "b.npz", fluxes=FLUX)
    with pytest.raises(InputError, match=r"b.npz: no array 'flux', did you mean 'fluxes'"):
        read_flux(tmp_path / "b.npz")


def test_hdf5(tmp_path):
    potential = np.random.default_rng(1).standard_normal((6, 2, 3))
    with h5py.File(tmp_path / "run.h5", "w") as file:
        file["flux/potential"], file["flux/convective"] = potential, 0.5 * potential
        file["flux/time"] = 100.0 + 20.0 * np.arange(6)
        file.attrs.update(volume_A3=9000.0, temperature_K=80.0, timestep_fs=4.0)
    series = read_flux(tmp_path / "run.h5")
    np.testing.assert_array_equal(series.flux, 1.5 * potential.transpose(1, 0, 2))
    assert (series.timestep, series.volume, series.temperature) == (20.0, 9000.0, 80.0)
    with h5py.File(tmp_path / "run.h5", "a") as file:
        file["flux/time"][3] += 5.0
    with pytest.raises(InputError, match=r"/flux/time is not equally spaced at frame 3"):
        read_flux(tmp_path / "run.h5")
    (tmp_path / "bad.h5").write_bytes(b"\x89HDF")
    with pytest.raises(InputError, match=r"bad.h5: not a readable HDF5 file"):
        read_flux(tmp_path / "bad.h5")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1020   82.000", "1020   82.0oo", r"log.lammps, line 19, column Temp: '82.0oo' is not a number"),
        ("1020   82.000", "1025   82.000", r"line 19, column Step: a step of 15 after 10.*equally spaced"),
        (" 9000.5\nLoop time of 1.2", "\n", r"line 22: 5 columns, expected 6.*cut off"),
        ("c_flux[1] c_flux[2]", "c_press c_pe", r"no columns of a heat flux; the columns are Step, .*c_press"),
        ("Unit style    : metal", "Unit style    : si", r"unit style 'si' is not supported"),
    ],
)
def test_broken_logs(write, old, new, message):
    text = lammps_log()
    assert old in text
    with pytest.raises(InputError, match=message):
        read_flux(write(text.replace(old, new)))


def test_values_that_are_not_finite(write):
    rows = FLUX.copy()
    rows[2, 1] = np.nan
    with pytest.raises(InputError, match=r"line 19, column c_flux\[2\]: nan"):
        read_flux(write(lammps_log(rows)))


def test_other_messages(tmp_path, write):
    with pytest.raises(InputError, match="there is no such file"):
        read_flux(tmp_path / "none.dat")
    with pytest.raises(InputError, match=r"format 'lamps' is not one of .* did you mean 'lammps'"):
        read_flux(write("x"), format="lamps")
    with pytest.raises(InputError, match="there is no header line of names"):
        read_flux(write("1 2 3 4\n2 3 4 5\n"))
