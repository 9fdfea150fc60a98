"""What supercells are made of and what was computed in them: cells and matrices, displacements with forces, operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxmd_thermal.lattice.crystal import Crystal, Images

SYMPREC = 1e-5
"""Å, phonopy's tolerance."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """The cell that was given, and how primitive cell and supercells are made of it; enough to make phonopy's objects again.

    Attributes:
      unit: the given cell; its Born charges, if any, belong to the primitive cell and stand in the primitive `Crystal`.
      primitive_matrix: (3, 3) columns are primitive vectors in fractions of the given cell's (phonopy).
      supercell_matrix, fc3_supercell_matrix: (3, 3) whole numbers, columns are supercell vectors (phonopy); the second is
        None without third order.
      symprec: Å.
    """

    unit: Crystal
    primitive_matrix: np.ndarray
    supercell_matrix: np.ndarray
    fc3_supercell_matrix: np.ndarray | None = None
    symprec: float = SYMPREC


@dataclass(frozen=True, eq=False)
class ForceSets:
    """Displacements with their forces, in phonopy's and phono3py's form (type 1 or 2), Å and eV/Å.

    Attributes:
      second: of the supercell of second order; None: there are none, or `third` serves both orders.
      third: of the supercell of third order, or None.
    """

    second: Mapping[str, Any] | None = None
    third: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Operations:
    """Space group of a supercell, pure translations included.

    Attributes:
      rotations: (operations, 3, 3) Cartesian.
      permutations: (operations, atoms): the atom on whose site atom i comes to lie.
      pure: (operations,) which are translations.
    """

    rotations: np.ndarray
    permutations: np.ndarray
    pure: np.ndarray

    def to_primitive(self, images: Images) -> np.ndarray:
        """(atoms, atoms): row j permutes the atoms by the translation that takes atom j to its row of the primitive cell."""
        moves = self.permutations[self.pure]
        targets = images.primitive_rows[images.primitive_of]
        table = np.empty((len(targets), len(targets)), np.int64)
        for j, target in enumerate(targets):
            table[j] = moves[np.argmax(moves[:, j] == target)]
        return table
