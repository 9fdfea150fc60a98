"""Lennard-Jones, for one or several species."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.potentials.base import PairPotential
from jaxmd_thermal.system import static

SYMMETRY = 1e-6
"""Relative to the largest entry: what the rounding of float32 may leave between the two entries of a pair."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LennardJones(PairPotential):
    """phi(r) = 4 epsilon [(sigma/r)^12 - (sigma/r)^6], truncated at `cutoff`.

    Args:
      epsilon: eV; a number, or a symmetric (species, species) matrix.
      sigma: Å; the same shape as epsilon, or a number.
      cutoff: Å.
      truncation: "cut" (energy jumps at the cutoff), "shift" (phi(cutoff) subtracted), or "switch" (multiplied from
        `switch_start` on by S = (rc^2 - r^2)^2 (rc^2 + 2 r^2 - 3 ron^2) / (rc^2 - ron^2)^3, the XPLOR switch: energy
        and force are continuous).
      switch_start: Å, where the switch begins.
      species: atomic numbers in the order of the matrices; needed if they are matrices.

    Source: Lennard-Jones (1924); switch: Brünger, X-PLOR manual; checked against LAMMPS.
    """

    epsilon: Any
    sigma: Any
    cutoff: float = static()
    truncation: Literal["cut", "shift", "switch"] = static("cut")
    switch_start: float | None = static(None)
    species: tuple[int, ...] | None = static(None)

    def __post_init__(self):
        for name in ("epsilon", "sigma"):
            value = getattr(self, name)
            if isinstance(value, int | float | list | tuple):
                # NumPy float64, whatever the user's jax_enable_x64: a float32 leaf would spoil float64 runs.
                object.__setattr__(self, name, np.asarray(value, np.float64))
        if self.truncation not in ("cut", "shift", "switch"):
            raise InputError(f"truncation is {self.truncation!r}; it must be 'cut', 'shift' or 'switch'")
        if not self.cutoff > 0:
            raise InputError(f"the cutoff is {self.cutoff} Å; it must be positive")
        if (self.truncation == "switch") != (self.switch_start is not None):
            raise InputError(
                f"truncation {self.truncation!r} with switch_start {self.switch_start}: "
                "'switch' needs a switch_start in Å, the others take none"
            )
        if self.switch_start is not None and not 0 < self.switch_start < self.cutoff:
            raise InputError(
                f"switch_start is {self.switch_start} Å; it must lie between 0 and the cutoff {self.cutoff} Å"
            )
        shape = max(np.shape(self.epsilon), np.shape(self.sigma), key=len)
        if len(shape) == 2 and (self.species is None or shape != (len(self.species),) * 2):
            raise InputError(
                f"epsilon and sigma have the shape {shape}, but species is {self.species}: "
                "name one atomic number for each row"
            )
        self._check("epsilon", "eV")
        self._check("sigma", "Å")

    def _check(self, name: str, unit: str) -> None:
        """Refuse values that are no number and no symmetric matrix over the species.

        Only NumPy arrays, which users and files give: traced arrays have no values, and a tree of gradients or a stack of
        potentials is no potential.
        """
        value = getattr(self, name)
        if not isinstance(value, np.ndarray) or value.ndim == 0:
            return
        if value.shape != (len(self.species or ()),) * 2:
            raise InputError(
                f"{name} has the shape {value.shape}, and species is {self.species}: give a number, or a matrix with a row "
                "and a column for each species"
            )
        apart = np.abs(value - value.T)
        if np.any(apart > SYMMETRY * np.max(np.abs(value))):
            a, b = (int(i) for i in np.unravel_index(np.argmax(apart), value.shape))
            assert self.species is not None
            pair = (self.species[a], self.species[b])
            raise InputError(
                f"{name} is {value[a, b]:g} {unit} for the species {pair} and {value[b, a]:g} {unit} for {pair[::-1]}: a pair "
                "has one energy, so make the matrix symmetric"
            )

    def pair_energy(self, distances_squared, graph):
        epsilon, sigma = jnp.asarray(self.epsilon), jnp.asarray(self.sigma)
        if epsilon.ndim == 2 or sigma.ndim == 2:
            assert self.species is not None
            table = np.zeros(max(self.species) + 1, np.int32)
            table[list(self.species)] = np.arange(len(self.species))
            a, b = jnp.asarray(table)[graph.numbers[:, None]], jnp.asarray(table)[graph.neighbor_numbers]
            epsilon = epsilon[a, b] if epsilon.ndim == 2 else epsilon
            sigma = sigma[a, b] if sigma.ndim == 2 else sigma

        def bare(d2):
            t = (d2 / (sigma * sigma)) ** 3
            return 4.0 * epsilon * (1.0 - t) / (t * t)

        phi = bare(distances_squared)
        rc2 = self.cutoff**2
        if self.truncation == "shift":
            phi = phi - bare(jnp.asarray(rc2, phi.dtype))
        elif self.truncation == "switch":
            assert self.switch_start is not None
            on2 = self.switch_start**2
            d2 = distances_squared
            switch = (rc2 - d2) ** 2 * (rc2 + 2.0 * d2 - 3.0 * on2) / (rc2 - on2) ** 3
            phi = phi * jnp.where(d2 < on2, 1.0, switch)
        return phi

    def pair_slope(self, distances_squared, graph):
        if self.truncation == "switch" or jnp.ndim(self.epsilon) == 2 or jnp.ndim(self.sigma) == 2:
            return super().pair_slope(distances_squared, graph)
        x = distances_squared * (1.0 / (self.sigma * self.sigma))
        t = x * x * x
        # One division a slot, and the last operation: XLA then computes it once for all sums that use it.
        scale = 24.0 * self.epsilon / (self.sigma * self.sigma)
        return jnp.where(distances_squared < self.cutoff**2, scale * (t - 2.0), 0.0) / (t * t * x)
