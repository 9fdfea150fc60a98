"""The protocol of observables and their connection with the run loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal.errors import InputError, nearest


@runtime_checkable
class Observable(Protocol):
    """An accumulator as a pair of pure functions and a read-out, all on one replica (optax's `init`/`update`).

    The object itself holds settings only and is hashable, so that it can be a static argument; all that changes is in
    the pytree `state`, which goes through scan, vmap, checkpoints and grad like any other.
    """

    def init(self, example: Any) -> Any:
        """State before the first value; `example` has the shape and type of the values."""
        ...

    def update(self, state: Any, value: Any) -> Any:
        """State after one more value. Traced: no host effects, the same shapes."""
        ...

    def finalize(self, state: Any) -> Mapping[str, np.ndarray]:
        """The result, on the host, in NumPy."""
        ...


@dataclass(frozen=True)
class Observe:
    """An observable of the run loop: feeds `accumulator` with entries of each sample, replica by replica.

    Args:
      accumulator: an `Observable`.
      keys: entries of the sample; several are added up. The default is the whole heat flux.
    """

    accumulator: Any
    keys: tuple[str, ...] = ("heat_flux_potential", "heat_flux_convective")

    def _value(self, sample: Mapping[str, Any]) -> Any:
        for key in self.keys:
            if key not in sample:
                known = ", ".join(sample)
                raise InputError(f"the samples of this run have no '{key}'{nearest(key, sample)}; there are {known}")
        return sum(sample[key] for key in self.keys[1:]) + sample[self.keys[0]]

    def init(self, sample: Mapping[str, Any]) -> Any:
        """States of all replicas; `sample` may be shapes only (`jax.eval_shape`), with the replicas leading."""
        value = jax.eval_shape(self._value, dict(sample))
        return jax.vmap(self.accumulator.init)(jnp.zeros(value.shape, value.dtype))

    def update(self, state: Any, sample: Mapping[str, Any]) -> Any:
        return jax.vmap(self.accumulator.update)(state, self._value(sample))

    def finalize(self, state: Any) -> list[Mapping[str, np.ndarray]]:
        """One result a replica."""
        replicas = jax.tree.leaves(state)[0].shape[0]
        return [self.accumulator.finalize(jax.tree.map(lambda x, i=i: x[i], state)) for i in range(replicas)]


def wide_int() -> Any:
    """int64; an error where 64-bit types are off, since 32-bit counters overflow and 32-bit sums lose digits."""
    if not jax.config.jax_enable_x64:
        raise InputError("observables need 64-bit types; call them inside `with double_precision():`.")
    return jnp.int64


def wide_float() -> Any:
    """float64, on the same condition."""
    wide_int()
    return jnp.float64
