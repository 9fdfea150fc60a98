"""Neighbours of a fixed structure, on the host: training looks at the same structures again and again."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.system import heights, working_frame
from jaxmd_thermal.training.data import CLOSEST, Frame


@dataclass(frozen=True, eq=False)
class Neighborhood:
    """Atoms, the periodic images that they see, and who sees whom.

    Attributes:
      positions: (atoms, 3) Å, wrapped into the cell.
      owner: (images,) atom that each image repeats.
      shift: (images, 3) whole lattice vectors from the atom to its image.
      neighbors: for each atom the rows of (atoms, then images) within the cutoff.
    """

    positions: np.ndarray
    owner: np.ndarray
    shift: np.ndarray
    neighbors: list[np.ndarray]

    @property
    def degrees(self) -> np.ndarray:
        """(atoms,) numbers of neighbours."""
        return np.array([len(row) for row in self.neighbors])

    @property
    def slots(self) -> int:
        """Largest number of neighbours."""
        return max((len(row) for row in self.neighbors), default=0)


def neighborhood(frame: Frame, cutoff: float) -> Neighborhood:
    """All pairs closer than `cutoff`, images of an atom itself included.

    Raises:
      InputError: a singular cell, or two atoms closer than 0.5 Å; the message names the frame.
    """
    cell = np.asarray(frame.cell, float)
    rows = cell[list(frame.pbc)]
    if len(rows) and np.linalg.matrix_rank(rows, tol=1e-6) < len(rows):
        raise InputError(f"{frame.source}: the periodic lattice vectors {rows.tolist()} Å are linearly dependent")
    axes = working_frame(cell, frame.pbc)
    inverse = np.linalg.inv(axes)
    fractional = np.asarray(frame.positions, float) @ inverse
    fractional = np.where(frame.pbc, fractional - np.floor(fractional), fractional)
    reach = np.where(frame.pbc, cutoff / heights(axes), 0.0)
    steps = [range(-math.ceil(r), math.ceil(r) + 1) if p else range(1) for r, p in zip(reach, frame.pbc)]
    shifts = np.array([s for s in itertools.product(*steps) if any(s)], int).reshape(-1, 3)
    moved = fractional[None] + shifts[:, None]
    low, high = fractional.min(axis=0) - reach - 1e-9, fractional.max(axis=0) + reach + 1e-9
    seen = np.all((moved >= low) & (moved <= high), axis=2)
    which, owner = np.nonzero(seen)
    n = len(fractional)
    places = np.concatenate([fractional, moved[which, owner]]) @ axes
    tree = cKDTree(places)
    found = tree.query_ball_point(places[:n], cutoff, return_sorted=True)
    neighbors = [np.array([j for j in row if j != i], int) for i, row in enumerate(found)]
    _check_distances(frame, places, neighbors)
    # Only images that someone sees are kept.
    used = np.unique(np.concatenate([np.concatenate(neighbors), np.zeros(0, int)])) if n else np.zeros(0, int)
    used = used[used >= n]
    rank = np.full(len(places), -1)
    rank[:n] = np.arange(n)
    rank[used] = n + np.arange(len(used))
    return Neighborhood(
        positions=places[:n],
        owner=owner[used - n],
        shift=shifts[which[used - n]],
        neighbors=[rank[row] for row in neighbors],
    )


def _check_distances(frame: Frame, places: np.ndarray, neighbors: list[np.ndarray]) -> None:
    for atom, row in enumerate(neighbors):
        if len(row):
            distances = np.linalg.norm(places[row] - places[atom], axis=1)
            if distances.min() < CLOSEST:
                raise InputError(
                    f"{frame.source}: atom {atom} has a neighbour at {distances.min():.3g} Å; anything under {CLOSEST} Å is "
                    "no solid: are the lengths in other units (nm, fractions), or two atoms on one site?"
                )
