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

    Returns: (...,) 1/THz, zero where no point of the tetrahedron has the frequency. At a frequency that is exactly a vertex's it
      is the limit from above; the weight jumps there only where all four vertices, or the centre and two others, coincide:
      where that matters, ask on either side.
    """
    return _cubic_splines(frequency, _knots(centre, others))[0] / 24


def between(above_low, above_high):
    """Whether a frequency lies between two knots, from how far it is above each; on a knot it belongs to the span above, as in
    phono3py 4. Were it in neither (phono3py 3), the tetrahedra with a vertex at the frequency itself would be left out, and
    rounding would decide which frequencies of a star are the same."""
    return (above_low >= 0) & (above_high < 0)


def _knots(centre, others):
    """The vertices in order, the centre twice."""
    # From minima and maxima alone: there is no comparison that could see two roundings of one value.
    a, b, c = others
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    x, y = jnp.minimum(low, c), jnp.maximum(high, c)
    m = jnp.maximum(low, jnp.minimum(high, c))
    return (
        jnp.minimum(x, centre),
        jnp.minimum(m, centre),
        jnp.minimum(jnp.maximum(x, centre), y),
        jnp.maximum(m, centre),
        jnp.maximum(y, centre),
    )


def _cubic_splines(w, t):
    """Cubic B-splines of unit integral on every five successive ones of the sorted knots, arrays of the shape of w."""
    below = [w - knot for knot in t]
    level = []
    for i in range(len(t) - 1):
        span = t[i + 1] - t[i]
        here = between(below[i], below[i + 1]) & (span > EMPTY)
        level.append(jnp.where(here, 1 / jnp.where(here, span, 1.0), 0.0))
    for n in (2, 3, 4):
        higher = []
        for i in range(len(t) - n):
            span = t[i + n] - t[i]
            some = span > EMPTY
            scale = (n / (n - 1)) / jnp.where(some, span, 1.0)
            higher.append(jnp.where(some, (below[i] * level[i] - below[i + n] * level[i + 1]) * scale, 0.0))
        level = higher
    return level


def _slope(w, t, knot):
    """Derivative of the cubic B-spline on the five sorted knots t by one of them.

    The derivative of a divided difference by a knot is the one with that knot repeated; of B-splines, it is minus a fifth of
    the slope of the quartic on six knots, and that slope is a difference of two cubics.
    """
    inner = [jnp.minimum(t[i], jnp.maximum(t[i - 1], knot)) for i in range(1, 5)]
    six = (jnp.minimum(t[0], knot), *inner, jnp.maximum(t[4], knot))
    left, right = _cubic_splines(w, six)
    span = six[5] - six[0]
    some = span > EMPTY
    return jnp.where(some, (right - left) / jnp.where(some, span, 1.0), 0.0)


def vertex_table(tetrahedra) -> tuple[np.ndarray, np.ndarray]:
    """The distinct vertices of the tetrahedra round a grid point.

    Args:
      tetrahedra: (24, 4, 3) relative addresses, the point itself first (`Grid.tetrahedra`).

    Returns: (v, 3) relative addresses, the point itself first; (24, 3) which of them are the other corners.
    """
    corners = np.asarray(tetrahedra)[:, 1:].reshape(-1, 3)
    unique, inverse = np.unique(corners, axis=0, return_inverse=True)
    return np.concatenate([np.zeros((1, 3), int), unique]), inverse.reshape(-1, 3) + 1


@jax.custom_jvp
def point_weight(frequency, values, corners):
    """Weight of a grid point: the sum over the tetrahedra that meet there.

    Args:
      frequency: (n,) THz.
      values: (v, n) THz at the vertices of `vertex_table`, the point itself first.
      corners: (24, 3) the table's second part.

    Returns: (n,) 1/THz; summed over a grid of N points and divided by N they integrate to one.
    """

    def add(total, corner):
        return total + tetrahedron_weight(frequency, values[0], tuple(values[i] for i in corner)), None

    # A scan over tetrahedra: the compiler vectorises along n and keeps nothing of the size 24 n.
    return jax.lax.scan(add, jnp.zeros_like(values[0]), jnp.asarray(corners))[0]


@point_weight.defjvp
def _point_weight_and_change(arguments, changes):
    """In closed form: a reverse pass through the recursion of every tetrahedron takes twenty times as long."""
    (frequency, values, corners), (of_frequency, of_values, _) = arguments, changes
    corners = jnp.asarray(corners)
    vertices = jnp.concatenate([jnp.zeros_like(corners[:, :1]), corners], 1)

    def add(slopes, where):
        # One vertex at a time: of several results the compiler would compute the common part for each of them anew.
        corner, vertex, times = where
        knots = _knots(values[0], tuple(values[i] for i in corner))
        return slopes.at[vertex].add(times / 24 * _slope(frequency, knots, values[vertex])), None

    times = jnp.tile(jnp.array([2.0, 1.0, 1.0, 1.0], values.dtype), len(corners))  # the centre is two knots
    each = (jnp.repeat(corners, 4, axis=0), vertices.reshape(-1), times)
    slopes = jax.lax.scan(add, jnp.zeros_like(values), each)[0]
    # The weight depends on differences of frequencies alone.
    change = jnp.sum(slopes * (of_values - of_frequency), 0)
    return point_weight(frequency, values, corners), change


def gaussian(x, sigma):
    """Normal distribution at x with standard deviation sigma, both THz; 1/THz."""
    return jnp.exp(-0.5 * (x / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
