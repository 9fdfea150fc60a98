"""Structures: positions, cell, species and masses as one pytree."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxmd_thermal.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

MAX_COORDINATE = 1e6
"""Å. Anything beyond is a unit mistake, and would eat the digits of float64."""


def static(default: Any = MISSING) -> Any:
    """A dataclass field that is part of a pytree's structure: compiled in, compared by value, not differentiated."""
    return field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class System:
    """Atoms in a cell; replicas are leading axes.

    Attributes:
      positions: (..., atoms, 3) Å. Need not lie inside the cell.
      cell: (..., 3, 3) Å, rows are lattice vectors (ASE). Rows of directions that are not periodic are ignored.
      numbers: (atoms,) atomic numbers.
      masses: (atoms,) amu, as the structure gives them (isotopes).
      pbc: periodicity of the three directions (static).
    """

    positions: Any
    cell: Any
    numbers: Any
    masses: Any
    pbc: tuple[bool, bool, bool] = static((True, True, True))

    @property
    def n_atoms(self) -> int:
        return self.numbers.shape[-1]

    @classmethod
    def from_atoms(cls, atoms: Atoms | System | str) -> System:
        """System of an ASE `Atoms` (a path to a structure file or a System works as well), checked for use.

        Raises:
          InputError: no atoms, non-finite or absurd coordinates, a singular cell in a periodic direction, or masses
            that are not positive. (Two atoms on one site are found by the first neighbour list.)
        """
        if isinstance(atoms, System):
            return atoms
        from jaxmd_thermal.io.ase import atoms_from

        atoms = atoms_from(atoms)
        system = cls(
            positions=np.array(atoms.get_positions(), float),
            cell=np.array(atoms.cell.array, float),
            numbers=np.array(atoms.get_atomic_numbers(), np.int32),
            masses=np.array(atoms.get_masses(), float),
            pbc=(bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2])),
        )
        system.check()
        return system

    def to_atoms(self, velocities=None) -> Atoms:
        """ASE `Atoms`; `velocities` in Å/fs are converted to ASE's unit of time."""
        from jaxmd_thermal.io.ase import to_atoms

        return to_atoms(self, velocities)

    def replace(self, **changes) -> System:
        return replace(self, **changes)

    def check(self) -> None:
        """Refuse what no simulation could mean; called by `from_atoms`."""
        positions, cell = np.asarray(self.positions), np.asarray(self.cell)
        if self.n_atoms == 0:
            raise InputError("the structure holds 0 atoms; at least 1 is needed: check the file")
        if not np.all(np.isfinite(positions)):
            bad = int(np.argwhere(~np.isfinite(positions))[0][0])
            raise InputError(f"the position of atom {bad} is {positions[bad]}; it must be finite: repair the structure")
        if np.max(np.abs(positions)) > MAX_COORDINATE:
            raise InputError(
                f"a coordinate of {np.max(np.abs(positions)):.3g} Å exceeds {MAX_COORDINATE:.0e} Å: "
                "wrap the atoms into the cell, or check the unit of length"
            )
        if not (np.all(np.isfinite(self.masses)) and np.all(np.asarray(self.masses) > 0)):
            bad = int(np.argwhere(~(np.asarray(self.masses) > 0))[0][0])
            raise InputError(f"atom {bad} has the mass {self.masses[bad]} amu; masses must be positive: set them")
        rows = cell[list(self.pbc)]
        if len(rows):
            measure = np.sqrt(max(np.linalg.det(rows @ rows.T), 0.0))
            scale = float(np.prod(np.linalg.norm(rows, axis=1)))
            if not np.all(np.isfinite(cell)) or scale == 0.0 or measure < 1e-6 * scale:
                raise InputError(
                    f"the periodic lattice vectors {rows.tolist()} Å are linearly dependent: "
                    "give a cell with a volume, or switch periodicity off (pbc)"
                )

    def volume(self) -> float:
        """Å^3 of a fully periodic cell.

        Raises:
          InputError: the system is not periodic in all directions; a slab, wire or cluster has no volume of its own.
        """
        if not all(self.pbc):
            raise InputError(
                f"a system with periodicity {self.pbc} has no volume of its own: state `volume` (Å^3) or `thickness` (Å)"
            )
        return float(abs(np.linalg.det(np.asarray(self.cell))))


def working_frame(cell, pbc: tuple[bool, bool, bool], xp=np):
    """(3, 3) cell whose rows of non-periodic directions are unit vectors normal to all other rows.

    Coordinates in this frame are fractional along periodic directions and Å along the others.
    """
    n_periodic = sum(pbc)
    if n_periodic == 3:
        return cell
    if n_periodic == 0:
        return xp.eye(3, dtype=cell.dtype)
    periodic = [d for d in range(3) if pbc[d]]
    rows: list[Any] = [None, None, None]
    if n_periodic == 2:
        normal = xp.cross(cell[periodic[0]], cell[periodic[1]])
        (free,) = [d for d in range(3) if not pbc[d]]
        rows[free] = normal / xp.linalg.norm(normal)
    else:
        # A unit vector normal to a: cross with the axis along which a is shortest, so that it never degenerates.
        a = cell[periodic[0]]
        axis = xp.eye(3, dtype=cell.dtype)[xp.argmin(xp.abs(a))]
        first = xp.cross(a, axis)
        second = xp.cross(a, first)
        free = [d for d in range(3) if not pbc[d]]
        rows[free[0]] = first / xp.linalg.norm(first)
        rows[free[1]] = second / xp.linalg.norm(second)
    for d in periodic:
        rows[d] = cell[d]
    return xp.stack(rows)


def heights(frame, xp=np):
    """(3,) distances between opposite faces of the frame, Å (1 along non-periodic directions)."""
    return 1.0 / xp.linalg.norm(xp.linalg.inv(frame), axis=0)
