"""The static geometry that lattice dynamics works on: a primitive cell and how a supercell repeats it."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np


@dataclass(frozen=True, eq=False)
class Crystal:
    """Primitive cell.

    Attributes:
      lattice: (3, 3) Å, rows are lattice vectors.
      positions: (atoms, 3) fractional.
      numbers, masses: (atoms,), amu.
      born: (atoms, 3, 3) Born charges and `dielectric` (3, 3) for the non-analytic correction, or None.
      moments: (atoms,) or (atoms, 3) magnetic moments, which lower the symmetry, or None.
    """

    lattice: np.ndarray
    positions: np.ndarray
    numbers: np.ndarray
    masses: np.ndarray
    born: np.ndarray | None = None
    dielectric: np.ndarray | None = None
    moments: np.ndarray | None = None

    @property
    def volume(self) -> float:
        """Å^3."""
        return float(abs(np.linalg.det(self.lattice)))

    @property
    def reciprocal(self) -> np.ndarray:
        """(3, 3) 1/Å, rows are reciprocal vectors without 2 pi."""
        return np.linalg.inv(self.lattice).T


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Images:
    """Shortest vectors from the atoms of the primitive cell to those of a supercell (phonopy's dense layout).

    Attributes:
      matrix: (3, 3) whole numbers, supercell vectors in primitive vectors.
      primitive_rows: (primitive atoms,) their rows in the supercell.
      primitive_of: (supercell atoms,) primitive atom that each row repeats.
      vectors: (n, 3) in fractions of the primitive vectors, from the primitive atom to the supercell atom.
      multiplicity: (supercell atoms, primitive atoms, 2) number of equally short vectors, and where they begin.
    """

    matrix: np.ndarray
    primitive_rows: np.ndarray
    primitive_of: np.ndarray
    vectors: np.ndarray
    multiplicity: np.ndarray
