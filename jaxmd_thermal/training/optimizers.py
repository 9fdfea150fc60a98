"""What of a potential is trained, with which optimiser, and the running average of its weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmd_thermal.errors import InputError, nearest

FROZEN_FIELDS = ("scale", "references")
"""Fields of networks that are statistics of the data, not weights."""
CONSTANTS = ".references"
"""How the names of constant energies end."""

KINDS = ("constant", "cosine", "linear")


def is_weight(path: Any, leaf: Any) -> bool:
    """Whether a leaf is trained: every floating number but the scale and the constant energies of networks."""
    names = [getattr(key, "name", None) for key in path]
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and not set(names) & set(FROZEN_FIELDS)


def chosen(potential: Any, frozen: Sequence[str] = (), constants: bool = False) -> Callable[[Any, Any], bool]:
    """A rule for `Partition.of`.

    Args:
      frozen: leaves whose name (`jax.tree_util.keystr`) holds one of these are left as they are.
      constants: train the constant energies of the species as well; no force depends on them, so they can take up what
        second derivatives alone would do to energies.

    Raises:
      InputError: one of `frozen` is in no name, or there are no constant energies.
    """
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(potential)]
    for part in frozen:
        if not any(part in name for name in names):
            words = sorted({word for name in names for word in re.findall(r"\w+", name)})
            raise InputError(
                f"'{part}' is to be frozen, but is in no name of a leaf{nearest(part, words)}; their parts are {', '.join(words)}"
            )
    if constants and not any(name.endswith(CONSTANTS) for name in names):
        raise InputError(f"{type(potential).__name__} has no constant energies that could be trained")

    def rule(path, leaf):
        name = jax.tree_util.keystr(path)
        if any(part in name for part in frozen):
            return False
        return is_weight(path, leaf) or (constants and name.endswith(CONSTANTS))

    return rule


@dataclass(frozen=True)
class Partition:
    """Splits a potential into what is trained and what is not.

    Attributes:
      structure: of the potential.
      names: of its leaves.
      trained: whether each is.
    """

    structure: Any
    names: tuple[str, ...]
    trained: tuple[bool, ...]

    @classmethod
    def of(cls, potential: Any, choose: Callable[[Any, Any], bool] = is_weight) -> Partition:
        """Partition by a rule of path (`jax.tree_util`) and leaf.

        Raises:
          InputError: nothing is trained.
        """
        leaves, structure = jax.tree_util.tree_flatten_with_path(potential)
        trained = tuple(bool(choose(path, leaf)) for path, leaf in leaves)
        if not any(trained):
            raise InputError(f"nothing of {type(potential).__name__} would be trained: choose other leaves (trained)")
        return cls(structure, tuple(jax.tree_util.keystr(path) for path, _ in leaves), trained)

    def split(self, potential: Any, dtype: Any) -> tuple[dict[str, Any], list[Any]]:
        """Weights by name in the given precision, and the other leaves."""
        leaves = jax.tree.leaves(potential)
        weights = {n: jnp.asarray(x, dtype) for n, x, t in zip(self.names, leaves, self.trained, strict=True) if t}
        return weights, [x for x, t in zip(leaves, self.trained, strict=True) if not t]

    def merge(self, weights: dict[str, Any], others: list[Any]) -> Any:
        """The potential with these weights."""
        rest = iter(others)
        leaves = [weights[n] if t else next(rest) for n, t in zip(self.names, self.trained, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)


def rate(peak: float, kind: str = "constant", steps: int = 0, warmup: int = 0, final: float = 0.0) -> Any:
    """Learning rate by the update: linear from zero during `warmup`, then constant, or down to `final` at `steps`.

    Raises:
      InputError: an unknown kind, or a decay without its length.
    """
    if kind not in KINDS:
        raise InputError(f"there is no schedule '{kind}': choose of {', '.join(KINDS)}")
    if kind != "constant" and steps <= warmup:
        raise InputError(f"a {kind} schedule over {steps} updates with {warmup} of warm-up: give more updates")
    if kind == "constant":
        after = optax.constant_schedule(peak)
    elif kind == "cosine":
        after = optax.cosine_decay_schedule(peak, steps - warmup, alpha=final / peak)
    else:
        after = optax.linear_schedule(peak, final, steps - warmup)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


@dataclass(frozen=True)
class Ramp:
    """Weight of a term of the loss that changes from `start` at the first of `steps` steps to `end` at the last.

    Attributes:
      kind: "linear", or "cosine": half a period, level at both ends.
    """

    start: float
    end: float
    steps: int
    kind: str = "linear"

    def __call__(self, step: int) -> float:
        """The weight at a step, counted from zero."""
        done = min(step / max(self.steps - 1, 1), 1.0)
        part = 0.5 * (1.0 - cos(pi * done)) if self.kind == "cosine" else done
        return (1.0 - part) * self.start + part * self.end


def adamw(
    learning_rate: Any = 1e-4, *, weight_decay: float = 1e-3, clip: float = 100.0
) -> optax.GradientTransformation:
    """AdamW whose decay acts on matrices only, after clipping the gradient's global norm.

    Args:
      learning_rate: a number or a schedule (`rate`).
    """

    def matrices(weights):
        return jax.tree.map(lambda x: jnp.ndim(x) >= 2, weights)

    return optax.chain(
        optax.clip_by_global_norm(clip), optax.adamw(learning_rate, weight_decay=weight_decay, mask=matrices)
    )


def averaged(average: Any, weights: Any, decay: float, finished: Any) -> Any:
    """Running average with the decay min(decay, (1 + s)/(10 + s)) after `finished` steps s."""
    s = jnp.asarray(finished, jnp.float64)
    keep = jnp.minimum(decay, (1.0 + s) / (10.0 + s))
    return jax.tree.map(lambda a, w: (keep * a + (1.0 - keep) * w).astype(w.dtype), average, weights)
