"""Along which directions heat is conducted, and what one number of a tensor is the mean of.

A slab or wire has a conductivity along its periodic directions only: across them the flux is the derivative of a bounded
quantity, so its time integral is zero whatever the material. A driven run knows only the directions of its forces.
"""

from __future__ import annotations

import numpy as np

from jaxmd_thermal.errors import InputError

ALIGNED = 1e-6
"""Distance of a unit vector from a space of directions up to which it counts as lying in it."""


def frame_of(vectors) -> np.ndarray:
    """(d, 3) orthonormal basis of what (n, 3) vectors span. Cartesian axes that lie in it come first, exactly, in their order.

    Raises:
      InputError: not vectors of three finite components, or all of them zero.
    """
    vectors = np.atleast_2d(np.asarray(vectors, float))
    if vectors.ndim != 2 or vectors.shape[1] != 3 or not np.all(np.isfinite(vectors)) or not np.any(vectors):
        raise InputError(
            f"directions is {vectors.tolist()}; it must be one or more vectors of three components that are not all 0, "
            "for example [[1, 0, 0], [0, 1, 0]]"
        )
    _, lengths, rows = np.linalg.svd(vectors)
    rows = rows[: int(np.sum(lengths > ALIGNED * lengths[0]))]
    axes = np.eye(3)[np.linalg.norm(np.eye(3) - rows.T @ rows, axis=1) < ALIGNED]
    if len(axes) == len(rows):
        return axes
    # What is left of the space across those axes.
    _, _, rest = np.linalg.svd(rows - rows @ axes.T @ axes)
    return np.concatenate([axes, rest[: len(rows) - len(axes)]])


def embed(tensor: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """(3, 3) Cartesian tensor of a (d, d) one in a frame; NaN in rows and columns of axes that the frame does not hold."""
    out = np.full((3, 3), np.nan)
    rows, axes = np.nonzero(frame == 1.0)
    out[np.ix_(axes, axes)] = tensor[np.ix_(rows, rows)]
    return out


def weights_of(directions) -> np.ndarray:
    """(3, 3) W so that `sum_ab W_ab kappa_ab` is the mean of the conductivities along (n, 3) unit vectors."""
    unit = np.asarray(directions, float)
    return unit.T @ unit / len(unit)


def weighted(kappa: np.ndarray, stderr: np.ndarray | None, weights: np.ndarray) -> tuple[float, float | None]:
    """`sum_ab W_ab kappa_ab` of (3, 3) arrays and its standard error; NaN where an element that matters is NaN.

    Elements of different pairs of axes count as independent; K_ab and K_ba are one number (a symmetric estimate).
    """
    matters = weights != 0.0
    value = float(np.sum(weights[matters] * kappa[matters]))
    if stderr is None:
        return value, None
    parts = np.where(matters, weights * np.where(matters, stderr, 0.0), 0.0)
    return value, float(np.sqrt(np.sum(np.diag(parts) ** 2) + np.sum(np.triu(parts + parts.T, 1) ** 2)))


def named(directions) -> str:
    """`along x`, `mean over x and y`, `along [0.707, 0.707, 0]`; empty if it is one third of the trace."""
    unit = np.asarray(directions, float)
    if np.allclose(weights_of(unit), np.eye(3) / 3.0, atol=ALIGNED):
        return ""
    names = []
    for u in unit:
        axis = int(np.argmax(np.abs(u)))
        names.append("xyz"[axis] if abs(u[axis]) > 1.0 - ALIGNED else str(np.round(u, 3).tolist()))
    return f"along {names[0]}" if len(names) == 1 else f"mean over {', '.join(names[:-1])} and {names[-1]}"
