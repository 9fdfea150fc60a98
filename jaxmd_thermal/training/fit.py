"""Training of any potential: the loop around the compiled steps, with validation, checkpoints and exact resume.

The order of the data, the columns that are drawn and every number of a step are functions of the settings and the seed.
A run that was killed and is called again with the same arguments and folder ends with the same bits.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmd_thermal._backend import check_toolchain, double_precision, forget_programs
from jaxmd_thermal.derivatives import required_cutoff
from jaxmd_thermal.errors import InputError, UnstableError
from jaxmd_thermal.training.batches import Batch, Batches, Pack, prefetched
from jaxmd_thermal.training.data import Frame
from jaxmd_thermal.training.losses import Term, check_labels, check_losses, factors_of
from jaxmd_thermal.training.optimizers import Partition, adamw, is_weight
from jaxmd_thermal.training.plausibility import OFF, factor_of
from jaxmd_thermal.training.records import CoTraining, FitResult, Memory, Progress, described, digest, digest_of
from jaxmd_thermal.training.steps import PRECISIONS, Gradients, Program, State, added, odd_sources, validated

VALIDATION_COLUMNS = 3
"""Columns of the Hessian that a validation looks at, always the same ones, at least."""


def fit(
    potential: Any,
    data: Sequence[Frame],
    losses: Sequence[Term],
    optimizer: optax.GradientTransformation | None = None,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 1,
    columns: int = 1,
    buckets: int = 3,
    accumulate: int = 1,
    validation: Sequence[Frame] = (),
    validate_every: int | None = None,
    patience: int | None = None,
    co_training: CoTraining | None = None,
    precision: str = "float32",
    average: float = 0.999,
    trained: Callable[[Any, Any], bool] = is_weight,
    seed: int = 0,
    devices: Sequence[Any] | None = None,
    out: str | Path | None = None,
    checkpoint_every: int = 100,
    tensorboard: bool = False,
    max_seconds: float | None = None,
    check_units: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Train a potential.

    Args:
      potential: any potential without long-range terms; it is not changed.
      data: labelled structures.
      losses: terms; each uses the frames that have its label.
      optimizer: of optax; None: `adamw()`.
      steps, epochs: how long; one of them.
      batch_size, columns, buckets: structures of a batch, columns of the Hessian for each, shapes (`Batches`).
      accumulate: batches whose gradients are added up before an update; labels count as in one large batch.
      validation: other structures, looked at every `validate_every` steps (None: after each epoch) with the averaged weights;
        terms weigh there what they do at the last step, so that validations compare.
      patience: stop after this many validations without a smaller loss.
      co_training: steps on other data in between.
      precision: of weights and moments, and of the network: "float32", "mixed" (float64 weights) or "float64". Edges are
        formed in float64 always.
      average: largest decay of the running average of the weights.
      trained: which leaves are trained, by path and value; the default leaves out scale and constant energies of networks.
      seed: of the order of the data and of the columns.
      devices: over which batches of one shape are shared out; None: the one that JAX uses by default.
      out: folder of log, checkpoints and result. If it holds an unfinished training with the same settings, that one goes on.
      checkpoint_every: steps.
      tensorboard: events in the folder, too.
      max_seconds: stop after this time, with the state saved; a training that is resumed has its earlier time counted.
      check_units: stop where labels agree with the potential's own values but for a factor beyond 4; for potentials that
        have learnt already.
      settings: what else a resumed training must share, as JSON has it; optimisers of optax cannot be compared, so give
        what yours was made with.
      progress: called after every step.

    Raises:
      InputError: data, losses or numbers that make no sense; a term whose label no structure has; labels in other units.
      UnstableError: a loss or gradient that is not finite; names the structures; the last good state is saved.
      CheckpointError: `out` holds another training.
    """
    if (steps is None) == (epochs is None):
        raise InputError(f"steps is {steps} and epochs is {epochs}: give one of them")
    counts = {
        "steps": steps, "epochs": epochs, "accumulate": accumulate, "checkpoint_every": checkpoint_every,
        "validate_every": validate_every, "patience": patience,
    }  # fmt: skip
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}; it must be at least 1")
    if seed < 0:
        raise InputError(f"seed is {seed}; it must not be negative")
    if patience is not None and not len(validation):
        raise InputError(f"patience is {patience}, but nothing is validated: give validation data, or leave it out")
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    forget_programs()
    devices = list(jnp.zeros(()).devices() if devices is None else devices)
    with double_precision(), jax.default_device(devices[0]):
        check_toolchain()
        cutoff = required_cutoff(potential)
        species = getattr(potential, "species", None)
        main = Batches(data, cutoff, batch_size, buckets=buckets, columns=columns, seed=seed, species=species)
        extra = co_training and Batches(
            co_training.frames,
            cutoff,
            co_training.batch_size,
            buckets=co_training.buckets,
            seed=seed + 1,
            species=species,
        )
        held = None
        if len(validation):
            drawn = max(columns, VALIDATION_COLUMNS)
            held = Batches(validation, cutoff, batch_size, buckets=buckets, columns=drawn, seed=seed, species=species)
        also = co_training.losses if co_training else ()
        for what, source, its in (("data", main, losses), ("co_training", extra, also), ("validation", held, losses)):
            if source is not None:
                check_losses(its)
                check_labels(its, source.frames, what)
        total = steps if steps is not None else main.count(epochs or 0, len(devices), accumulate)
        partition = Partition.of(potential, trained)
        weights, others = partition.split(potential, PRECISIONS[precision][0])
        program = Program(partition, others, optimizer or adamw(), precision, average, devices)
        run = None
        if out is not None:
            from jaxmd_thermal.io.training_run import TrainingRun

            document = {
                "precision": precision, "average": average, "seed": seed, "batch_size": batch_size, "columns": columns,
                "buckets": buckets, "accumulate": accumulate, "steps": steps, "epochs": epochs, "devices": len(devices),
                "validate_every": validate_every, "patience": patience, "losses": [described(t, total) for t in losses],
                "potential": digest([*jax.tree.leaves(weights), *others], partition.names), "data": digest_of(data),
                "validation": digest_of(validation),
                "co_training": co_training and [
                    co_training.steps, co_training.batch_size, co_training.buckets, digest_of(co_training.frames),
                    [described(t, total) for t in co_training.losses],
                ],
                **(settings or {}),
            }  # fmt: skip
            run = TrainingRun(out, document, tensorboard)
        loop = _Loop(program, main, tuple(losses), held, extra, co_training, accumulate, run, check_units, total)
        return loop.run(weights, validate_every, patience, checkpoint_every, max_seconds, progress)


class _Loop:
    def __init__(self, program, main, losses, held, extra, co_training, accumulate, run, check_units, total):
        self.program: Program = program
        self.main: Batches = main
        self.losses: tuple[Term, ...] = losses
        self.held: Batches | None = held
        self.extra: Batches | None = extra
        self.co: CoTraining | None = co_training
        self.accumulate = accumulate
        self.folder = run
        self.check_units = check_units
        self.total: int = total
        self.parts = program.mesh.size
        self.history: list[dict[str, Any]] = []
        self.good: Any = None
        self.start: State

    def run(self, weights, validate_every, patience, checkpoint_every, max_seconds, progress) -> FitResult:
        memory = Memory()
        self.start = state = self.program.start(weights)
        best = weights
        if self.folder is not None and (saved := self.folder.restore((state, best))) is not None:
            (state, best), meta = saved
            memory = Memory(**{k: v for k, v in meta.items() if k in Memory.__dataclass_fields__})
            self.history = self.folder.records()
        began, before = time.monotonic(), memory.seconds
        paced, first = began, memory.step  # from the second step on: the first one compiles
        others, also = self._others(memory), tuple(self.co.losses) if self.co else ()

        def over() -> bool:
            return max_seconds is not None and memory.seconds > max_seconds

        while not memory.ended and not over():
            count = len(self.main.steps(memory.epoch, self.parts, self.accumulate))
            for groups, batches in self._stream(self.main, memory.epoch, memory.position, self.accumulate):
                self.good = (state, best, copy.deepcopy(memory))
                state, loss, errors = self._step(state, self.main, groups, batches, self.losses, True, memory)
                done = [("train", loss, errors)]
                for _ in range(self.co.steps if self.co else 0):
                    group, parts, memory.co_epoch, memory.co_position = next(others)
                    state, value, said = self._step(state, self.extra, [group], [parts], also, False, memory)  # type: ignore[arg-type]
                    done.append(("co-training", value, said))
                memory.step += 1
                memory.position += 1
                for kind, value, said in done:
                    self._record({"kind": kind, "step": memory.step, "loss": value, **said})
                last_of_epoch = memory.position == count
                ended = memory.step >= self.total
                due = last_of_epoch if validate_every is None else memory.step % validate_every == 0
                if self.held is not None and (due or ended):
                    best = self._validate(state, best, memory)
                if ended:
                    memory.ended = "finished"
                elif patience is not None and memory.worse >= patience:
                    memory.ended = "early"
                now = time.monotonic()
                memory.seconds = before + now - began
                pace = (now - paced) / max(memory.step - first, 1)
                if paced == began:
                    paced, first = now, memory.step
                if last_of_epoch:
                    memory.epoch, memory.position = memory.epoch + 1, 0
                if memory.step % checkpoint_every == 0 or memory.ended or over():
                    self._save(state, best, memory)
                if progress is not None:
                    left = pace * (self.total - memory.step)
                    progress(Progress(memory.step, self.total, loss, errors, memory.validation, left))
                if memory.ended or over() or last_of_epoch:
                    break
        return self._result(state, best, memory, memory.ended or "time")

    # -- steps -------------------------------------------------------------------------------------------------

    def _stream(self, batches: Batches, epoch: int, position: int, accumulate: int) -> Iterator[Any]:
        """(groups of packs, their batches) of the steps of an epoch from `position` on."""

        def made(groups):
            return groups, [batches.parts(group, epoch, self.parts) for group in groups]

        planned = batches.steps(epoch, self.parts, accumulate)[position:]
        return prefetched((lambda g=g: made(g)) for g in planned)

    def _others(self, memory: Memory) -> Iterator[Any]:
        """Endless co-training groups with their batches, and the place behind each."""
        if self.extra is None:
            return
        epoch, position = memory.co_epoch, memory.co_position
        while True:
            count = len(self.extra.steps(epoch, self.parts, 1))
            for groups, batches in self._stream(self.extra, epoch, position, 1):
                position += 1
                behind = (epoch + 1, 0) if position == count else (epoch, position)
                yield groups[0], batches[0], *behind
            epoch, position = epoch + 1, 0

    def _step(
        self,
        state: State,
        source: Batches,
        groups: list[tuple[Pack, ...]],
        batches: list[list[Batch]],
        losses: tuple[Term, ...],
        main: bool,
        memory: Memory,
    ) -> tuple[State, float, dict[str, float]]:
        every = [batch for parts in batches for batch in parts]
        factors = factors_of(losses, every, memory.step)
        found: Gradients | None = None
        for group, parts in zip(groups, batches, strict=True):
            part = self.program.gradients(state, parts, losses, factors)
            if self.check_units and main and self._other_units(part, group, source):
                # What has been trained may be off itself; only the potential that training began with is a witness.
                known = self.program.gradients(self.start, parts, losses, factors)
                if messages := self._other_units(known, group, source):
                    self._save(*self.good)
                    raise InputError(messages[0])
            found = added(found, part)
        assert found is not None
        new, fine = self.program.update(state, found, main)
        loss, errors, fine = jax.device_get((found.loss, found.errors, fine))
        if not fine:
            self._stop([name for group in groups for pack in group for name in source.sources(pack)], float(loss), main)
        counts = {term.name: sum(term.count(batch) for batch in every) for term in losses}
        means = {term.metric: float(errors[term.name]) / counts[term.name] for term in losses if counts[term.name]}
        return new, float(loss), means

    def _stop(self, sources: list[str], loss: float, main: bool) -> None:
        path = self._save(*self.good)
        raise UnstableError(
            f"the loss of step {self.good[2].step + 1}{'' if main else ' (co-training)'} is {loss}, or its gradient is not "
            f"finite; its structures: {'; '.join(sources)}. Repair or drop them, or lower the learning rate"
            + (f"; the last good state is in {path}" if path else ""),
            path,
        )

    def _other_units(self, found: Gradients, group: tuple[Pack, ...], source: Batches) -> list[str]:
        """Labels that agree with the potential but for a factor are in other units; a sentence for each."""
        out = []
        for label, products in jax.device_get(found.products).items():
            for part, pack in enumerate(group):
                for g, name in enumerate(source.sources(pack)):
                    known_said, said, known = (float(x) for x in products[part][:, g])
                    factor = factor_of(known_said, said, known)
                    if factor is not None and label == "forces" and factor < 0:
                        continue  # small forces near a minimum may have the other sign where the potential is a little off
                    if factor is not None and not 1 / OFF < factor < OFF:
                        unit = "eV/Å" if label == "forces" else "eV/Å²"
                        out.append(
                            f"{name}: its {label} ({unit}) are {factor:.3g} times those of the potential, which agrees with them "
                            "in everything else: are forces, displacements or lengths in other units, or of the other sign? "
                            "If they are right, switch the check off (check_units=False)"
                        )
        return out

    # -- between steps -----------------------------------------------------------------------------------------

    def _validate(self, state: State, best: Any, memory: Memory) -> Any:
        assert self.held is not None
        found = validated(self.program, state.average, self.held, self.losses, self.total - 1)
        memory.validation = found
        if not np.isfinite(found["loss"]):
            path = self._save(*self.good)
            odd = odd_sources(self.program, state.average, self.held, self.losses)
            raise UnstableError(
                f"the loss of the validation after step {memory.step} is {found['loss']}; its structures: {'; '.join(odd)}. "
                "Repair or drop them, or lower the learning rate"
                + (f"; the last good state is in {path}" if path else ""),
                path,
            )
        self._record({"kind": "validation", "step": memory.step, **found})
        if found["loss"] < memory.best_loss:
            memory.best_loss, memory.best_step, memory.worse = found["loss"], memory.step, 0
            return state.average
        memory.worse += 1
        return best

    def _record(self, record: dict[str, Any]) -> None:
        self.history.append(record)
        if self.folder is not None:
            self.folder.log(record)

    def _save(self, state: State, best: Any, memory: Memory) -> Path | None:
        if self.folder is None:
            return None
        return self.folder.save((state, best), vars(memory))

    def _result(self, state: State, best: Any, memory: Memory, stopped: str) -> FitResult:
        # Stopped before the first validation, nothing is known to be best; the weights it began with are not the result.
        chosen, at = (best, memory.best_step) if memory.best_step else (state.average, memory.step)
        averaged, last = (
            self.program.partition.merge(jax.device_get(w), self.program.others) for w in (chosen, state.weights)
        )
        if self.folder is not None:
            self.folder.finish(averaged)
        return FitResult(averaged, last, self.history, memory.step, at, stopped)
