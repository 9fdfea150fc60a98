"""The training loop: it learns, resumes with the same bits, stops with names, and adds up parts of a step exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from ase.build import bulk

from jaxmd_thermal import evaluate, fit, hessian_columns, load_potential
from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import CheckpointError, InputError, UnstableError
from jaxmd_thermal.potentials import EquivariantNetwork, LennardJones
from jaxmd_thermal.training.batches import Batches
from jaxmd_thermal.training.data import Frame
from jaxmd_thermal.training.losses import EnergyPerAtom, Forces, HessianColumns, Stress, ThirdDerivatives, factors_of
from jaxmd_thermal.training.optimizers import Partition, Ramp, adamw, averaged, chosen, rate
from jaxmd_thermal.training.records import CoTraining, described
from jaxmd_thermal.training.steps import Program, added

TEACHER = LennardJones(0.0104, 3.40, 5.5, "switch", switch_start=4.0)
START = replace(TEACHER, sigma=np.asarray(3.33))
OPTIMIZER = optax.adam(3e-3)
LOSSES = [EnergyPerAtom(1.0), Forces(1.0), HessianColumns(0.2)]


@pytest.fixture(scope="module")
def argon():
    """Ten rattled cells with the teacher's labels, two columns of the Hessian for four of them, the last one included."""
    rng = np.random.default_rng(4)
    frames = []
    for i in range(10):
        atoms = bulk("Ar", "fcc", a=5.2 + 0.02 * i, cubic=True)
        atoms.positions += 0.08 * rng.standard_normal(atoms.positions.shape)
        said = evaluate(TEACHER, atoms)
        columns = np.array([0, 7]) if i < 3 or i == 9 else None
        frames.append(Frame(
            atoms.numbers, atoms.positions, atoms.cell.array, energy=float(said["energy"]), forces=said["forces"],
            columns=columns, hessian=None if columns is None else hessian_columns(TEACHER, atoms, columns),
            compound=f"argon {i}", source=f"frame {i}",
        ))  # fmt: skip
    return frames


def trained(frames, **changes):
    options = dict(
        optimizer=OPTIMIZER, batch_size=2, buckets=1, precision="float64", average=0.9, seed=3, validation=frames[8:],
        validate_every=5, trained=lambda path, leaf: path[-1].name == "sigma",
    )  # fmt: skip
    return fit(START, frames[:8], LOSSES, **(options | changes))


@pytest.fixture(scope="module")
def straight(argon):
    """Twelve steps with co-training in one go."""
    co = CoTraining(argon[3:6], [Forces(0.5, "huber")], steps=2)
    return trained(argon, steps=12, co_training=co), co


@pytest.mark.slow
def test_it_learns(argon, straight):
    result, _ = straight
    _, start = result.errors()[0]
    _, end = result.errors()[-1]
    assert result.steps == 12 and result.stopped == "finished" and result.best_step >= 10
    assert end["loss"] < 0.5 * start["loss"] and end["forces meV/Å"] < 0.5 * start["forces meV/Å"]
    assert abs(float(result.last.sigma) - 3.40) < abs(float(START.sigma) - 3.40)
    assert {"loss", "energy meV/atom", "forces meV/Å"} <= set(end)
    assert result.potential.cutoff == 5.5 and float(START.sigma) == 3.33


def same_bits(one, other):
    for a, b in zip(
        jax.tree.leaves((one.potential, one.last)), jax.tree.leaves((other.potential, other.last)), strict=True
    ):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert one.history == other.history


def test_an_interrupted_run_ends_with_the_same_bits(argon, straight, tmp_path):
    whole, co = straight
    for stop_at in (4, 7, 11):

        def interrupt(progress, stop_at=stop_at):
            if progress.step == stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trained(argon, steps=12, co_training=co, out=tmp_path, checkpoint_every=3, progress=interrupt)
    (tmp_path / "log.jsonl").open("a").write('{"kind": "tra')  # what a kill leaves behind
    resumed = trained(argon, steps=12, co_training=co, out=tmp_path, checkpoint_every=3)
    same_bits(whole, resumed)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == whole.history
    again = load_potential(str(tmp_path / "potential"))
    assert float(again.sigma) == float(whole.potential.sigma)
    # A damaged checkpoint is passed over for the one before; other settings are refused.
    with pytest.raises(CheckpointError, match="seed: 3 there, 4 now"):
        trained(argon, steps=12, co_training=co, out=tmp_path, seed=4)
    with pytest.raises(CheckpointError, match=r"rate: null there, 0.1 now"):
        trained(argon, steps=12, co_training=co, out=tmp_path, settings={"rate": 0.1})


KILLED = """
import sys
sys.path.insert(0, {tests!r})
import test_fit as t
frames = t.argon.__wrapped__() if hasattr(t.argon, "__wrapped__") else t.argon._get_wrapped_function()()
def kill(p):
    if p.step == {step}:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
t.trained(frames, steps=12, co_training=t.CoTraining(frames[3:6], [t.Forces(0.5, "huber")], steps=2), out={out!r},
          checkpoint_every=2, progress=kill)
"""


@pytest.mark.slow
def test_kill_9(straight, tmp_path):
    whole, _ = straight
    here = os.path.dirname(__file__)
    for step, code in ((5, -signal.SIGKILL), (99, 0)):
        program = KILLED.format(tests=here, step=step, out=str(tmp_path))
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
        assert done.returncode == code, done.stderr
    found = load_potential(str(tmp_path / "potential"))
    assert float(found.sigma) == float(whole.potential.sigma) and float(found.epsilon) == float(whole.potential.epsilon)


def test_time_counts_over_resumptions(argon, straight, tmp_path, monkeypatch):
    """A clock that goes on by a second at every look: two budgets one after the other stop where they are used up."""
    whole, co = straight
    ticks = count()
    monkeypatch.setattr(
        sys.modules["jaxmd_thermal.training.fit"], "time", SimpleNamespace(monotonic=lambda: next(ticks))
    )

    def going_on(seconds):
        return trained(argon, steps=12, co_training=co, out=tmp_path, checkpoint_every=5, max_seconds=seconds)

    assert [(r.steps, r.stopped) for r in map(going_on, (3.5, 3.5, 6.5))] == [(4, "time"), (4, "time"), (7, "time")]
    # A checkpoint of before this was kept says nothing of its time, which counts as none.
    (meta,) = (tmp_path / "checkpoints" / f"{7:010d}").glob("meta.json")
    said = json.loads(meta.read_text())
    assert said.pop("seconds") == 7.0
    meta.write_text(json.dumps(said))
    assert (found := going_on(1.5)).steps == 9
    rest = trained(argon, steps=12, co_training=co, out=tmp_path)
    assert rest.stopped == "finished" and found.history == whole.history[: len(found.history)]
    same_bits(whole, rest)


def test_steps_of_co_training_are_reported(argon, straight):
    """Each in a record of its own, in physical units: beside `evaluate` at weights that do not move."""
    whole, co = straight
    first = [r for r in whole.history if r["step"] == 1]
    assert [r["kind"] for r in first] == ["train", "co-training", "co-training"]
    assert set(first[1]) == {"kind", "step", "loss", "forces meV/Å"}
    still = trained(argon, steps=3, optimizer=optax.set_to_zero(), co_training=replace(co, steps=1), validation=())
    off = [np.abs(evaluate(START, f.system)["forces"] - f.forces) for f in co.frames]
    # The network's own precision is float64, the smallest error 1e-3 eV/Å.
    said = [e["forces meV/Å"] for _, e in still.errors("co-training")]
    np.testing.assert_allclose(sorted(said), sorted(1e3 * x.mean() for x in off), rtol=1e-9)
    huber = [0.5 * np.where(x <= 0.1, 0.5 * x**2, 0.1 * (x - 0.05)).mean() for x in off]
    np.testing.assert_allclose(sorted(e["loss"] for _, e in still.errors("co-training")), sorted(huber), rtol=1e-9)


def test_validations_compare_whatever_the_schedule_of_the_weights(argon):
    """With a potential that does not move the loss stays: at what the term weighs in the last step."""
    options = dict(precision="float64", validation=argon[8:], validate_every=1, buckets=1, batch_size=2)
    found = fit(START, argon[:8], [Forces(Ramp(3.0, 0.5, 4))], optax.set_to_zero(), steps=4, **options)
    losses = [e["loss"] for _, e in found.errors()]
    # The running average of the same weights is rounded.
    assert losses == pytest.approx([0.5e-3 * found.errors()[0][1]["forces meV/Å"]] * 4, rel=1e-9)
    # The steps follow the schedule: the loss of each over its error is the weight there.
    weights = [1e3 * e["loss"] / e["forces meV/Å"] for _, e in found.errors("train")]
    np.testing.assert_allclose(weights, [3.0, 3.0 - 2.5 / 3, 0.5 + 2.5 / 3, 0.5], rtol=1e-9)


def test_settings_tell_schedules_of_weights_apart():
    """What a resumed training must share; the words of numbers are those that folders hold already."""
    assert described(Forces(2.0), 9) == "forces mae 2.0"
    assert described(Forces(0.5, "huber"), 9) == "forces huber 0.5 0.1"
    one, same, other = (Forces(f) for f in (Ramp(1.0, 9.0, 9), lambda step: 1.0 + step, Ramp(1.0, 9.0, 9, "cosine")))
    assert described(one, 9) == described(same, 9) == f"forces mae {[float(x) for x in range(1, 10)]}"
    assert described(other, 9) != described(one, 9)


def test_early_stopping_and_the_best_weights(argon):
    wild = trained(argon, epochs=50, optimizer=optax.adam(0.4), patience=2, validate_every=1, average=0.0)
    losses = [e["loss"] for _, e in wild.errors()]
    assert wild.stopped == "early" and wild.best_step == 1 + int(np.argmin(losses))
    assert len(losses) == wild.best_step + 2


def test_a_loss_that_is_not_finite_names_its_structures(argon, tmp_path):
    with pytest.raises(UnstableError, match=r"step \d+ .*frame \d.*last good state") as caught:
        trained(argon, steps=20, optimizer=optax.sgd(1e12), out=tmp_path)
    assert caught.value.path is not None and caught.value.path.is_dir()
    meta = json.loads((caught.value.path / "meta.json").read_text())
    assert f"step {meta['step'] + 1} " in str(caught.value)


def test_labels_in_other_units_are_found(argon):
    off = [f.replace(forces=10.0 * f.forces) if i == 6 else f for i, f in enumerate(argon)]
    with pytest.raises(InputError, match=r"frame 6: its forces \(eV/Å\) are 1\d\.\d times those of the potential"):
        trained(off, epochs=1, check_units=True)
    assert trained(argon, epochs=1, check_units=True).stopped == "finished"


def test_a_potential_that_training_has_spoilt_is_no_witness_of_units(argon):
    """Forces ten times those of the labels, after the first step: the potential it began with says that the labels are right."""

    def tenfold(updates, state, weights):
        return jax.tree.map(lambda w: 9.0 * w, weights), state

    spoilt = optax.GradientTransformation(lambda weights: (), tenfold)
    result = trained(
        argon, steps=2, optimizer=spoilt, check_units=True, trained=lambda path, leaf: path[-1].name == "epsilon"
    )
    assert result.steps == 2 and float(result.last.epsilon) == pytest.approx(100 * float(START.epsilon))


def test_second_derivatives_of_the_other_sign_are_found(argon):
    off = [f if f.hessian is None else f.replace(hessian=-f.hessian) for f in argon]
    with pytest.raises(InputError, match=r"its hessian .* are -\d\.?\d* times those of the potential.* other sign"):
        trained(off, epochs=1, check_units=True)


def test_stopped_before_the_first_validation_the_result_is_what_was_trained(argon, monkeypatch):
    ticks = count()
    monkeypatch.setattr(
        sys.modules["jaxmd_thermal.training.fit"], "time", SimpleNamespace(monotonic=lambda: next(ticks))
    )
    result = trained(argon, steps=12, validate_every=100, max_seconds=1.5)
    assert result.stopped == "time" and 0 < result.steps < 12 and result.best_step == result.steps
    assert abs(float(result.potential.sigma) - 3.40) < abs(float(START.sigma) - 3.40)


def test_a_validation_that_is_not_finite_names_its_structures(argon, tmp_path):
    """A label whose square is beyond all numbers."""
    held = argon[8].replace(energy=1e300, source="the odd one")
    with pytest.raises(
        UnstableError, match=r"validation after step 5 is inf.*structures: the odd one\. .*last good state"
    ):
        fit(START, argon[:8], [EnergyPerAtom(1.0, "mse"), Forces(1.0)], OPTIMIZER, steps=12, batch_size=1, precision="float64",
            validation=[held, argon[9]], validate_every=5, out=tmp_path)  # fmt: skip


def test_terms_without_any_label_are_refused(argon):
    """In every data set; they would be zero for any weights, and the first validation would be the best."""
    for term in (Stress(), ThirdDerivatives()):
        with pytest.raises(InputError, match=f"none of the 8 structures of data has the label '{term.label}'"):
            fit(START, argon[:8], [Forces(), term], steps=1)
    with pytest.raises(InputError, match="none of the 2 structures of validation has the label 'hessian'"):
        trained(argon, steps=1, validation=argon[6:8])
    with pytest.raises(InputError, match="none of the 1 structures of co_training has the label 'stress'"):
        trained(argon, steps=1, co_training=CoTraining(argon[:1], [Forces(), Stress()]))


def test_numbers_that_make_no_sense(argon):
    for options, word in (
        ({}, "steps"), ({"steps": 1, "epochs": 1}, "epochs"), ({"steps": 1, "precision": "float16"}, "float16"),
        ({"steps": 0}, "steps is 0"), ({"epochs": 0}, "epochs is 0"), ({"steps": 1, "validate_every": 0}, "validate_every is 0"),
        ({"steps": 1, "patience": 0}, "patience is 0"), ({"steps": 1, "seed": -1}, "seed is -1"),
        ({"steps": 1, "accumulate": 0}, "accumulate"), ({"steps": 1, "patience": 2, "validation": ()}, "patience is 2"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=word):
            trained(argon, **options)
    with pytest.raises(InputError, match="trained"):
        trained(argon, steps=1, trained=lambda path, leaf: False)
    with pytest.raises(InputError, match="only once"):
        fit(START, argon, [Forces(), Forces()], steps=1)


def gradient_of(frames, batch_size, accumulate=1, devices=1):
    """Gradient, loss and errors of one step over all frames, in the given portions."""
    losses = tuple(LOSSES)
    with double_precision():
        batches = Batches(frames, TEACHER.cutoff, batch_size, buckets=1, columns=2)
        partition = Partition.of(START)
        weights, others = partition.split(START, "float64")
        program = Program(partition, others, adamw(), "float64", 0.9, jax.devices()[:devices])
        state = program.start(weights)
        groups = batches.steps(None, devices, accumulate)
        assert len(groups) == 1
        made = [batches.parts(group, None, devices) for group in groups[0]]
        factors = factors_of(losses, [b for parts in made for b in parts], 0)
        found = None
        for parts in made:
            found = added(found, program.gradients(state, parts, losses, factors))
        return jax.device_get(found[:3])


@pytest.mark.slow
def test_accumulated_parts_are_one_large_batch(argon):
    """Columns, too: only three of eight frames have some, and the parts hold different numbers of them."""
    whole, parts = gradient_of(argon[:8], 8), gradient_of(argon[:8], 3, accumulate=3)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11)


SHARED_OUT = """
import sys
sys.path.insert(0, {tests!r})
import jax, numpy as np, test_fit as t
assert len(jax.devices()) == 3
frames = t.argon.__wrapped__() if hasattr(t.argon, "__wrapped__") else t.argon._get_wrapped_function()()
one, three = t.gradient_of(frames[:8], 8), t.gradient_of(frames[:8], 4, devices=3)
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(three), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-11)
result = t.trained(frames, steps=2, devices=jax.devices())
assert result.stopped == "finished"
places = set()
def look(progress):
    places.update(d for x in jax.live_arrays() for d in x.devices())
one = jax.devices()[1]
gone = {{d for x in jax.live_arrays() for d in x.devices()}}
t.trained(frames, steps=1, devices=[one], progress=look)
assert one in places - gone, (places, gone)
"""


@pytest.mark.slow
def test_batches_shared_out_over_devices_are_one_large_batch():
    """Eight frames in two batches on three devices: one of them has an empty batch. One device alone is the one asked for."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "3"}
    program = SHARED_OUT.format(tests=os.path.dirname(__file__))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr


def test_what_is_trained_can_be_chosen():
    network = EquivariantNetwork.create(0, ["Si"], 4.0, 2, channels=2, lmax=1, radial=2, hidden=2)
    usual = Partition.of(network)
    trained = {n for n, t in zip(usual.names, usual.trained, strict=True) if t}
    part = next(n for n in sorted(trained) if "_1'" in n).split("'")[1]  # a layer
    some = Partition.of(network, chosen(network, (part,), constants=True))
    left = {n for n, t in zip(some.names, some.trained, strict=True) if t}
    assert left == {n for n in trained if part not in n} | {".references"} and left - {".references"} < trained
    with pytest.raises(InputError, match="'step_77' is to be frozen, but is in no name of a leaf, did you mean"):
        chosen(network, ("step_77",))
    with pytest.raises(InputError, match="LennardJones has no constant energies"):
        chosen(load_potential("lj-argon-gk"), constants=True)


def test_only_weights_of_networks_are_trained_and_only_matrices_decay():
    network = EquivariantNetwork.create(0, ["Si"], 4.0, 1, channels=2, lmax=1, radial=2, hidden=2)
    partition = Partition.of(network)
    frozen = [n for n, t in zip(partition.names, partition.trained, strict=True) if not t]
    assert frozen == [".scale", ".references"]
    with double_precision():
        weights, others = partition.split(network, "float64")
    for a, b in zip(jax.tree.leaves(partition.merge(weights, others)), jax.tree.leaves(network), strict=True):
        np.testing.assert_array_equal(a, b)
    numbers = {"matrix": np.ones((2, 2)), "vector": np.ones(2)}
    optimizer = adamw(0.1, weight_decay=0.5)
    updates, _ = optimizer.update(jax.tree.map(np.zeros_like, numbers), optimizer.init(numbers), numbers)
    np.testing.assert_allclose(updates["matrix"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["vector"], 0.0)
    clipped, _ = adamw(1.0, clip=1e-9).update(
        {"v": np.array([3.0, 4.0])}, adamw().init({"v": np.zeros(2)}), {"v": np.zeros(2)}
    )
    assert np.abs(clipped["v"]).max() < 0.1, "clipped below AdamW's epsilon"


def test_average_and_schedules():
    with double_precision():
        a = averaged({"x": np.zeros(1)}, {"x": np.ones(1)}, 0.999, 0)
        assert float(a["x"][0]) == pytest.approx(0.9)
        a = averaged({"x": np.zeros(1)}, {"x": np.ones(1)}, 0.999, 10**6)
        assert float(a["x"][0]) == pytest.approx(0.001)
    up_and_down = rate(1.0, "cosine", steps=110, warmup=10, final=0.1)
    assert [float(up_and_down(s)) for s in (0, 5, 10, 60, 110)] == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1], abs=1e-6)
    with pytest.raises(InputError, match="more updates"):
        rate(1.0, "linear", steps=5, warmup=5)
    for kind, values in (
        ("linear", (2.0, 1.5, 1.0, 0.5, 0.0)),
        ("cosine", (2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0)),
    ):
        ramp = Ramp(2.0, 0.0, 5, kind)
        assert [ramp(s) for s in range(5)] == pytest.approx(values, abs=1e-12) and ramp(7) == 0.0
    assert Ramp(1.0, 2.0, 1)(0) == 1.0
