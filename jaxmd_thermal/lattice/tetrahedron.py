"""Delta functions on a grid of q-points: the linear tetrahedron method as a B-spline, and Gaussians."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

EMPTY = 1e-12
"""THz. A knot span below this counts as empty."""


def tetrahedron_weight(frequency, centre, others):
    """Integration weight of delta(frequency - f) at one vertex of tetrahedra on which f is linear, in units of the grid cell.

    It is M(w; c, c, v1, v2, v3)/24 for each tetrahedron of a sixth of a grid cell (Hermite-Genocchi), where M is the
    cubic B-spline of unit integral and the knot of the vertex that receives the weight is doubled: one recursion (de Boor
    1972) in place of the tables of cases (Blöchl, Jepsen and Andersen, Phys. Rev. B 49, 16223 (1994)). Once continuously
    differentiable in `frequency` and in the vertex values.

    Args:
      frequency: (...,) THz.
      centre: (...,) THz, value at the vertex.
      others: three arrays (...,) THz, values at the other vertices.

    Returns: (...,) 1/THz, zero where no point of the tetrahedron has the frequency.
    """
    # Sorted knots from minima and maxima alone: there is no comparison that could see two roundings of one value.
    a, b, c = others
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    x, y = jnp.minimum(low, c), jnp.maximum(high, c)
    m = jnp.maximum(low, jnp.minimum(high, c))
    knots = (
        jnp.minimum(x, centre),
        jnp.minimum(m, centre),
        jnp.minimum(jnp.maximum(x, centre), y),
        jnp.maximum(m, centre),
        jnp.maximum(y, centre),
    )
    return _cubic_spline(frequency, knots) / 24


def _cubic_spline(w, t):
    """Cubic B-spline of unit integral on five sorted knots, each an array of the shape of w."""
    below = [w - knot for knot in t]
    level = []
    for i in range(4):
        span = t[i + 1] - t[i]
        inside = (below[i] > 0) & (below[i + 1] < 0) & (span > EMPTY)
        level.append(jnp.where(inside, 1 / jnp.where(inside, span, 1.0), 0.0))
    for n in (2, 3, 4):
        higher = []
        for i in range(5 - n):
            span = t[i + n] - t[i]
            some = span > EMPTY
            scale = (n / (n - 1)) / jnp.where(some, span, 1.0)
            higher.append(jnp.where(some, (below[i] * level[i] - below[i + n] * level[i + 1]) * scale, 0.0))
        level = higher
    return level[0]


def vertex_table(tetrahedra) -> tuple[np.ndarray, np.ndarray]:
    """The distinct vertices of the tetrahedra round a grid point.

    Args:
      tetrahedra: (24, 4, 3) relative addresses, the point itself first (`Grid.tetrahedra`).

    Returns: (v, 3) relative addresses, the point itself first; (24, 3) which of them are the other corners.
    """
    corners = np.asarray(tetrahedra)[:, 1:].reshape(-1, 3)
    unique, inverse = np.unique(corners, axis=0, return_inverse=True)
    return np.concatenate([np.zeros((1, 3), int), unique]), inverse.reshape(-1, 3) + 1


def point_weight(frequency, values, corners):
    """Weight of a grid point: the sum over the tetrahedra that meet there.

    Args:
      frequency: (n,) THz.
      values: (v, n) THz at the vertices of `vertex_table`, the point itself first.
      corners: (24, 3) the table's second part.

    Returns: (n,) 1/THz; summed over a grid of N points and divided by N they integrate to one.
    """

    def add(total, corner):
        others = (values[corner[0]], values[corner[1]], values[corner[2]])
        return total + tetrahedron_weight(frequency, values[0], others), None

    # A scan over tetrahedra: the compiler vectorises along n and keeps nothing of the size 24 n.
    return jax.lax.scan(add, jnp.zeros_like(values[0]), jnp.asarray(corners))[0]


def gaussian(x, sigma):
    """Normal distribution at x with standard deviation sigma, both THz; 1/THz."""
    return jnp.exp(-0.5 * (x / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
