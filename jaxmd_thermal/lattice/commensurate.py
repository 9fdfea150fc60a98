"""Wave vectors that fit into a supercell, and the smallest cells that they fit into.

A wave of wave vector q fits into a supercell of as many primitive cells as q has in its denominator, not of their product
along the axes: such cells are sheared ("nondiagonal", Lloyd-Williams, Monserrat, PRB 92, 184301 (2015)). Force constants of
the large supercell, summed over the images that a small one identifies, are exactly those of the small one.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from jaxmd_thermal.lattice.crystal import Images
from jaxmd_thermal.system import System


def commensurate_points(matrix: Any) -> np.ndarray:
    """(cells, 3) q-points, in fractions, whose waves fit into a supercell of `matrix` (rows in primitive vectors)."""
    matrix = np.rint(np.asarray(matrix, float)).astype(int)
    cells = abs(round(np.linalg.det(matrix)))
    adjoint = np.rint(np.linalg.inv(matrix) * cells).astype(int)
    # q = M^-1 n; along each axis n repeats after the smallest step that M^-1 turns into whole numbers.
    periods = [cells // math.gcd(cells, *(int(x) for x in adjoint[:, axis])) for axis in range(3)]
    n = np.indices(periods).reshape(3, -1)
    return np.unique((adjoint @ n % cells).T, axis=0) / cells


def smallest_cells(
    matrix: Any, lattice: np.ndarray, rotations: np.ndarray, largest: int | None = None
) -> list[np.ndarray]:
    """Cells in each of which some commensurate wave vector and its multiples fit; together they hold all of them.

    Args:
      matrix: (3, 3) supercell vectors in primitive vectors, rows.
      lattice: (3, 3) Å, primitive vectors.
      rotations: (r, 3, 3) of the crystal, acting on fractional positions as columns; of equivalent cells one is given.
      largest: primitive cells in a small one, at most; wave vectors that need more are left out. None: all are held.

    Returns: (3, 3) matrices like `matrix`, of the shortest vectors, small ones first. Cells whose wave vectors all fit into
    a larger one of the list are left out.
    """
    cells = abs(round(np.linalg.det(np.asarray(matrix, float))))
    points = np.rint(commensurate_points(matrix) * cells).astype(int)
    turned = np.swapaxes(np.asarray(rotations, int), 1, 2)
    stars: dict[frozenset, tuple[np.ndarray, int]] = {}
    for q in points:
        order = cells // math.gcd(cells, *(int(x) for x in q))
        if largest is not None and order > largest:
            continue
        equivalent = {_multiples(w @ q, cells, order) for w in turned}
        if not equivalent & stars.keys():
            stars[_multiples(q, cells, order)] = (q, order)
    orbits = {key: {_multiples(w @ q, cells, order) for w in turned} for key, (q, order) in stars.items()}
    kept = [
        (order, q) for key, (q, order) in stars.items()
        if not any(key < other for name, orbit in orbits.items() if name != key for other in orbit)
    ]  # fmt: skip
    kept.sort(key=lambda x: (x[0], x[1].tolist()))
    return [_shortest_cell(q, cells, order, lattice) for order, q in kept]


def _multiples(q: np.ndarray, cells: int, order: int) -> frozenset:
    """The wave vectors k q, in units of 1/cells: they fit into the same cells as q."""
    return frozenset(tuple(int(x) for x in k * q % cells) for k in range(order))


def _shortest_cell(q: np.ndarray, cells: int, order: int, lattice: np.ndarray) -> np.ndarray:
    """Rows n, the three shortest independent lattice vectors with whole q.n; in three dimensions they are a basis."""
    reach = order
    while True:
        n = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)))
        n = n[(n @ q % cells == 0) & np.any(n != 0, axis=1)]
        n = n[np.argsort(np.round(np.linalg.norm(n @ lattice, axis=1), 6), kind="stable")]
        found: list[np.ndarray] = []
        for vector in n:
            if np.linalg.matrix_rank(np.array([*found, vector])) > len(found):
                found.append(vector)
                if len(found) == 3:
                    break
        out = np.array(found)
        volume = round(np.linalg.det(out))
        if abs(volume) == order:
            return out if volume > 0 else -out
        reach += 1  # a skewed primitive cell: shorter vectors have larger coefficients


def folded(fc2: np.ndarray, images: Images, supercell: System, matrix: np.ndarray) -> tuple[System, np.ndarray]:
    """Force constants of a small cell from those of a supercell in which it fits.

    Args:
      fc2: (primitive atoms, supercell atoms, 3, 3) eV/Å^2.
      images: of the supercell.
      supercell: its atoms.
      matrix: (3, 3) whole numbers, vectors of the small cell in primitive vectors, rows.

    Returns: the small cell, its atoms ordered by primitive atom, then by lattice vector, the zero vector first; and
    (primitive atoms, its atoms, 3, 3) eV/Å^2 between the first atom of each kind and all.
    """
    rows, of = np.asarray(images.primitive_rows), np.asarray(images.primitive_of)
    count = round(abs(np.linalg.det(matrix)))
    x, cell = np.asarray(supercell.positions, float), np.asarray(supercell.cell, float)
    lattice = np.linalg.inv(images.matrix) @ cell
    offset = (x - x[rows][of]) @ np.linalg.inv(lattice)
    offset = np.rint(offset).astype(int)
    inverse = np.rint(np.linalg.inv(matrix) * count).astype(int)
    classes = offset @ inverse % count  # equal for atoms that the small cell identifies
    names, which = np.unique(classes, axis=0, return_inverse=True)
    which = which.reshape(-1)
    first = {int(c): offset[np.argmax(which == c)] for c in range(len(names))}
    zero = int(which[rows[0]])
    order = [zero] + [c for c in range(len(names)) if c != zero]
    first[zero] = np.zeros(3, int)
    rank = np.argsort(order)
    small = np.zeros((len(rows), len(rows), count, 3, 3))
    np.add.at(small, (slice(None), of, rank[which]), np.asarray(fc2, float))
    moves = np.array([first[c] for c in order]) @ lattice
    positions = (x[rows][:, None] + moves[None]).reshape(-1, 3)
    system = System(
        positions,
        np.asarray(matrix, float) @ lattice,
        np.repeat(np.asarray(supercell.numbers)[rows], count).astype(np.int32),
        np.repeat(np.asarray(supercell.masses)[rows], count),
    )
    return system, small.reshape(len(rows), len(rows) * count, 3, 3)
