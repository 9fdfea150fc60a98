"""The folder of a run: what is left there after any interruption never ends up in the samples twice or with holes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, fcc111

from jaxmd_thermal import green_kubo_from_flux
from jaxmd_thermal.dynamics.stages import SimulationResult, StageResult
from jaxmd_thermal.errors import CheckpointError
from jaxmd_thermal.io.flux import read_flux
from jaxmd_thermal.io.run_directory import RunDirectory
from jaxmd_thermal.neighbors import make_plan
from jaxmd_thermal.potentials import LennardJones
from jaxmd_thermal.system import System

STAGES = {"stages": ["equilibration", "production"]}


@pytest.fixture
def folder(tmp_path):
    system = System.from_atoms(bulk("Ar", "fcc", a=5.3737, cubic=True) * (2, 2, 2))

    def reopen():
        return RunDirectory.open(tmp_path, STAGES, system, LennardJones(0.01, 3.4, 5.0))

    reopen.plan = make_plan(system, 5.0)
    return reopen


def rows(start, count):
    """Frames that carry their own number, so that a wrong join shows."""
    return {"temperature": np.arange(start, start + count, dtype=float)[:, None]}


def record(run, plan, stage, name, start, count):
    run.append(name, start, rows(start, count))
    run.checkpoint({"x": np.arange(3.0)}, stage=stage, frames=start + count, plan=plan)


def damage(run, name):
    (run.path / "checkpoints" / name / "meta.json").write_text("{")


def test_falling_back_to_an_earlier_stage_drops_what_the_later_one_had_written(folder):
    run = folder()
    record(run, folder.plan, 0, "equilibration", 0, 4)
    record(run, folder.plan, 1, "production", 0, 3)
    run.append("production", 3, rows(3, 3))  # killed before its checkpoint
    damage(run, "001-000000000003")
    again = folder()
    saved = again.restore()
    assert (saved.stage, saved.frames) == (0, 4)
    again.append("production", 0, rows(0, 5))  # another chunk length than the first time
    assert np.array_equal(again.samples("production")["temperature"][:, 0], np.arange(5.0))
    assert np.array_equal(again.samples("equilibration")["temperature"][:, 0], np.arange(4.0))


def test_parts_without_any_checkpoint_are_dropped(folder):
    run = folder()
    run.append("equilibration", 0, rows(0, 6))
    run.append("equilibration", 6, rows(6, 2))
    again = folder()
    assert again.restore() is None
    again.append("equilibration", 0, rows(0, 4))
    assert len(again.samples("equilibration")["temperature"]) == 4


def test_missing_parts_are_an_error_and_not_a_shorter_run(folder):
    run = folder()
    for start in (0, 3, 6):
        record(run, folder.plan, 1, "production", start, 3)
    assert len(run.samples("production")["temperature"]) == 9
    (run.path / "parts" / "production-000000000003.npz").unlink()
    with pytest.raises(CheckpointError, match=r"frames 3 to 6.*choose another --out"):
        run.samples("production")


def test_no_samples_at_all_is_an_error_that_names_the_stage(folder):
    with pytest.raises(CheckpointError, match="no samples of stage 'production'"):
        folder().samples("production")


def finish(run, system, samples):
    """`RunDirectory.finish` with the result of a run whose only stage has these samples."""
    x, cell = np.asarray(system.positions)[None], np.asarray(system.cell)[None]
    stages = (StageResult("production", samples, ()),)
    run.finish(SimulationResult(samples, stages, (), x, 0 * x, cell, system, None, {}, {}, 0))
    return run.path / "run.h5"


def series(system, replicas=2, frames=900):
    """Samples of one stage: a flux with a memory of 5 frames, and a run that is warmer than was asked for."""
    rng = np.random.default_rng(0)
    shape = (frames, replicas)
    flux = rng.standard_normal((*shape, 3))
    for i in range(1, frames):
        flux[i] = 0.8 * flux[i - 1] + 0.6 * flux[i]
    names = ("potential_energy", "kinetic_energy", "conserved_energy")
    return {
        **dict.fromkeys(names, np.zeros(shape)),
        "time": 8.0 * (1 + np.arange(frames)),
        "temperature": 53.0 + rng.standard_normal(shape),
        "volume": np.full(shape, abs(np.linalg.det(system.cell))),
        "heat_flux_potential": 0.75 * flux,
        "heat_flux_convective": 0.25 * flux,
    }


def test_the_flux_of_a_run_gives_its_conductivity_again(tmp_path):
    """A slab: the volume is the one that was stated and not that of the box, the temperature the mean one (kappa ~ 1/T^2)."""
    slab = System.from_atoms(fcc111("Ar", (2, 2, 3), a=5.37, vacuum=10.0))
    settings = STAGES | {"stages": ["production"], "temperature_K": 50.0, "timestep_fs": 4.0}
    samples = series(slab)
    flux = np.swapaxes(samples["heat_flux_potential"] + samples["heat_flux_convective"], 0, 1)
    mean = float(samples["temperature"].mean())
    expected = green_kubo_from_flux(flux, 8.0, 500.0, 50.0, mean_temperature=mean)

    def stored(system, samples, **stated):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        run = RunDirectory.open(out, settings | stated, system, LennardJones(0.01, 3.4, 5.0))
        run.append("production", 0, samples)
        return read_flux(finish(run, system, samples))

    found = stored(slab, samples, volume_A3=500.0)
    again = green_kubo_from_flux(found.flux, found.timestep, found.volume, found.temperature)
    np.testing.assert_allclose(again.kappa, expected.kappa, rtol=1e-12)  # rounding of one product
    # Molecular dynamics states no volume: a slab has none then, a crystal that of its cell.
    assert stored(slab, samples).volume is None
    crystal = System.from_atoms(bulk("Ar", a=5.4, cubic=True))
    assert stored(crystal, series(crystal)).volume == pytest.approx(5.4**3, rel=1e-12)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from ase.build import bulk
from jaxmd_thermal.errors import OutputError
from jaxmd_thermal.io.hdf5 import write_arrays
from jaxmd_thermal.io.run_directory import RunDirectory
from jaxmd_thermal.report.data import write_flux, write_traces
from jaxmd_thermal.system import System
from tests.io.test_run_directory import finish, series

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails, as on a full disk
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
system = System.from_atoms(bulk("Ar", a=5.4, cubic=True))
samples = series(system)
run = RunDirectory.open(sys.argv[1], {"stages": ["production"]}, system, None)

def full(write, file, bytes):
    before = file.read_bytes() if file.exists() else None
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, limit[1]))
    try:
        write()
    except OutputError as error:
        assert str(file) in str(error) and "free some space" in str(error), error
    else:
        raise AssertionError(f"{file} was written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (file.read_bytes() if file.exists() else None) == before
    assert not list(file.parent.glob(".*partial")), "no rests that take up space"

run.append("production", 0, samples)
h5 = run.path / "run.h5"
full(lambda: finish(run, system, samples), h5, 150_000)
assert len(run.samples("production")["time"]) == len(samples["time"]), "the parts are still there"
finish(run, system, samples)
curves = {"green-kubo": {"running": np.zeros(100_000)}}
full(lambda: write_traces(h5, curves), h5, h5.stat().st_size)
assert np.array_equal(run.samples("production")["temperature"], samples["temperature"])
write_traces(h5, curves)
full(lambda: write_flux(run.path / "flux.h5", samples["heat_flux_potential"], 1.0, 1.0, 1.0), run.path / "flux.h5", 20_000)
full(lambda: write_arrays(run.path / "a.hdf5", samples), run.path / "a.hdf5", 20_000)
"""


def test_a_disk_that_runs_full_costs_no_samples(tmp_path):
    """Real failures, by a limit on the size of files, in a process of its own: HDF5 may take it down."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
