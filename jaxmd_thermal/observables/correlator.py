"""Time correlation on the fly over many decades of time, in constant memory: the multiple-tau correlator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.observables.base import wide_float, wide_int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CorrelatorState:
    """History and sums of one signal with c components.

    Attributes:
      count: int64, values seen.
      history: (levels, points, c), newest first.
      partial: (levels, c), sum of the level's inputs since it last fed the next one.
      products: (levels, points, c, c), sums of x_a(t - lag) x_b(t).
      total: (c,), sum of all values.
    """

    count: Any
    history: Any
    partial: Any
    products: Any
    total: Any


@dataclass(frozen=True)
class MultipleTauCorrelator:
    """C_ab(t) = <x_a(0) x_b(t)> of a vector signal; the lags grow geometrically, the cost a value does not.

    Level 0 correlates the values themselves at lags 0 .. points - 1, exactly as an FFT would. Level i correlates means
    of `average`^i consecutive values at lags j average^i, j = points/average .. points - 1. The averaging error is
    small as long as the correlation varies little over 1/points of its lag.
    Source: Ramirez, Sukumaran, Vorselaars, Likhtman, J. Chem. Phys. 133, 154103 (2010).

    Of the heat flux, `transport.green_kubo_correlation` makes a conductivity of it.

    Longest lag: (points - 1) average^(levels - 1) values; with the defaults 4.9e5 values at 16 levels of 16 points.
    """

    levels: int = 16
    points: int = 16
    average: int = 2

    def __post_init__(self) -> None:
        if self.levels < 1 or self.average < 2 or self.points < self.average or self.points % self.average:
            raise InputError(
                f"levels = {self.levels}, points = {self.points}, average = {self.average}: needed are levels >= 1, "
                "average >= 2 and points a multiple of average. Try points = 16, average = 2."
            )

    def init(self, example: Any) -> CorrelatorState:
        """`example`: (c,)."""
        (c,) = jnp.shape(example)
        shape, dtype = (self.levels, self.points), wide_float()
        return CorrelatorState(
            count=jnp.zeros((), wide_int()),
            history=jnp.zeros((*shape, c), dtype),
            partial=jnp.zeros((self.levels, c), dtype),
            products=jnp.zeros((*shape, c, c), dtype),
            total=jnp.zeros((c,), dtype),
        )

    def update(self, state: CorrelatorState, value: Any) -> CorrelatorState:
        """One more value (c,). Every level is computed and the idle ones are masked: no branches under vmap."""
        value = jnp.asarray(value, state.total.dtype)
        count = state.count + 1
        periods = np.int64(self.average) ** np.arange(self.levels, dtype=np.int64)
        fires = count % periods == 0  # (levels,)
        inputs, partial = [value], []
        for level in range(self.levels):
            total = state.partial[level] + jnp.where(fires[level], inputs[level], 0.0)
            full = fires[level + 1] if level + 1 < self.levels else False
            inputs.append(total / self.average)
            partial.append(jnp.where(full, 0.0, total))
        new = jnp.stack(inputs[: self.levels])  # (levels, c)
        shifted = jnp.concatenate([new[:, None], state.history[:, :-1]], axis=1)
        history = jnp.where(fires[:, None, None], shifted, state.history)
        # Older value first: C_ab at positive lag is <x_a(t - lag) x_b(t)>. Empty slots hold zeros and add nothing.
        products = shifted[:, :, :, None] * new[:, None, None, :]
        products = state.products + jnp.where(fires[:, None, None, None], products, 0.0)
        return CorrelatorState(count, history, jnp.stack(partial), products, state.total + value)

    def finalize(self, state: CorrelatorState, *, subtract_mean: bool = False) -> dict[str, np.ndarray]:
        """`lag` (L,) in values, `correlation` (L, c, c), `pairs` (L,) number of products in each mean, `mean` (c,).

        Only lags with at least one product. `subtract_mean` takes <x_a><x_b> of all values off; the heat flux has zero
        mean in equilibrium and needs it only if the cell drifts.
        """
        count = int(state.count)
        if count == 0:
            raise InputError("the correlator has seen no value; update it at least once before reading it.")
        mean = np.asarray(state.total) / count
        products = np.asarray(state.products)
        lags, values, pairs = [], [], []
        for level in range(self.levels):
            period = self.average**level
            for j in range(0 if level == 0 else self.points // self.average, self.points):
                number = count // period - j
                if number > 0:
                    lags.append(j * period)
                    values.append(products[level, j] / number)
                    pairs.append(number)
        correlation = np.array(values)
        if subtract_mean:
            correlation = correlation - np.outer(mean, mean)
        return {"lag": np.array(lags), "correlation": correlation, "pairs": np.array(pairs), "mean": mean}


def integrate_lags(lag: np.ndarray, correlation: np.ndarray, timestep: float) -> np.ndarray:
    """Running integral (L, ...) over unequal lags by the trapezoidal rule; `timestep` in fs between values."""
    widths = timestep * np.diff(lag).reshape(-1, *[1] * (correlation.ndim - 1))
    out = np.zeros(correlation.shape)
    out[1:] = np.cumsum(0.5 * widths * (correlation[1:] + correlation[:-1]), axis=0)
    return out
