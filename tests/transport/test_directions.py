"""Bases of the periodic directions and means of tensor components, against projectors and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.transport.directions import embed, frame_of, named, weighted, weights_of


@pytest.mark.parametrize(
    "vectors, axes",
    [
        ([[30.0, 0, 0], [-15.0, 26.0, 0]], [0, 1]),  # hexagonal sheet
        ([[0, 0, 4.1]], [2]),
        ([[3.0, 0, 0], [0, 4.0, 0], [1.0, 2.0, 5.0]], [0, 1, 2]),
        ([[0.0, 2.0, 0], [0, 0, -3.0]], [1, 2]),
    ],
)
def test_cartesian_axes_of_a_cell_are_exact(vectors, axes):
    np.testing.assert_array_equal(frame_of(vectors), np.eye(3)[axes])


@pytest.mark.parametrize("vectors", [[[5.0, 0, 0], [0, 1.0, 1.0]], [[1.0, 1.0, 0]], [[1, 2, 0.5], [0.3, -1, 2]]])
def test_a_frame_spans_what_the_vectors_span(vectors):
    """The projector on the rows, from normal equations; rounding only."""
    v, frame = np.array(vectors, float), frame_of(vectors)
    np.testing.assert_allclose(frame @ frame.T, np.eye(len(v)), atol=1e-14)
    np.testing.assert_allclose(frame.T @ frame, v.T @ np.linalg.solve(v @ v.T, v), atol=1e-14)


def test_a_tensor_is_known_along_the_axes_of_its_frame_only():
    frame = frame_of([[5.0, 0, 0], [0, 1.0, 1.0]])
    out = embed(np.array([[7.0, 1.0], [1.0, 3.0]]), frame)
    assert out[0, 0] == 7.0 and np.isnan(out).sum() == 8


def test_mean_over_directions():
    """u.K.u by hand, with the error of independent elements; NaN only where an element is needed."""
    k = np.array([[2.0, 0.3, np.nan], [0.3, 1.0, np.nan], [np.nan] * 3])
    e = np.array([[0.2, 0.05, np.nan], [0.05, 0.1, np.nan], [np.nan] * 3])
    u = np.array([0.6, 0.8, 0.0])
    value, error = weighted(k, e, weights_of([u]))
    assert value == pytest.approx(0.36 * 2 + 2 * 0.48 * 0.3 + 0.64, rel=1e-14)
    assert error == pytest.approx(np.sqrt((0.36 * 0.2) ** 2 + (0.96 * 0.05) ** 2 + (0.64 * 0.1) ** 2), rel=1e-14)
    assert np.isnan(weighted(k, e, weights_of(np.eye(3)))[0])
    assert weighted(k, None, weights_of(np.eye(3)[:2])) == (1.5, None)


def test_names():
    axes = np.eye(3)
    assert [named(axes), named(-axes[:1]), named(axes[[0, 2]])] == ["", "along x", "mean over x and z"]
    assert named([[0.6, 0.8, 0.0]]) == "along [0.6, 0.8, 0.0]"


@pytest.mark.parametrize("vectors", [np.zeros((2, 3)), [[1.0, np.nan, 0.0]], [1.0, 2.0], np.ones((2, 2, 3))])
def test_what_is_no_direction_is_refused(vectors):
    with pytest.raises(InputError, match=r"directions is .* three components"):
        frame_of(vectors)
