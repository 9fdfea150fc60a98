"""The door to spglib, phonopy, phono3py and seekpath: cells, symmetry operations, displacements, paths.

All of them are imported when they are called. Nothing here runs on the device.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice.crystal import Crystal, Images
from jaxmd_thermal.system import System

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


def matrix_of(supercell: Any, name: str = "supercell") -> np.ndarray:
    """(3, 3) whole numbers of three numbers or a matrix.

    Raises:
      InputError: another shape, fractions, or a determinant that is not positive.
    """
    values = np.asarray(supercell, float)
    if values.shape == (3,):
        values = np.diag(values)
    if values.shape != (3, 3) or not np.all(np.isfinite(values)) or np.any(np.abs(values - np.rint(values)) > 1e-8):
        raise InputError(f"{name} is {supercell!r}; give 3 whole numbers or a 3x3 matrix of whole numbers")
    if np.linalg.det(values) < 0.5:
        raise InputError(
            f"{name} is {supercell!r} with the determinant {np.linalg.det(values):.3g}; it must be positive"
        )
    return np.rint(values).astype(int)


def cell_of(crystal: Crystal | System) -> Any:
    """`PhonopyAtoms` of a crystal or System."""
    from phonopy.structure.atoms import PhonopyAtoms

    if isinstance(crystal, System):
        if not all(crystal.pbc):
            raise InputError(f"lattice dynamics needs a cell that is periodic in three directions, not {crystal.pbc}")
        return PhonopyAtoms(
            numbers=np.asarray(crystal.numbers), masses=np.asarray(crystal.masses), cell=np.asarray(crystal.cell),
            positions=np.asarray(crystal.positions),
        )  # fmt: skip
    return PhonopyAtoms(
        numbers=crystal.numbers, masses=crystal.masses, cell=crystal.lattice, scaled_positions=crystal.positions
    )


def crystal_of(cell: Any, nac: Any = None) -> Crystal:
    """`Crystal` of `PhonopyAtoms`; `nac` is phonopy's dictionary with `born` and `dielectric`, or None."""
    return Crystal(
        lattice=np.array(cell.cell, float),
        positions=np.array(cell.scaled_positions, float),
        numbers=np.array(cell.numbers, int),
        masses=np.array(cell.masses, float),
        born=None if nac is None else np.array(nac["born"], float),
        dielectric=None if nac is None else np.array(nac["dielectric"], float),
    )


def images_of(primitive: Any, supercell: Any) -> Images:
    """`Images` of phonopy's primitive cell and supercell."""
    vectors, multiplicity = primitive.get_smallest_vectors()
    if multiplicity.ndim != 3 or vectors.ndim != 2:
        raise InputError(
            "phonopy stored its shortest vectors in the sparse layout; make it with store_dense_svecs=True"
        )
    to_primitive = primitive.p2p_map
    matrix = np.asarray(supercell.cell) @ np.linalg.inv(np.asarray(primitive.cell))
    return Images(
        matrix=np.rint(matrix).astype(int),
        primitive_rows=np.array(primitive.p2s_map, int),
        primitive_of=np.array([to_primitive[s] for s in primitive.s2p_map], int),
        vectors=np.array(vectors, float),
        multiplicity=np.array(multiplicity, int),
    )


def geometry_of(
    atoms: Any, supercell: Any, fc3_supercell: Any = None, primitive: Any = "auto", symprec: float = SYMPREC
) -> Geometry:
    """Geometry of a structure.

    Args:
      atoms: ASE `Atoms`, `System`, `Crystal` or the path of a structure file.
      supercell, fc3_supercell: 3 whole numbers or a 3x3 matrix of the given cell; `fc3_supercell` None: no third order.
      primitive: "auto" (found by symmetry), "P", "F", "I", "A", "C", "R", or a matrix (phonopy's).
      symprec: Å.
    """
    unit = atoms if isinstance(atoms, Crystal) else crystal_of(cell_of(System.from_atoms(atoms)))
    bare = Crystal(unit.lattice, unit.positions, unit.numbers, unit.masses)
    matrix = matrix_of(supercell)
    third = None if fc3_supercell is None else matrix_of(fc3_supercell, "fc3_supercell")
    return Geometry(
        bare, np.array(phonopy_of(bare, matrix, primitive, symprec).primitive_matrix, float), matrix, third, symprec
    )


def phonopy_of(unit: Crystal, matrix: Any, primitive: Any = "auto", symprec: float = SYMPREC) -> Any:
    """A `Phonopy` object without forces."""
    from phonopy import Phonopy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the automatic primitive cell, which is what is wanted here
        return Phonopy(cell_of(unit), supercell_matrix=matrix, primitive_matrix=primitive, symprec=symprec, log_level=0)


def phonopy_object(geometry: Geometry, order: int = 2) -> Any:
    """phonopy's object of a geometry, on the supercell of second or third order."""
    matrix = geometry.supercell_matrix if order == 2 else geometry.fc3_supercell_matrix
    return phonopy_of(geometry.unit, matrix, geometry.primitive_matrix, geometry.symprec)


def phono3py_object(geometry: Geometry) -> Any:
    """phono3py's object of a geometry with third order.

    Raises:
      InputError: phono3py is not installed.
    """
    try:
        from phono3py import Phono3py
    except ImportError as error:
        raise InputError(
            "third order by finite displacements needs phono3py, which is not installed: pip install "
            "'jaxmd-thermal[phono3py]', or take displacement=None (automatic differentiation)"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Phono3py(
            cell_of(geometry.unit),
            supercell_matrix=geometry.fc3_supercell_matrix,
            primitive_matrix=geometry.primitive_matrix,
            phonon_supercell_matrix=geometry.supercell_matrix,
            symprec=geometry.symprec,
            log_level=0,
        )


def system_of(cell: Any) -> System:
    """`System` of `PhonopyAtoms`."""
    return System(
        positions=np.array(cell.positions, float),
        cell=np.array(cell.cell, float),
        numbers=np.array(cell.numbers, np.int32),
        masses=np.array(cell.masses, float),
    )


def operations_of(phonopy: Any) -> Operations:
    """Space group of the supercell of a phonopy object."""
    symmetry = phonopy.symmetry
    fractional = np.array(symmetry.symmetry_operations["rotations"], float)
    lattice = np.array(phonopy.supercell.cell, float).T
    return Operations(
        rotations=lattice @ fractional @ np.linalg.inv(lattice),
        permutations=np.array(symmetry.atomic_permutations, int),
        pure=np.all(fractional == np.eye(3), axis=(1, 2)),
    )


def space_group(atoms: Any, symprec: float = SYMPREC) -> tuple[str, int]:
    """International symbol and number.

    Raises:
      InputError: spglib finds no symmetry (overlapping atoms, tolerance too large).
    """
    import spglib

    system = System.from_atoms(atoms) if not isinstance(atoms, Crystal) else None
    crystal = atoms if system is None else crystal_of(cell_of(system))
    data = spglib.get_symmetry_dataset((crystal.lattice, crystal.positions, crystal.numbers), symprec=symprec)
    if data is None:
        raise InputError(
            f"spglib finds no space group at symprec {symprec} Å: are two atoms on one site? try another symprec"
        )
    return str(data.international), int(data.number)


def point_group(crystal: Crystal, symprec: float = SYMPREC) -> np.ndarray:
    """(operations, 3, 3) whole numbers: rotations of fractional coordinates, without translations."""
    import spglib

    found = spglib.get_symmetry((crystal.lattice, crystal.positions, crystal.numbers), symprec=symprec)
    if found is None:
        raise InputError(
            f"spglib finds no symmetry at symprec {symprec} Å: are two atoms on one site? try another symprec"
        )
    return np.unique(found["rotations"], axis=0)


def cartesian_point_group(crystal: Crystal, symprec: float = SYMPREC) -> np.ndarray:
    """(operations, 3, 3) the rotations of `point_group` in Cartesian coordinates."""
    lattice = np.asarray(crystal.lattice)
    return np.einsum("ia,gij,bj->gab", lattice, point_group(crystal, symprec), np.linalg.inv(lattice))


def equivalent_atoms(crystal: Crystal, symprec: float = SYMPREC) -> np.ndarray:
    """(atoms,) a label for each atom; symmetry-equivalent atoms have the same."""
    import spglib

    data = spglib.get_symmetry_dataset((crystal.lattice, crystal.positions, crystal.numbers), symprec=symprec)
    if data is None:
        raise InputError(
            f"spglib finds no symmetry at symprec {symprec} Å: are two atoms on one site? try another symprec"
        )
    return np.array(data.equivalent_atoms)


def primitive_operations(crystal: Crystal, symprec: float = SYMPREC) -> tuple[np.ndarray, np.ndarray]:
    """Space group of a cell: (g, 3, 3) Cartesian rotations, (g, atoms) the atom on whose site each atom comes to lie."""
    from phonopy.structure.symmetry import Symmetry

    found = Symmetry(cell_of(crystal), symprec=symprec)
    fractional = np.array(found.symmetry_operations["rotations"], float)
    lattice = crystal.lattice.T
    return lattice @ fractional @ np.linalg.inv(lattice), np.array(found.atomic_permutations, int)


def symmetric_nac(crystal: Crystal, symprec: float = SYMPREC) -> Crystal:
    """The crystal with Born charges and dielectric tensor averaged over the space group, and charges that sum to zero."""
    if crystal.born is None:
        return crystal
    from dataclasses import replace

    from phonopy.structure.symmetry import symmetrize_borns_and_epsilon

    born, dielectric = symmetrize_borns_and_epsilon(crystal.born, crystal.dielectric, cell_of(crystal), symprec=symprec)
    return replace(crystal, born=np.array(born), dielectric=np.array(dielectric))


def band_path(crystal: Crystal, symprec: float = SYMPREC) -> list[tuple[str, np.ndarray, str, np.ndarray]]:
    """Segments (label, q, label, q) of the standard path, q in fractions of this crystal's reciprocal vectors.

    Source: Hinuma et al., Comput. Mater. Sci. 128, 140 (2017), by seekpath.
    """
    import seekpath

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = seekpath.get_path_orig_cell(
            (crystal.lattice, crystal.positions, crystal.numbers), with_time_reversal=True, symprec=symprec
        )
    points = {name: np.array(q, float) for name, q in path["point_coords"].items()}
    return [(_label(a), points[a], _label(b), points[b]) for a, b in path["path"]]


def _label(name: str) -> str:
    return "Γ" if name == "GAMMA" else name
