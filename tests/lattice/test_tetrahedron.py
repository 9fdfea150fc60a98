"""Tetrahedron weights against quadrature by random points, the usual formulas for ordered vertices, and derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.lattice.grid import make_grid
from jaxmd_thermal.lattice.tetrahedron import gaussian, point_weight, tetrahedron_weight, vertex_table

FCC = 2.8538 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]])


@pytest.fixture(autouse=True)
def in_double_precision():
    with double_precision():
        yield


def textbook(w, values):
    """Weight at each vertex of one tetrahedron for delta(w - f), case by case (MacDonald, Vosko and Coleridge 1979)."""
    order = np.argsort(values)
    e = np.asarray(values)[order]

    def f(n, m):
        return (w - e[m]) / (e[n] - e[m])

    weights = np.zeros(4)
    if e[0] < w < e[1]:
        g = 3 * f(1, 0) * f(2, 0) / (e[3] - e[0])
        inner = [(f(0, 1) + f(0, 2) + f(0, 3)) / 3, *(f(k, 0) / 3 for k in (1, 2, 3))]
    elif e[1] < w < e[2]:
        g = 3 / (e[3] - e[0]) * (f(1, 2) * f(2, 0) + f(2, 1) * f(1, 3))
        d = e[3] - e[0]
        inner = [
            f(0, 3) / 3 + f(0, 2) * f(2, 0) * f(1, 2) / (g * d),
            f(1, 2) / 3 + f(1, 3) ** 2 * f(2, 1) / (g * d),
            f(2, 1) / 3 + f(2, 0) ** 2 * f(1, 2) / (g * d),
            f(3, 0) / 3 + f(3, 1) * f(1, 3) * f(2, 1) / (g * d),
        ]
    elif e[2] < w < e[3]:
        g = 3 * f(1, 3) * f(2, 3) / (e[3] - e[0])
        inner = [f(0, 3) / 3, f(1, 3) / 3, f(2, 3) / 3, (f(3, 0) + f(3, 1) + f(3, 2)) / 3]
    else:
        return weights
    weights[order] = g * np.array(inner) / 6  # a sixth of the grid cell
    return weights


def weight(w, values):
    v = jnp.asarray(values)
    return tetrahedron_weight(jnp.asarray(w), v[0], (v[1], v[2], v[3]))


def test_equals_the_usual_formulas():
    rng = np.random.default_rng(2)
    values = rng.uniform(size=(2000, 4))
    w = rng.uniform(size=2000)
    got = tetrahedron_weight(jnp.asarray(w), jnp.asarray(values[:, 0]), tuple(jnp.asarray(values[:, 1:].T)))
    expected = np.array([textbook(x, v)[0] for x, v in zip(w, values, strict=True)])
    assert np.abs(np.asarray(got) - expected).max() < 1e-12 * expected.max()


def test_unit_integral_with_equal_vertices():
    w = jnp.linspace(-0.2, 1.2, 140_001)
    for values in ([0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 0], [0.3, 0.3, 1, 0], [0, 0.5, 0.5, 1.0]):
        total = jnp.sum(weight(w, [jnp.full_like(w, x) for x in values])) * (w[1] - w[0])
        assert total == pytest.approx(1 / 24, abs=2e-5)


def test_ties_and_flat_tetrahedra_are_finite():
    for values in ([1, 1, 1, 1], [1, 1, 1, 2], [1, 1, 2, 2], [1 + 1e-15, 1, 1, 1 - 1e-15]):
        for w in (1.0, 1.5, 2.0):
            value, gradient = jax.value_and_grad(lambda v, w=w: weight(w, v))(jnp.asarray(values, float))
            assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_derivative_is_that_of_the_values():
    rng = np.random.default_rng(3)
    for _ in range(50):
        values, w = rng.uniform(size=4), rng.uniform()
        gradient = jax.grad(lambda v, w=w: weight(w, v))(jnp.asarray(values))
        numeric = [(weight(w, values + h) - weight(w, values - h)) / 2e-6 for h in 1e-6 * np.eye(4)]
        assert np.allclose(gradient, numeric, rtol=2e-4, atol=1e-3 * np.abs(numeric).max() + 1e-6)


def test_derivative_of_a_point_is_that_of_the_recursion():
    """The closed form against automatic differentiation of the sum it stands for, at ties as well."""
    rng = np.random.default_rng(5)
    _, corners = vertex_table(make_grid(FCC, (3, 3, 3)).tetrahedra)
    values = jnp.asarray(rng.uniform(size=(15, 400)))
    w = jnp.asarray(rng.uniform(0.2, 0.8, 400))

    def plain(w, values):
        return sum(tetrahedron_weight(w, values[0], tuple(values[i] for i in corner)) for corner in corners)

    def summed(function, seed):
        cotangent = jnp.asarray(np.random.default_rng(seed).normal(size=400))
        return lambda *x: jnp.vdot(cotangent, function(*x))

    def own(w, values):
        return point_weight(w, values, corners)

    for got, expected in zip(jax.grad(summed(own, 1), (0, 1))(w, values), jax.grad(summed(plain, 1), (0, 1))(w, values),
                             strict=True):  # fmt: skip
        assert np.abs(got - expected).max() < 1e-11 * np.abs(expected).max() and np.abs(expected).max() > 1
    way = (jnp.asarray(rng.normal(size=400)), jnp.asarray(rng.normal(size=values.shape)))
    got, expected = (jax.jvp(function, (w, values), way)[1] for function in (own, plain))
    assert np.abs(got - expected).max() < 1e-11 * np.abs(expected).max()
    # Vertices that coincide exactly, by symmetry, or up to rounding. With all of them equal the delta function has no slope.
    for steps in (1, 2, 4):
        tied = jnp.round(values * steps) / steps
        for close in (tied, tied + 1e-15 * values):
            slopes = jax.grad(summed(own, 2), (0, 1))(w, close)
            assert all(np.all(np.isfinite(x)) for x in slopes)
            ahead, behind = (own(w + h, close) for h in (1e-6, -1e-6))
            numeric = jnp.asarray(np.random.default_rng(2).normal(size=400)) * (ahead - behind) / 2e-6
            assert np.allclose(slopes[0], numeric, rtol=1e-3, atol=1e-5 * np.abs(numeric).max())


def test_isotopes_on_symmetric_bands():
    """Against loops over modes and tetrahedra. Bands have the symmetry of the grid, so stars of points share one frequency:
    frequencies are vertices of tetrahedra, and whole faces of them. Weights jump there; their mean is meant."""
    from jaxmd_thermal.lattice.isotopes import EITHER_SIDE, isotope_linewidths
    from jaxmd_thermal.lattice.scattering import Modes

    rng = np.random.default_rng(7)
    grid = make_grid(FCC, (4, 4, 4))
    vertices, corners = vertex_table(grid.tetrahedra)
    plus = grid.index(grid.addresses[:, None] + vertices)
    away = np.abs(np.mod(grid.addresses + 2, 4) - 2)
    f = 3 + np.stack([away.max(-1), 0.4 * away.sum(-1), 0.9 - 0.3 * away.max(-1)], -1)
    vectors = np.linalg.qr(rng.normal(size=(len(f), 3, 3)) + 1j * rng.normal(size=(len(f), 3, 3)))[0]
    modes, points = Modes(jnp.asarray(grid.qpoints), jnp.asarray(f), jnp.asarray(vectors)), np.array([1, 2, 6])
    got, needed = isotope_linewidths(modes, jnp.array([1e-3]), jnp.asarray(points), jnp.asarray(plus), corners,
                                     capacity=3000)  # fmt: skip
    assert needed <= 3000
    expected = np.zeros((len(points), 3))
    jumps = 0
    for row, q in enumerate(points):
        for a in range(3):
            for other in range(len(f)):
                for b in range(3):
                    sides = [
                        sum(textbook(f[q, a] + x, f[plus[other, [0, *corner]], b])[0] for corner in corners)
                        for x in (EITHER_SIDE, -EITHER_SIDE)
                    ]
                    jumps += abs(sides[0] - sides[1]) > 1e-3
                    overlap = abs(np.vdot(vectors[q][:, a], vectors[other][:, b])) ** 2
                    expected[row, a] += np.pi / 4 * f[q, a] ** 2 / len(f) * 1e-3 * overlap * np.mean(sides)
    assert jumps > 10
    for row, q in enumerate(points):  # modes of one frequency share their mean
        same = np.abs(f[q][:, None] - f[q]) < 1e-4
        expected[row] = same @ expected[row] / same.sum(1)
    assert np.allclose(got, expected, rtol=1e-6, atol=1e-9 * expected.max())


def test_density_of_states_of_a_band_is_normalised():
    grid = make_grid(FCC, (8, 8, 8))
    vertices, corners = vertex_table(grid.tetrahedra)
    assert len(vertices) == 15 and not vertices[0].any()
    band = jnp.asarray(
        np.random.default_rng(4).uniform(0, 6, len(grid.addresses))
    )  # no flat tetrahedra: quadrature is exact
    around = band[grid.index(grid.addresses[None] + vertices[:, None])]
    w = jnp.linspace(-0.5, 6.5, 1401)
    dos = jax.lax.map(lambda x: jnp.mean(point_weight(jnp.full(len(band), x), around, corners)), w)
    assert float(jnp.sum(dos) * (w[1] - w[0])) == pytest.approx(1, abs=1e-5)
    # The linear interpolation spreads the same mean, so first moments agree as well.
    assert float(jnp.sum(w * dos) * (w[1] - w[0])) == pytest.approx(float(band.mean()), abs=2e-2)


def test_gaussian_is_normalised():
    x = jnp.linspace(-3, 3, 601)
    assert float(jnp.sum(gaussian(x, 0.3)) * 0.01) == pytest.approx(1, abs=1e-12)
