"""Losses as composable terms: energy per atom, forces, stress, columns of the Hessian, third derivatives.

A loss is a list of terms. Each adds weight x sum over its labels / number of its labels, and reports its own error in
physical units. Second derivatives cost one Hessian-vector product for a whole batch: every structure is moved along one
of its degrees of freedom at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._routes import cast
from jaxmd_thermal.errors import InputError, UnsupportedError, nearest
from jaxmd_thermal.graph import Graph
from jaxmd_thermal.potentials.base import is_long_range, reference_energies, terms_of
from jaxmd_thermal.training.batches import Batch
from jaxmd_thermal.training.data import Frame
from jaxmd_thermal.units import GPA

Weight = float | Callable[[int], Any]
"""A number, or a schedule: what it is at each step (those of optax)."""

KINDS = ("mae", "mse", "huber", "norm")


@dataclass(frozen=True)
class Term:
    """Base of the terms.

    Attributes:
      weight: a number or a schedule of the step.
      kind: "mae", "mse", "huber" (x^2/2 up to delta, delta (|x| - delta/2) beyond), or "norm": length of the vector over the
        last axis, counted once.
      delta: of "huber", in the term's own unit.
    """

    weight: Weight = 1.0
    kind: str = "mae"
    delta: float = 0.1

    name: ClassVar[str]
    label: ClassVar[str]
    unit: ClassVar[str]
    per_unit: ClassVar[float] = 1.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(
                f"{self.name}: there is no kind '{self.kind}'{nearest(self.kind, KINDS)}: {', '.join(KINDS)}"
            )
        if not self.delta > 0:
            raise InputError(f"{self.name}: delta is {self.delta}; it must be positive")
        if not callable(self.weight) and not (np.isfinite(self.weight) and self.weight >= 0):
            raise InputError(f"{self.name}: the weight is {self.weight}; it must be zero or more, or a schedule")

    @property
    def metric(self) -> str:
        """Name of the reported error, with its unit."""
        return f"{self.name} {self.unit}"

    def weight_at(self, step: int) -> float:
        """The weight at a step."""
        return float(self.weight(step)) if callable(self.weight) else float(self.weight)

    def residual(self, predicted: Mapping[str, Any], batch: Batch) -> tuple[Any, Any]:
        """(..., d) prediction minus label, and (...) whether there is a label."""
        return predicted[self.label] - getattr(batch, self.label), getattr(batch, f"has_{self.label}")

    def count(self, batch: Batch) -> int:
        """Labels of a batch that the sum is divided by."""
        mask, label = getattr(batch, f"has_{self.label}"), getattr(batch, self.label)
        each = 1 if self.kind == "norm" else int(np.prod(np.shape(label)[np.ndim(mask) :]))
        return int(np.sum(mask)) * each

    def sums(self, predicted: Mapping[str, Any], batch: Batch) -> tuple[Any, Any]:
        """Sum of the loss over the labels, and sum of the absolute errors in the reported unit; both as `count`."""
        difference, there = self.residual(predicted, batch)
        if self.kind == "norm":
            square = jnp.sum(difference**2, axis=-1)
            apart = square > 0
            each = jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)
            error = each
        else:
            there = there.reshape(there.shape + (1,) * (difference.ndim - there.ndim))
            error = jnp.abs(difference)
            each = self._pointwise(difference, error)
        return jnp.sum(jnp.where(there, each, 0.0)), self.per_unit * jnp.sum(jnp.where(there, error, 0.0))

    def _pointwise(self, difference, size):
        if self.kind == "mse":
            return difference**2
        if self.kind == "huber":
            return jnp.where(size <= self.delta, 0.5 * difference**2, self.delta * (size - 0.5 * self.delta))
        return size


@dataclass(frozen=True)
class EnergyPerAtom(Term):
    """Energy of a structure over its atoms, eV; the mean over structures."""

    name: ClassVar[str] = "energy"
    label: ClassVar[str] = "energy"
    unit: ClassVar[str] = "meV/atom"
    per_unit: ClassVar[float] = 1e3

    def __post_init__(self):
        super().__post_init__()
        if self.kind == "norm":
            raise InputError("energy: a number has no norm: use mae, mse or huber")

    def residual(self, predicted, batch):
        size = jnp.maximum(batch.sizes, 1)
        return (predicted["energy"] - batch.energy) / size, batch.has_energy


@dataclass(frozen=True)
class Forces(Term):
    """Forces, eV/Å; the mean over atoms (norm) or components."""

    name: ClassVar[str] = "forces"
    label: ClassVar[str] = "forces"
    unit: ClassVar[str] = "meV/Å"
    per_unit: ClassVar[float] = 1e3


@dataclass(frozen=True)
class Stress(Term):
    """Stress, eV/Å^3, the potential's own: positions and cell are strained together; the mean over structures and components.

    "norm" is the Frobenius norm.
    """

    name: ClassVar[str] = "stress"
    label: ClassVar[str] = "stress"
    unit: ClassVar[str] = "GPa"
    per_unit: ClassVar[float] = 1.0 / GPA

    def residual(self, predicted, batch):
        difference = predicted["stress"] - batch.stress
        return (difference.reshape(-1, 9) if self.kind == "norm" else difference), batch.has_stress


@dataclass(frozen=True)
class HessianColumns(Term):
    """Columns of the Hessian at the structure's positions, eV/Å^2; the mean over all atoms, directions and columns."""

    name: ClassVar[str] = "hessian"
    label: ClassVar[str] = "hessian"
    unit: ClassVar[str] = "meV/Å²"
    per_unit: ClassVar[float] = 1e3


@dataclass(frozen=True)
class ThirdDerivatives(Term):
    """Third derivatives, twice along the column's degree of freedom, eV/Å^3; the mean as for the Hessian."""

    name: ClassVar[str] = "third"
    label: ClassVar[str] = "third"
    unit: ClassVar[str] = "meV/Å³"
    per_unit: ClassVar[float] = 1e3


def needs_of(losses: Sequence[Term]) -> frozenset[str]:
    """Quantities that the terms look at."""
    return frozenset(term.label for term in losses)


def check_losses(losses: Sequence[Term]) -> None:
    """Raises InputError without terms, or where two have one name."""
    names = [term.name for term in losses]
    if not names or len(set(names)) != len(names):
        raise InputError(f"the loss has the terms {names}; give at least one, and each only once")


def check_labels(losses: Sequence[Term], frames: Sequence[Frame], what: str) -> None:
    """Raises InputError where no frame has the label of a term: the term would be zero for any weights.

    Args:
      what: the frames are, for the message.
    """
    for term in losses:
        if all(getattr(frame, term.label) is None for frame in frames):
            raise InputError(
                f"none of the {len(frames)} structures of {what} has the label '{term.label}', which the term {term.name} of the "
                "loss needs: label some of them, or leave the term out"
            )


def predictions(potential: Any, batch: Batch, needs: frozenset[str], dtype: Any = jnp.float64) -> dict[str, Any]:
    """What a potential says of a batch; pure, differentiable in the potential.

    Args:
      needs: out of energy (G,), forces (A, 3), stress (G, 3, 3), hessian (C, A, 3), third (C, A, 3).
      dtype: precision in which the potential is evaluated; edges are formed in that of the positions.

    Forces and one Hessian column come out of one reverse pass over a directional derivative; several columns share one
    linearisation of the forces.
    """
    energy, variables = _energy_of(potential, batch, needs, dtype)
    out: dict[str, Any] = {}
    curved = bool(needs & {"hessian", "third"})
    if curved or needs & {"forces", "stress"}:

        def slope(move):
            (_, atomic), gradient = jax.value_and_grad(energy, has_aux=True)(variables | {"move": move})
            return gradient["move"], (gradient, atomic)

        if "third" not in needs and curved and batch.columns.shape[0] == 1:
            gradient, atomic, out["hessian"] = _one_column(energy, variables, _ways(batch)[0])
        elif curved:
            (gradient, atomic), second = _curvature(slope, variables["move"], batch, needs)
            out |= second
        else:
            _, (gradient, atomic) = slope(variables["move"])
        out["forces"] = -gradient["move"]
        if "stress" in needs:
            virial = 0.5 * (gradient["strain"] + jnp.swapaxes(gradient["strain"], 1, 2))
            out["stress"] = virial / _volumes(batch)
    else:
        _, atomic = energy(variables)
    out["energy"] = _of_structures(potential, batch, atomic)
    return {name: out[name] for name in needs}


def _energy_of(potential: Any, batch: Batch, needs: frozenset[str], dtype: Any):
    """Function of displacements and strains -> (total energy, atomic energies without constants), and where it is taken."""
    terms = terms_of(potential)
    if any(is_long_range(term) for term in terms):
        raise UnsupportedError("potentials with long-range terms cannot be trained: use one without them")
    cheap = [cast(term, dtype) for term in terms]
    # A value, and for each order of derivative as many numbers again along another direction.
    carried = 8 if "third" in needs else 4 if "hessian" in needs else 2

    def energy(variables):
        x, cell = batch.positions + variables["move"], batch.cell
        if "strain" in variables:
            strain = variables["strain"]
            x = x + jnp.einsum("ax,axy->ay", x, strain[batch.graph])
            cell = cell + jnp.einsum("gax,gxy->gay", cell, strain)
        total = 0.0
        for term in cheap:
            graph = Graph.of(x, cell, batch.numbers, batch, term.cutoff, dtype, carried=carried)  # type: ignore[arg-type]
            total = total + term.atomic_energies(graph).astype(x.dtype)
        atomic = jnp.where(batch.atoms, total, 0.0)
        return jnp.sum(atomic), atomic

    start = {"move": jnp.zeros_like(batch.positions)}
    if "stress" in needs:
        start["strain"] = jnp.zeros_like(batch.cell)
    return energy, start


def _of_structures(potential: Any, batch: Batch, atomic):
    """(G,) energies with the constants of the species."""
    atomic = jnp.where(batch.atoms, atomic + reference_energies(potential, batch.numbers), 0.0)
    return jax.ops.segment_sum(atomic, batch.graph, batch.cell.shape[0])


def _volumes(batch: Batch):
    """(G, 1, 1) Å^3; one without a cell, which has no stress, so that nothing is divided by zero."""
    volumes = jnp.abs(jnp.linalg.det(batch.cell))[:, None, None]
    return jnp.where(volumes > 0.0, volumes, 1.0)


def paired(potential: Any, batch: Batch, adjoint: Mapping[str, Any], dtype: Any = jnp.float64):
    """`sum of adjoint x prediction`, in a form whose gradient by the potential is cheap.

    Forces and Hessian columns meet their adjoints as directional derivatives of the energy,
    `w . H v + u . dE/dx = d/ds [dE/dt](x + s w, v + s u)`, two forward passes; the one reverse pass that the gradient
    needs is then the only one. Differentiating the Hessian-vector product itself would reverse what was reversed already.

    Args:
      adjoint: of `predictions`, without third derivatives.
    """
    energy, start = _energy_of(potential, batch, frozenset(adjoint), dtype)
    push = jax.tree.map(jnp.zeros_like, start)
    if "forces" in adjoint:
        push["move"] = -adjoint["forces"]
    if "stress" in adjoint:
        push["strain"] = 0.5 * (adjoint["stress"] + jnp.swapaxes(adjoint["stress"], 1, 2)) / _volumes(batch)
    if "hessian" not in adjoint:
        _, slope, atomic = jax.jvp(energy, (start,), (push,), has_aux=True)
    else:

        def along(z, v):
            _, slope, atomic = jax.jvp(energy, (z,), (v,), has_aux=True)
            return slope, atomic

        def both(v, w, u):
            v, w = (jax.tree.map(jnp.zeros_like, start) | {"move": move} for move in (v, w))
            _, found, atomic = jax.jvp(along, (start, v), (w, u), has_aux=True)
            return found, atomic

        ways = _ways(batch)
        # The forces are paired once, with the first column.
        first = jax.tree.map(lambda x: jnp.zeros((ways.shape[0], *x.shape), x.dtype).at[0].set(x), push)
        if ways.shape[0] == 1:
            slope, atomic = both(ways[0], adjoint["hessian"][0], push)
        else:
            slopes, atomic = jax.vmap(both, out_axes=(0, None))(ways, adjoint["hessian"], first)
            slope = jnp.sum(slopes)
    if "energy" in adjoint:
        slope = slope + jnp.vdot(adjoint["energy"], _of_structures(potential, batch, atomic))
    return slope


def _one_column(energy, variables, way):
    """(gradient, atomic energies, (1, A, 3) Hessian column): with s(x, v) = v . dU/dx, dU/dx = ds/dv and H v = ds/dx.

    Reverse over forward: measured 0.86 of the time of forward over reverse (published weights, 64 atoms).
    """

    def slope(where, along):
        _, found, atomic = jax.jvp(energy, (where,), (along,), has_aux=True)
        return found, atomic

    along = jax.tree.map(jnp.zeros_like, variables) | {"move": way}
    (second, gradient), atomic = jax.grad(slope, (0, 1), has_aux=True)(variables, along)
    return gradient, atomic, second["move"][None]


def _curvature(slope, start, batch: Batch, needs: frozenset[str]):
    """What `slope` returns beside the gradient, and the wanted derivatives along the columns of the batch."""
    along = _ways(batch)
    out = {}
    if "third" in needs:

        def twice(v):
            def once(x):
                return jax.jvp(slope, (x,), (v,), has_aux=True)

            (_, second, others), (_, third, _) = jax.jvp(once, (start,), (v,))
            return others, second, third

        others, second, third = jax.vmap(twice)(along)
        others = jax.tree.map(lambda x: x[0], others)
        out = {"hessian": second, "third": third}
    else:
        _, linear, others = jax.linearize(slope, start, has_aux=True)
        out["hessian"] = jax.vmap(linear)(along)
    return others, out


def _ways(batch: Batch):
    """(C, A, 3) directions: in every structure one degree of freedom moves by one unit, with all its images."""
    count = batch.columns.shape[0]
    if count == 0:
        raise InputError("the batch has room for no columns: its structures have no second derivatives")
    along = jnp.zeros((count, batch.positions.size), batch.positions.dtype)
    along = along.at[jnp.arange(count)[:, None], batch.columns].add(batch.has_columns.astype(along.dtype))
    return along.reshape(count, *batch.positions.shape)


def loss_sums(potential: Any, batch: Batch, losses: Sequence[Term], dtype: Any = jnp.float64):
    """{name: (sum of the loss, sum of the absolute errors)} of a batch; divide by `Term.count` for the means."""
    predicted = predictions(potential, batch, needs_of(losses), dtype)
    return {term.name: term.sums(predicted, batch) for term in losses}


def total_loss(potential: Any, batch: Batch, losses: Sequence[Term], factors: Mapping[str, Any], dtype=jnp.float64):
    """Weighted sum of the terms, and the sums of their errors.

    Args:
      factors: weight over number of labels, by the name of the term. The labels are those of everything that makes a step:
        with them, gradients of parts of a step add up to the gradient of the whole.
    """
    sums = loss_sums(potential, batch, losses, dtype)
    return sum(factors[name] * loss for name, (loss, _) in sums.items()), {name: e for name, (_, e) in sums.items()}


def factors_of(losses: Sequence[Term], batches: Sequence[Batch], step: int) -> dict[str, float]:
    """Weight over number of labels of each term, over all batches of a step."""
    out = {}
    for term in losses:
        labels = sum(term.count(batch) for batch in batches)
        out[term.name] = term.weight_at(step) / labels if labels else 0.0
    return out
