"""Regular grids of q-points, their symmetry, and the triplets that conserve crystal momentum. NumPy on the host."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import jax
import numpy as np

from jaxmd_thermal.errors import InputError

DIAGONALS = ((1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1))

# Shifts of two cells are enough for reduced cells and for all primitive cells of the Bravais lattices in use.
SHIFTS = np.array(sorted(itertools.product(range(-2, 3), repeat=3), key=lambda s: sum(map(abs, s))))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Grid:
    """Gamma-centred grid of the primitive cell; `n` points, the first address runs fastest.

    Attributes:
      mesh: (3,) points along each reciprocal vector.
      addresses: (n, 3) whole numbers from zero to below the mesh, in fractions of the reciprocal vectors times the mesh.
      qpoints: (n, 3) the points in fractions of the reciprocal vectors, in the first Brillouin zone: sums over reciprocal
        vectors that are cut off (the non-analytic correction) keep the crystal's symmetry there alone.
      irreducible: (k,) the first point of each star, ascending.
      weights: (k,) points in each star.
      star: (n,) which star a point belongs to, an index into `irreducible`.
      operations: (g, 3, 3) whole numbers that act on fractional q, time reversal included.
      tetrahedra: (24, 4, 3) addresses relative to a grid point of the tetrahedra that meet there; the first is the point.
    """

    mesh: np.ndarray
    addresses: np.ndarray
    qpoints: np.ndarray
    irreducible: np.ndarray
    weights: np.ndarray
    star: np.ndarray
    operations: np.ndarray
    tetrahedra: np.ndarray

    def index(self, addresses) -> np.ndarray:
        """(..., 3) whole-number addresses -> (...) indices of the equivalent grid points."""
        a = np.mod(addresses, self.mesh)
        return a[..., 0] + self.mesh[0] * (a[..., 1] + self.mesh[1] * a[..., 2])


@dataclass(frozen=True, eq=False)
class Triplets:
    """Triplets q + q' + q'' = G, reduced by the symmetry that keeps q and by exchange of q' and q''.

    Attributes:
      first: (k,) grid index of q for each irreducible point.
      offsets: (k + 1,) triplets of `first[i]` are rows offsets[i] to offsets[i + 1].
      points: (m, 3) grid indices of q, q', q''.
      weights: (m,) how many (q', q'') each row stands for; they sum to the number of grid points for each q.
      normal: (m,) True where G = 0 for representatives in the first Brillouin zone, on its surface for any choice of them
        (normal process), else Umklapp.
    """

    first: np.ndarray
    offsets: np.ndarray
    points: np.ndarray
    weights: np.ndarray
    normal: np.ndarray


def make_grid(lattice, mesh, rotations=None) -> Grid:
    """Grid of the primitive cell.

    Args:
      lattice: (3, 3) Å, rows.
      mesh: 3 positive whole numbers.
      rotations: (r, 3, 3) rotations of the crystal's point group acting on fractional positions as columns
        (x' = W x, as spglib gives them); None: no symmetry but time reversal.

    Raises:
      InputError: `mesh` is not 3 positive whole numbers, or a rotation does not map the grid onto itself.
    """
    mesh = _checked_mesh(mesh)
    n0, n1, n2 = mesh
    flat = np.arange(n0 * n1 * n2)
    addresses = np.stack([flat % n0, flat // n0 % n1, flat // (n0 * n1)], -1)
    operations = _reciprocal_operations(rotations)
    images = _rotated(addresses, mesh, operations)
    first = images.min(0)
    irreducible, star, weights = np.unique(first, return_inverse=True, return_counts=True)
    reciprocal = np.linalg.inv(np.asarray(lattice, float)).T
    qpoints = _shortest(addresses, mesh, reciprocal) / mesh
    tetrahedra = relative_tetrahedra(reciprocal / mesh[:, None])
    return Grid(mesh, addresses, qpoints, irreducible, weights, star, operations, tetrahedra)


def make_triplets(grid: Grid, lattice, points=None) -> Triplets:
    """Triplets for the irreducible points of `grid`, or for the grid indices `points`.

    Each row is the lowest pair of its orbit, so the choice depends on nothing but the grid and its operations.
    """
    first = grid.irreducible if points is None else np.asarray(points, int)
    images = _rotated(grid.addresses, grid.mesh, grid.operations)
    rows, weights = [], []
    for q in first:
        third = grid.index(-grid.addresses[q] - grid.addresses)
        keep = images[images[:, q] == q]
        lowest = np.minimum(keep.min(0), keep[:, third].min(0))
        second, count = np.unique(lowest, return_counts=True)
        rows.append(np.stack([np.full(len(second), q), second, third[second]], -1))
        weights.append(count)
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
    table = np.concatenate(rows)
    return Triplets(first, offsets, table, np.concatenate(weights), _normal(grid, lattice, table))


def _normal(grid: Grid, lattice, table) -> np.ndarray:
    """(m,) whether representatives of q and q' in the first Brillouin zone add up to minus one of q''."""
    short = shortest_addresses(grid, lattice)
    reciprocal = np.linalg.inv(np.asarray(lattice, float)).T
    limit = _squared(short[:, 0], grid.mesh, reciprocal)[table[:, 2]] * (1 + 1e-9) + 1e-15
    normal = np.zeros(len(table), bool)
    open_rows = np.arange(len(table))
    for i in range(short.shape[1]):
        for j in range(short.shape[1]):
            total = short[table[open_rows, 0], i] + short[table[open_rows, 1], j]
            normal[open_rows] |= _squared(total, grid.mesh, reciprocal) <= limit[open_rows]
            if i == j == 0:  # more choices only on the surface
                several = np.any(short[:, 1:] != short[:, :1], axis=(1, 2))
                open_rows = open_rows[several[table[:, 0]] | several[table[:, 1]]]
    return normal


def _squared(addresses, mesh, reciprocal) -> np.ndarray:
    return np.sum((addresses / mesh @ reciprocal) ** 2, -1)


def shortest_addresses(grid: Grid, lattice) -> np.ndarray:
    """(n, images, 3) addresses of the same points in the first Brillouin zone.

    On its surface there are several equally short ones; elsewhere, and where there are fewer, the first is repeated.
    """
    reciprocal = np.linalg.inv(np.asarray(lattice, float)).T
    squared = np.stack([_squared(grid.addresses - s * grid.mesh, grid.mesh, reciprocal) for s in SHIFTS], 1)
    least = squared <= squared.min(1, keepdims=True) * (1 + 1e-9) + 1e-15
    order = np.argsort(~least, axis=1, kind="stable")[:, : least.sum(1).max()]
    order = np.where(np.take_along_axis(least, order, 1), order, order[:, :1])
    return grid.addresses[:, None] - SHIFTS[order] * grid.mesh


def _shortest(addresses, mesh, reciprocal) -> np.ndarray:
    """(n, 3) the first of `shortest_addresses`, without a table of all candidates."""
    best, least = addresses, _squared(addresses, mesh, reciprocal)
    for shift in SHIFTS:
        moved = addresses - shift * mesh
        squared = _squared(moved, mesh, reciprocal)
        shorter = squared < least * (1 - 1e-9) - 1e-15
        best, least = np.where(shorter[:, None], moved, best), np.where(shorter, squared, least)
    return best


def relative_tetrahedra(microcell) -> np.ndarray:
    """The 24 tetrahedra that meet at a grid point, (24, 4, 3) relative addresses, the point itself first.

    Each parallelepiped of the grid is cut into six tetrahedra round its shortest diagonal (Blöchl, Jepsen and Andersen,
    Phys. Rev. B 49, 16223 (1994)); where diagonals are equal the first of (111), (-111), (1-11), (11-1) is taken.

    Args:
      microcell: (3, 3) rows, steps of the grid along the three reciprocal vectors.
    """
    lengths = np.array([np.linalg.norm(np.array(d) @ microcell) for d in DIAGONALS])
    diagonal = np.array(DIAGONALS[int(np.argmax(lengths < lengths.min() * (1 + 1e-9)))])
    found = []
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        path = np.zeros((4, 3), int)
        for step, axis in enumerate(order):
            path[step + 1] = path[step]
            path[step + 1, axis] += diagonal[axis]
        for corner in range(4):
            moved = path - path[corner]
            found.append(np.concatenate([moved[corner : corner + 1], np.delete(moved, corner, 0)]))
    return np.array(found)


def _checked_mesh(mesh) -> np.ndarray:
    given = np.asarray(mesh)
    if given.shape != (3,) or not np.all(given == np.round(given)) or np.any(given < 1):
        raise InputError(f"mesh is {mesh!r}: expected three positive whole numbers, for example (19, 19, 19)")
    return given.astype(int)


def _reciprocal_operations(rotations) -> np.ndarray:
    if rotations is None:
        rotations = np.eye(3, dtype=int)[None]
    turned = np.swapaxes(np.asarray(rotations, int), 1, 2)  # W^T for all W of the group is the set of all W^-T
    return np.unique(np.concatenate([turned, -turned]), axis=0)


def _rotated(addresses, mesh, operations) -> np.ndarray:
    """(g, n) grid index of every point under every operation."""
    result = np.empty((len(operations), len(addresses)), int)
    for k, operation in enumerate(operations):
        scaled = operation * mesh[:, None] / mesh  # on addresses: mesh_i W_ij / mesh_j
        whole = np.round(scaled).astype(int)
        if np.abs(scaled - whole).max() > 1e-9:
            raise InputError(
                f"mesh {tuple(int(m) for m in mesh)} breaks the symmetry of the crystal: the rotation "
                f"{operation.tolist()} of reciprocal space does not map it onto itself; use equal numbers along "
                "axes that symmetry makes equal or mixes"
            )
        a = np.mod(addresses @ whole.T, mesh)
        result[k] = a[:, 0] + mesh[0] * (a[:, 1] + mesh[1] * a[:, 2])
    return result
