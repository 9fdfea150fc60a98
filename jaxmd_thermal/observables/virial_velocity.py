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

PARTS = 20
"""Pieces of a run whose sums are kept apart."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VirialVelocityState:
    """Ring buffers (lags + 1, atoms, 3) of the newest virials and velocities (newest first); sums (parts, lags + 1); counts."""

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

    Attributes:
      lags: L.
      frames: samples that the run will have. The response to a force has an onset, whose length is known afterwards only:
        pairs are added up in `PARTS` parts of the run, by the earlier of their two samples, so that it can be left out.
    """

    lags: int
    frames: int

    def __post_init__(self) -> None:
        if not 1 <= self.lags < self.frames:
            raise InputError(
                f"lags is {self.lags} of {self.frames} samples; at least 1 is needed, and more samples than lags: run longer, "
                "or ask for fewer lags"
            )

    @property
    def bytes_per_atom(self) -> float:
        """Memory of the state of a replica (the sums are small beside the buffers)."""
        return 2 * (self.lags + 1) * 3 * 8

    def init(self, sample: Mapping[str, Any]) -> VirialVelocityState:
        shape = sample["velocities"].shape  # (replicas, atoms, 3)
        buffer = jnp.zeros((shape[0], self.lags + 1, *shape[1:]), wide_float())
        sums = jnp.zeros((shape[0], PARTS, self.lags + 1), wide_float())
        return VirialVelocityState(jnp.zeros(shape[0], wide_int()), buffer, buffer, sums, sums)

    def update(self, state: VirialVelocityState, sample: Mapping[str, Any]) -> VirialVelocityState:
        virials = jnp.concatenate([sample["driving_virial"][:, None], state.virials[:, :-1]], axis=1)
        velocities = jnp.concatenate([sample["velocities"][:, None], state.velocities[:, :-1]], axis=1)
        earlier = state.count[:, None] - jnp.arange(self.lags + 1, dtype=state.count.dtype)
        mine = self._part(earlier)[:, None, :] == jnp.arange(PARTS)[:, None]
        # Buffers start with zeros, which add nothing to the sums of lags that do not exist yet.
        return VirialVelocityState(
            count=state.count + 1,
            virials=virials,
            velocities=velocities,
            forward=state.forward + mine * jnp.einsum("rlna,rna->rl", virials, velocities[:, 0])[:, None],
            backward=state.backward + mine * jnp.einsum("rlna,rna->rl", velocities, virials[:, 0])[:, None],
        )

    def finalize(self, state: VirialVelocityState) -> dict[str, np.ndarray]:
        """`products` (replicas, PARTS, 2 L + 1) eV/fs per unit of W's field, sums at the lags -L .. L, and how many `pairs`."""
        count = int(np.min(state.count))
        if count != self.frames:
            raise InputError(f"the run has {count} samples, but its spectral current was prepared for {self.frames}")
        first = self._first()
        last = np.append(first[1:], count)
        # The last samples of the run have no partner a lag later.
        pairs = np.maximum(0, np.minimum(last[:, None], count - np.arange(self.lags + 1)) - first[:, None])
        forward, backward = np.asarray(state.forward), np.asarray(state.backward)
        return {
            "products": np.concatenate([backward[..., :0:-1], forward], axis=-1),
            "pairs": np.concatenate([pairs[:, :0:-1], pairs], axis=-1),
        }

    def correlation(self, found: Mapping[str, np.ndarray], discarded: int = 0) -> tuple[np.ndarray, int]:
        """What `finalize` found -> K (replicas, 2 L + 1) without the first `discarded` samples, and how many those are: whole
        parts of the run, and so many only that every lag has pairs."""
        first = self._first()
        allowed = found["pairs"][::-1].cumsum(axis=0)[::-1].min(axis=1) > 0
        part = min(int(np.searchsorted(first, discarded)), int(np.flatnonzero(allowed)[-1]))
        kept = found["products"][:, part:].sum(axis=1) / found["pairs"][part:].sum(axis=0)
        return kept, int(first[part])

    def _part(self, sample):
        return sample * PARTS // self.frames

    def _first(self) -> np.ndarray:
        """(PARTS,) the first sample of each part."""
        return -(-np.arange(PARTS) * self.frames // PARTS)
