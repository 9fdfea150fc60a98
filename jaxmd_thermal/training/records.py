"""What goes into a training and what comes out of it: co-training, progress, results, and the memory of the loop."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxmd_thermal.training.data import Frame
from jaxmd_thermal.training.losses import Term

SAMPLES = 17
"""Steps at which schedules of weights are compared when a training is resumed."""


@dataclass(frozen=True)
class CoTraining:
    """Steps on other data between the main steps: same weights, same moments of the optimiser, same average.

    Attributes:
      frames: labelled structures, for example `replay` of the base model or what it was pretrained on.
      losses: their terms.
      steps: after each main step.
      batch_size, buckets: as in `fit`.
    """

    frames: Sequence[Frame]
    losses: Sequence[Term]
    steps: int = 1
    batch_size: int = 1
    buckets: int = 3


@dataclass(frozen=True)
class Progress:
    """A step that is done.

    Attributes:
      step, steps: of how many.
      loss: of the step.
      errors: {name with unit: mean absolute error} of the step.
      validation: the latest validation, empty before the first.
      seconds_left: at the pace so far.
    """

    step: int
    steps: int
    loss: float
    errors: dict[str, float]
    validation: dict[str, float]
    seconds_left: float


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    Attributes:
      potential: with the running average of the weights, at its best validation if there is one.
      last: with the weights of the last step.
      history: records of the log: `kind` "train", "co-training" or "validation", `step`, `loss`, errors.
      steps: main steps done.
      best_step: where `potential` is from.
      stopped: "finished", "early" (no better validation), or "time".
    """

    potential: Any
    last: Any
    history: list[dict[str, Any]]
    steps: int
    best_step: int
    stopped: str

    def errors(self, kind: str = "validation") -> list[tuple[int, dict[str, float]]]:
        """(step, errors and loss) of the records of one kind."""
        skipped = ("kind", "step")
        return [
            (r["step"], {k: v for k, v in r.items() if k not in skipped}) for r in self.history if r["kind"] == kind
        ]


@dataclass
class Memory:
    """What the loop knows beside the state of the weights; saved with it."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    co_epoch: int = 0
    co_position: int = 0
    best_loss: float = float("inf")
    best_step: int = 0
    worse: int = 0
    ended: str = ""
    seconds: float = 0.0
    validation: dict[str, float] = field(default_factory=dict)


def described(term: Term, steps: int) -> str:
    """A term of a training of so many steps in words, for settings; a schedule by some of its values."""
    weight: Any = term.weight
    if callable(weight):
        weight = [term.weight_at(int(step)) for step in np.unique(np.linspace(0, steps - 1, SAMPLES).round())]
    return f"{term.name} {term.kind} {weight} {term.delta if term.kind == 'huber' else ''}".strip()


def digest_of(frames: Sequence[Frame]) -> str:
    """Short fingerprint of structures and labels."""
    arrays: list[Any] = []
    for f in frames:
        arrays += [f.numbers, f.positions, f.cell, f.energy, f.forces, f.stress, f.columns, f.hessian, f.third]
        arrays += [] if all(f.pbc) else [np.array(f.pbc)]
    return digest(arrays)


def digest(arrays: Sequence[Any], words: Sequence[str] = ()) -> str:
    """Short fingerprint of numbers, in their order."""
    found = hashlib.sha256(repr(words).encode())
    for a in arrays:
        found.update(b"-" if a is None else np.ascontiguousarray(a).tobytes())
    return found.hexdigest()[:16]
