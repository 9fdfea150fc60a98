"""The folder of a run: what is left there after any interruption never ends up in the samples twice or with holes."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from jaxmd_thermal.errors import CheckpointError
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
