"""The door to spglib, phonopy, phono3py and seekpath: cells, symmetry operations, displacements, paths.

All of them are imported when they are called. Nothing here runs on the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice.crystal import Crystal, Images
from jaxmd_thermal.lattice.geometry import SYMPREC, ForceSets, Geometry, Operations
from jaxmd_thermal.system import System

SAME_MASS = 1e-4
"""amu; atoms of one element whose masses differ by more are not equivalent."""


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
        numbers=crystal.numbers, masses=crystal.masses, cell=crystal.lattice, scaled_positions=crystal.positions,
        magnetic_moments=crystal.moments,
    )  # fmt: skip


def crystal_of(cell: Any, nac: Any = None) -> Crystal:
    """`Crystal` of `PhonopyAtoms`; `nac` is phonopy's dictionary with `born` and `dielectric`, or None."""
    moments = cell.magnetic_moments
    return Crystal(
        lattice=np.array(cell.cell, float),
        positions=np.array(cell.scaled_positions, float),
        numbers=np.array(cell.numbers, int),
        masses=np.array(cell.masses, float),
        born=None if nac is None else np.array(nac["born"], float),
        dielectric=None if nac is None else np.array(nac["dielectric"], float),
        moments=None if moments is None or not np.any(moments) else np.array(moments, float),
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

    Raises:
      InputError: a matrix, or `primitive` makes one atom of atoms that differ in mass or moment.
    """
    unit = atoms if isinstance(atoms, Crystal) else crystal_of(cell_of(System.from_atoms(atoms)))
    bare = replace(unit, born=None, dielectric=None)
    matrix = matrix_of(supercell)
    third = None if fc3_supercell is None else matrix_of(fc3_supercell, "fc3_supercell")
    return Geometry(
        bare, np.array(phonopy_of(bare, np.eye(3, dtype=int), primitive, symprec, False).primitive_matrix, float), matrix,
        third, symprec,
    )  # fmt: skip


def phonopy_of(
    unit: Crystal, matrix: Any, primitive: Any = "auto", symprec: float = SYMPREC, searched: bool = True
) -> Any:
    """A `Phonopy` object without forces; "auto" keeps atoms of one element apart that differ in mass.

    Args:
      searched: with the operations of the supercell, of which there are as many as it has cells times those of the crystal:
        their permutations take seconds for 512 atoms. False: for what asks for cells alone.

    Raises:
      InputError: `primitive` makes one atom of atoms that differ in mass or moment.
    """
    from phonopy import Phonopy
    from phonopy.structure.cells import guess_primitive_matrix

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the automatic primitive cell, which is what is wanted here
        if isinstance(primitive, str) and primitive == "auto":
            primitive = guess_primitive_matrix(cell_of(_by_kind(unit)), symprec=symprec)
        made = Phonopy(
            cell_of(unit), supercell_matrix=matrix, primitive_matrix=primitive, symprec=symprec, is_symmetry=searched,
            log_level=0,
        )  # fmt: skip
    _check_copies(made)
    return made


def _check_copies(phonopy: Any) -> None:
    """Refuse a primitive cell whose atoms stand for atoms of another mass or magnetic moment."""
    of = [phonopy.primitive.p2p_map[s] for s in phonopy.primitive.s2p_map]
    for name, unit in (("masses", "amu"), ("magnetic_moments", "magnetons")):
        here, copies = getattr(phonopy.primitive, name), getattr(phonopy.supercell, name)
        if here is None:
            continue
        differ = np.abs(np.asarray(copies) - np.asarray(here)[of]).reshape(len(of), -1).max(axis=1)
        if differ.max() > SAME_MASS:
            other = int(np.argmax(differ))
            first = int(phonopy.primitive.s2p_map[other])
            atoms = [int(phonopy.supercell.u2u_map[phonopy.supercell.s2u_map[k]]) for k in (first, other)]
            raise InputError(
                f"atoms {atoms[0]} and {atoms[1]} have {name.replace('_', ' ')} of {copies[first]} and {copies[other]} {unit}, "
                "and the primitive cell makes them one: give primitive='auto', 'P', or a matrix that keeps them apart"
            )


def _by_kind(crystal: Crystal) -> Crystal:
    """The crystal with a number of its own for each pair of element and mass, so that symmetry keeps isotopes apart."""
    kinds = np.column_stack([crystal.numbers, np.rint(np.asarray(crystal.masses) / SAME_MASS)])
    found, labels = np.unique(kinds, axis=0, return_inverse=True)
    if len(found) == len(np.unique(crystal.numbers)):
        return crystal
    return replace(crystal, numbers=labels.reshape(-1) + 1)


def phonopy_object(geometry: Geometry, order: int = 2) -> Any:
    """phonopy's object of a geometry, on the supercell of second or third order."""
    return phonopy_of(geometry.unit, _matrix(geometry, order), geometry.primitive_matrix, geometry.symprec)


def cells_of(geometry: Geometry, order: int = 2) -> tuple[Any, Any]:
    """Primitive cell and supercell of second or third order, without the operations of the supercell."""
    made = phonopy_of(geometry.unit, _matrix(geometry, order), geometry.primitive_matrix, geometry.symprec, False)
    return made.primitive, made.supercell


def _matrix(geometry: Geometry, order: int) -> Any:
    return geometry.supercell_matrix if order == 2 else geometry.fc3_supercell_matrix


def phono3py_object(geometry: Geometry, own_second: bool = True) -> Any:
    """phono3py's object of a geometry with third order.

    Args:
      own_second: a supercell of second order stands in it even if it equals that of third order.

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
    own_second = own_second or bool(np.any(geometry.supercell_matrix != geometry.fc3_supercell_matrix))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Phono3py(
            cell_of(geometry.unit),
            supercell_matrix=geometry.fc3_supercell_matrix,
            primitive_matrix=geometry.primitive_matrix,
            phonon_supercell_matrix=geometry.supercell_matrix if own_second else None,
            symprec=geometry.symprec,
            log_level=0,
        )


def with_sets(geometry: Geometry, sets: ForceSets, nac: Any = None) -> Any:
    """phono3py's object that holds force sets, or phonopy's where there are none of third order."""
    if sets.third is None:
        made = phonopy_object(geometry)
        made.dataset = sets.second
    else:
        made = phono3py_object(geometry, own_second=sets.second is not None)
        made.dataset, made.phonon_dataset = sets.third, sets.second
    if nac is not None:
        made.nac_params = nac
    return made


def solve_force_sets(geometry: Geometry, sets: ForceSets, symmetrize: bool = True) -> tuple[Any, Any]:
    """Force constants by phonopy's and phono3py's own solvers; random displacements of all atoms are fitted by symfc.

    Args:
      symmetrize: sum rule and permutations (traditional) of what is not fitted; a fit has them.

    Returns: fc2 (None where the supercells differ and `sets` has no second order), fc3 (None without third order).

    Raises:
      InputError: random displacements that are too few to determine the force constants.
    """

    def solver(dataset: Mapping[str, Any]) -> str | None:
        return "symfc" if "displacements" in dataset else None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = with_sets(geometry, sets)
        for dataset, order, orders in ((sets.second, 2, [2]), (sets.third, 3, [2, 3])):
            if dataset is not None and solver(dataset):
                _check_enough(phonopy_object(geometry, order), dataset["displacements"], orders)
        if sets.third is None:
            made.produce_force_constants(
                calculate_full_force_constants=False, show_drift=False, fc_calculator=solver(sets.second)
            )
            if symmetrize and solver(sets.second) is None:
                made.symmetrize_force_constants(show_drift=False)
            return np.array(made.force_constants), None
        made.produce_fc3(symmetrize_fc3r=symmetrize, fc_calculator=solver(sets.third))
        if sets.second is not None:
            made.produce_fc2(symmetrize_fc2=symmetrize, fc_calculator=solver(sets.second))
        return None if made.fc2 is None else np.array(made.fc2), np.array(made.fc3)


def _check_enough(phonopy: Any, displacements: Any, orders: list[int]) -> None:
    """Refuse random displacements with fewer equations than unknowns, which the fit would answer with anything."""
    from phonopy.interface.symfc import SymfcFCSolver

    fit = SymfcFCSolver(phonopy.supercell, symmetry=phonopy.symmetry)
    unknowns = [fit.estimate_basis_size(orders=[order])[order] for order in orders]
    equations = max(1, 3 * (len(phonopy.supercell) - 1))  # the forces of a cell sum to zero
    moves = np.asarray(displacements, float)
    # A displacement and its opposite determine one order each, twice the displacements of one sign both.
    apart = len(np.unique(np.round(moves * np.sign(moves[:, :1, :1]), 8), axis=0))
    need = -(-max(unknowns) // equations)
    if apart < need or len(moves) * equations < sum(unknowns):
        both = -(-sum(unknowns) // equations)
        raise InputError(
            f"{len(moves)} random displacements ({apart} but for their sign) of {len(phonopy.supercell)} atoms leave force "
            f"constants of order {orders[-1]} undetermined; at least {max(both, need)} ({need} but for their sign) are needed: "
            "add snapshots"
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
    return np.unique(_space_group(crystal, symprec)["rotations"], axis=0)


def _space_group(crystal: Crystal, symprec: float) -> dict[str, Any]:
    """spglib's operations and equivalent atoms, of element, mass and magnetic moment.

    Raises:
      InputError: spglib finds none.
    """
    import spglib

    crystal = _by_kind(crystal)
    cell = (crystal.lattice, crystal.positions, crystal.numbers)
    if crystal.moments is None:
        found = spglib.get_symmetry(cell, symprec=symprec)
    else:
        found = spglib.get_magnetic_symmetry((*cell, crystal.moments), symprec=symprec)
    if found is None:
        raise InputError(
            f"spglib finds no symmetry at symprec {symprec} Å: are two atoms on one site? try another symprec"
        )
    return dict(found)


def cartesian_point_group(crystal: Crystal, symprec: float = SYMPREC) -> np.ndarray:
    """(operations, 3, 3) the rotations of `point_group` in Cartesian coordinates."""
    lattice = np.asarray(crystal.lattice)
    return np.einsum("ia,gij,bj->gab", lattice, point_group(crystal, symprec), np.linalg.inv(lattice))


def equivalent_atoms(crystal: Crystal, symprec: float = SYMPREC) -> np.ndarray:
    """(atoms,) a label for each atom; symmetry-equivalent atoms have the same."""
    return np.array(_space_group(crystal, symprec)["equivalent_atoms"])


def primitive_operations(crystal: Crystal, symprec: float = SYMPREC) -> tuple[np.ndarray, np.ndarray]:
    """Space group of a cell: (g, 3, 3) Cartesian rotations, (g, atoms) the atom on whose site each atom comes to lie."""
    from phonopy.structure.symmetry import Symmetry

    found = Symmetry(cell_of(_by_kind(crystal)), symprec=symprec)
    fractional = np.array(found.symmetry_operations["rotations"], float)
    lattice = crystal.lattice.T
    return lattice @ fractional @ np.linalg.inv(lattice), np.array(found.atomic_permutations, int)


def symmetric_nac(crystal: Crystal, symprec: float = SYMPREC) -> Crystal:
    """The crystal with Born charges and dielectric tensor averaged over the space group, and charges that sum to zero."""
    if crystal.born is None:
        return crystal
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
