"""The compiled parts of training: gradients of a step's batches, and the update of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.training.batches import Batch, Batches
from jaxmd_thermal.training.losses import Term, needs_of, paired, predictions
from jaxmd_thermal.training.optimizers import Partition, averaged

PRECISIONS = {"float32": ("float32", "float32"), "mixed": ("float64", "float32"), "float64": ("float64", "float64")}
"""Precision of the weights and moments, and of the network; edges are always formed in float64."""

COMPARED = ("forces", "hessian")
"""Labels whose units are compared with the potential's own."""


class State(NamedTuple):
    """What training carries from step to step; a pytree of arrays.

    Attributes:
      weights: {name: array}.
      moments: of the optimiser.
      average: running average of the weights.
      finished: main steps so far.
    """

    weights: Any
    moments: Any
    average: Any
    finished: Any


class Gradients(NamedTuple):
    """Gradient, loss and error sums of a part of a step; parts add up.

    Attributes:
      products: {label: (3, G)} sums of label x prediction, prediction^2 and label^2 of each structure; of this part only.
    """

    gradient: Any
    loss: Any
    errors: Any
    products: Any


class Program:
    """Compiled gradients and updates for one potential and optimiser.

    Args:
      partition, others: what is trained, and the other leaves of the potential.
      optimizer: of optax.
      precision: "float32", "mixed" or "float64".
      decay: of the running average.
      devices: batches of one shape are shared out over them.
    """

    def __init__(
        self,
        partition: Partition,
        others: list[Any],
        optimizer: optax.GradientTransformation,
        precision: str,
        decay: float,
        devices: Sequence[Any],
    ):
        if precision not in PRECISIONS:
            raise InputError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
        self.partition, self.others = partition, others
        self.optimizer = optimizer
        self.dtype = PRECISIONS[precision][1]
        self.decay = decay
        self.mesh = Mesh(np.array(devices), ("part",))

    def start(self, weights: Any) -> State:
        """The state before the first step."""
        return State(weights, self.optimizer.init(weights), weights, jnp.zeros((), jnp.int32))

    def gradients(self, state: State, parts: Sequence[Batch], losses: tuple[Term, ...], factors: Mapping[str, float]):
        """`Gradients` of batches of one shape, one for each device; numbers are left on the device."""
        sharding = NamedSharding(self.mesh, PartitionSpec("part"))
        stacked = jax.tree.map(lambda *x: np.stack(x), *parts)
        stacked = jax.device_put(stacked, sharding) if len(parts) > 1 else stacked
        how = {"partition": self.partition, "dtype": self.dtype, "losses": losses, "mesh": self.mesh}
        return _gradients(state.weights, self.others, stacked, dict(factors), **how)

    def update(self, state: State, found: Gradients, main: bool) -> tuple[State, Any]:
        """The next state, and whether loss and gradient were finite; if not, the state is the old one."""
        return _updated(state, found.gradient, found.loss, self.decay, optimizer=self.optimizer, main=main)

    def errors(self, weights: Any, batch: Batch, losses: tuple[Term, ...]) -> dict[str, tuple[float, float, int]]:
        """{name: (sum of the loss, sum of the errors, number of labels)} of a batch, without gradients."""
        sums = _errors(weights, self.others, batch, partition=self.partition, dtype=self.dtype, losses=losses)
        sums = jax.device_get(sums)
        counts = {term.name: term.count(batch) for term in losses}
        return {name: (float(loss), float(error), counts[name]) for name, (loss, error) in sums.items()}


# Compiled functions belong to the module: trainings of one potential and data in one process share them.


def _gradient_of_part(weights, others, batch, factors, partition, dtype, losses):
    needs = needs_of(losses)

    def loss_of(predicted):
        sums = {term.name: term.sums(predicted, batch) for term in losses}
        total = sum(factors[name] * value for name, (value, _) in sums.items())
        return total, {name: error for name, (_, error) in sums.items()}

    if "third" in needs:

        def whole(w):
            predicted = predictions(partition.merge(w, others), batch, needs, dtype)
            value, errors = loss_of(predicted)
            return value, (errors, predicted)

        (value, (errors, predicted)), gradient = jax.value_and_grad(whole, has_aux=True)(weights)
    else:
        predicted = predictions(partition.merge(weights, others), batch, needs, dtype)
        (value, errors), adjoint = jax.value_and_grad(loss_of, has_aux=True)(predicted)
        gradient = jax.grad(lambda w: paired(partition.merge(w, others), batch, adjoint, dtype))(weights)
    return Gradients(gradient, value, errors, {k: _products(k, predicted, batch) for k in COMPARED if k in predicted})


@partial(jax.jit, static_argnames=("partition", "dtype", "losses", "mesh"))
def _gradients(weights, others, stacked, factors, *, partition, dtype, losses, mesh):
    def local(weights, others, stacked, factors):
        batch = jax.tree.map(lambda x: x[0], stacked)
        found = _gradient_of_part(weights, others, batch, factors, partition, dtype, losses)
        if mesh.size > 1:
            gradient, loss, errors = jax.lax.psum((found.gradient, found.loss, found.errors), "part")
            found = Gradients(gradient, loss, errors, found.products)
        return found._replace(products=jax.tree.map(lambda x: x[None], found.products))

    if mesh.size == 1:
        return local(weights, others, stacked, factors)
    whole, shared = PartitionSpec(), PartitionSpec("part")
    out = Gradients(whole, whole, whole, shared)
    over_devices = jax.shard_map(
        local, mesh=mesh, in_specs=(whole, whole, shared, whole), out_specs=out, check_vma=False
    )
    return over_devices(weights, others, stacked, factors)


@partial(jax.jit, static_argnames=("optimizer", "main"))
def _updated(state: State, gradient, loss, decay, *, optimizer, main: bool):
    updates, moments = optimizer.update(gradient, state.moments, state.weights)
    weights = optax.apply_updates(state.weights, updates)
    average = averaged(state.average, weights, decay, state.finished)
    new = State(weights, moments, average, state.finished + (1 if main else 0))
    fine = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradient))
    return jax.tree.map(partial(jnp.where, fine), new, state), fine


@partial(jax.jit, static_argnames=("partition", "dtype", "losses"))
def _errors(weights, others, batch, *, partition, dtype, losses):
    predicted = predictions(partition.merge(weights, others), batch, needs_of(losses), dtype)
    return {term.name: term.sums(predicted, batch) for term in losses}


def _products(label: str, predicted: Mapping[str, Any], batch: Batch):
    """(3, G) sums of label x prediction, prediction^2, label^2."""
    there = getattr(batch, f"has_{label}")[..., None]
    known, said = (jnp.where(there, x, 0.0) for x in (getattr(batch, label), predicted[label]))
    products = [jnp.sum(a * b, axis=-1) for a, b in ((known, said), (said, said), (known, known))]
    per_atom = [jnp.sum(p, axis=0) if p.ndim == 2 else p for p in products]
    return jnp.stack([jax.ops.segment_sum(p, batch.graph, batch.sizes.shape[0]) for p in per_atom])


def added(one: Gradients | None, other: Gradients) -> Gradients:
    """Sum of two parts of a step; the products are those of the second."""
    if one is None:
        return other
    total = jax.tree.map(jnp.add, (one.gradient, one.loss, one.errors), (other.gradient, other.loss, other.errors))
    return Gradients(*total, other.products)


def odd_sources(program: Program, weights: Any, held: Batches, losses: tuple[Term, ...]) -> list[str]:
    """Where the structures of those batches came from whose sums are not finite."""
    odd = []
    for pack, batch in held.stream(None):
        sums = jax.device_get(program.errors(weights, batch, losses))
        if not all(np.all(np.isfinite(s)) for s in sums.values()):
            odd += held.sources(pack)
    return odd


def validated(program: Program, weights: Any, held: Batches, losses: tuple[Term, ...], step: int) -> dict[str, float]:
    """Loss and mean absolute errors over a whole data set, always with the same columns.

    Args:
      step: at which the terms' weights are taken; losses compare only where it is the same.
    """
    totals = {term.name: np.zeros(3) for term in losses}
    for _, batch in held.stream(None):
        for name, sums in program.errors(weights, batch, losses).items():
            totals[name] += sums
    out = {"loss": 0.0}
    for term in losses:
        loss, error, count = totals[term.name]
        if count:
            out["loss"] += float(term.weight_at(step) * loss / count)
            out[term.metric] = float(error / count)
    return out
