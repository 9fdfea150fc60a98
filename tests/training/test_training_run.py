"""The folder of a training: log, checkpoints that survive damage, events."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmd_thermal.errors import CheckpointError, InputError
from jaxmd_thermal.io.training_run import TrainingRun


def state(value):
    return {"weights": np.full(3, float(value)), "step": np.array(value)}


def test_a_damaged_checkpoint_is_passed_over_and_the_log_cut_back(tmp_path):
    run = TrainingRun(tmp_path, {"seed": 1})
    assert run.restore(state(0)) is None
    for step in range(1, 7):
        run.log({"kind": "train", "step": step, "loss": 0.5 / step})
        if step % 2 == 0:
            run.save(state(step), {"step": step, "epoch": 0})
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    found, meta = TrainingRun(tmp_path, {"seed": 1}).restore(state(0))
    assert meta["step"] == 6 and float(found["weights"][0]) == 6.0 and len(run.records()) == 6
    broken = tmp_path / "checkpoints" / f"{6:010d}"
    next(p for p in (broken / "state").rglob("*") if p.is_file() and p.stat().st_size).write_bytes(b"x")
    found, meta = run.restore(state(0))
    assert meta["step"] == 4 and float(found["weights"][0]) == 4.0
    assert [r["step"] for r in run.records()] == [1, 2, 3, 4]
    (tmp_path / "checkpoints" / f"{4:010d}" / "meta.json").write_text("{")
    with pytest.raises(CheckpointError, match="can be read"):
        run.restore(state(0))
    with pytest.raises(CheckpointError, match="seed: 1 there, 2 now"):
        TrainingRun(tmp_path, {"seed": 2})


def test_events(tmp_path):
    pytest.importorskip("tensorboardX")
    run = TrainingRun(tmp_path, {}, tensorboard=True)
    run.log({"kind": "validation", "step": 3, "loss": 0.25, "forces meV/Å": 12.0})
    run._events.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"validation/loss" in events.read_bytes()


def test_events_need_their_package(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"jaxmd-thermal\[tensorboard\]"):
        TrainingRun(tmp_path, {}, tensorboard=True)
