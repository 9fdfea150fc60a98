"""Correlation of the transposed heat flux with the velocities: which frequencies carry the heat of a driven run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.observables.base import wide_float, wide_int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VirialVelocityState:
    """Ring buffers (lags + 1, atoms, 3) of the newest virials and velocities (newest first), sums, counts."""

    count: Any
    virials: Any
    velocities: Any
    forward: Any
    backward: Any


@dataclass(frozen=True)
class VirialVelocityCorrelator:
    """K(t) = sum_j <W_j(0) . v_j(t)> at the lags -L .. L samples, W the `driving_virial` of each sample.

    K(0) = <J_pot . F_e>. Input of `transport.spectral.spectral_conductivity`.
    Source: Fan et al., PRB 99, 064308 (2019), eq. 11.
    """

    lags: int = 100

    def __post_init__(self) -> None:
        if self.lags < 1:
            raise InputError(f"lags is {self.lags}; at least 1 is needed")

    @property
    def bytes_per_atom(self) -> float:
        """Memory of the state of a replica (the sums are small beside the buffers)."""
        return 2 * (self.lags + 1) * 3 * 8

    def init(self, sample: Mapping[str, Any]) -> VirialVelocityState:
        shape = sample["velocities"].shape  # (replicas, atoms, 3)
        buffer = jnp.zeros((shape[0], self.lags + 1, *shape[1:]), wide_float())
        sums = jnp.zeros((shape[0], self.lags + 1), wide_float())
        return VirialVelocityState(jnp.zeros(shape[0], wide_int()), buffer, buffer, sums, sums)

    def update(self, state: VirialVelocityState, sample: Mapping[str, Any]) -> VirialVelocityState:
        virials = jnp.concatenate([sample["driving_virial"][:, None], state.virials[:, :-1]], axis=1)
        velocities = jnp.concatenate([sample["velocities"][:, None], state.velocities[:, :-1]], axis=1)
        # Buffers start with zeros, which add nothing to the sums of lags that do not exist yet.
        return VirialVelocityState(
            count=state.count + 1,
            virials=virials,
            velocities=velocities,
            forward=state.forward + jnp.einsum("rlna,rna->rl", virials, velocities[:, 0]),
            backward=state.backward + jnp.einsum("rlna,rna->rl", velocities, virials[:, 0]),
        )

    def finalize(self, state: VirialVelocityState) -> dict[str, np.ndarray]:
        """`correlation` (replicas, 2 L + 1) eV/fs per unit of W's field, lags -L .. L."""
        pairs = np.asarray(state.count)[:, None] - np.arange(self.lags + 1)
        if np.any(pairs < 1):
            raise InputError(
                f"the run has {int(np.min(state.count))} samples, but the spectral current needs more than {self.lags}: "
                "run longer, or ask for fewer lags"
            )
        forward = np.asarray(state.forward) / pairs
        backward = np.asarray(state.backward) / pairs
        return {"correlation": np.concatenate([backward[:, :0:-1], forward], axis=1)}
