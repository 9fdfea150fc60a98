"""Second and third derivatives of the energy by atomic displacements, from a potential or from files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmd_thermal._backend import available_memory, double_precision
from jaxmd_thermal.derivatives import check_dtype, check_potential, hessian_columns
from jaxmd_thermal.errors import CapacityError, InputError
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.crystal import Crystal, Images
from jaxmd_thermal.lattice.displaced import check_batch, displaced_forces, third_derivatives
from jaxmd_thermal.lattice.geometry import ForceSets, Geometry
from jaxmd_thermal.lattice.plans import (
    displacement_plan,
    finite_displacements,
    included_pairs,
    operations_and_images,
    with_forces,
)
from jaxmd_thermal.lattice.projection import (
    distinct_atoms,
    fc2_from_rows,
    fc3_from_rows,
    pair_orbits,
    project_fc2,
    project_fc3,
)
from jaxmd_thermal.lattice.solver import solve_fc2, solve_fc3
from jaxmd_thermal.potentials.base import Potential
from jaxmd_thermal.system import System, static

PEAK = 4
"""Memory of force constants while they are symmetrised, in units of their own."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ForceConstants:
    """Force constants in phonopy's compact layout. A pytree: fc2 and fc3 are leaves, the geometry is static.

    Attributes:
      fc2: (primitive atoms, supercell atoms, 3, 3) eV/Å^2.
      fc3: (primitive atoms, supercell atoms, supercell atoms, 3, 3, 3) eV/Å^3, or None.
      crystal: primitive cell, with Born charges where they are known.
      images2, images3: shortest vectors of the supercells of second and third order (`images3` None without fc3).
      geometry: the given cell and the matrices, needed by `save`.
      force_sets: the displacements and forces that they were solved from, or None; `replace` of constants drops them.
    """

    fc2: Any
    fc3: Any
    crystal: Crystal = static()
    images2: Images = static()
    images3: Images | None = static(None)
    geometry: Geometry | None = static(None)
    force_sets: ForceSets | None = static(None)

    def __post_init__(self):
        # Inside JAX's tree functions leaves may be anything (norms, stacks): only what looks like force constants is checked.
        if getattr(self.fc2, "ndim", 0) != 4:
            return
        n_prim, n_super = len(self.crystal.numbers), len(self.images2.primitive_of)
        if self.fc2.shape != (n_prim, n_super, 3, 3):
            raise InputError(
                f"fc2 has the shape {tuple(self.fc2.shape)}; this crystal and supercell need {(n_prim, n_super, 3, 3)}"
            )
        if getattr(self.fc3, "ndim", 0) == 6:
            n_super = 0 if self.images3 is None else len(self.images3.primitive_of)
            if self.fc3.shape != (n_prim, n_super, n_super, 3, 3, 3):
                raise InputError(
                    f"fc3 has the shape {tuple(self.fc3.shape)}; its crystal and supercell (`images3`) need "
                    f"{(n_prim, n_super, n_super, 3, 3, 3)}"
                )

    @classmethod
    def from_phono3py(cls, path: str | Path, symmetrize: bool = True) -> ForceConstants:
        """Force constants of a file or folder of phonopy or phono3py.

        Args:
          path: `phonopy_params.yaml` or `phono3py_params.yaml`, also compressed (.xz, .gz), with forces or force constants;
            or a folder with `phonopy*.yaml` or `phono3py*.yaml` and `FORCE_SETS`, `FORCES_FC3`, `FORCES_FC2`,
            `force_constants.hdf5`, `fc2.hdf5`, `fc3.hdf5` or `BORN`. Nothing outside of it is read. Units are those of the
            file's calculator and are converted; magnetic moments count for the symmetry.
          symmetrize: sum rule and permutation symmetry of what is computed from forces (phonopy's traditional ones). Random
            displacements are fitted by symfc, with both.

        Raises:
          InputError: what is missing or broken, with the file, the dataset and what was expected.
        """
        from jaxmd_thermal.io.phono3py import read_force_constants

        return read_force_constants(path, symmetrize)

    def save(self, folder: str | Path) -> Path:
        """Write `fc2.hdf5`, `fc3.hdf5` (if there is third order) and `phonopy.yaml` or `phono3py.yaml` into a folder.

        Force sets, where there are any, go into `phonopy_params.yaml` or `phono3py_params.yaml`. phonopy and phono3py read
        all of them, and so does `from_phono3py`.

        Raises:
          InputError: these force constants have no `geometry`.
          OutputError: the folder cannot be written.
        """
        from jaxmd_thermal.io.phono3py import write_force_constants

        return write_force_constants(self, folder)

    def replace(self, **changes) -> ForceConstants:
        if {"fc2", "fc3"} & changes.keys():
            changes = {"force_sets": None} | changes
        return replace(self, **changes)

    @property
    def masses(self) -> np.ndarray:
        """(primitive atoms,) amu."""
        return self.crystal.masses


def empty_force_constants(geometry: Geometry, fc2: Any, fc3: Any = None, nac: Any = None) -> ForceConstants:
    """Force constants with the crystal and images that belong to a geometry."""
    primitive, supercell = symmetry.cells_of(geometry)
    return ForceConstants(
        fc2=fc2,
        fc3=fc3,
        crystal=symmetry.crystal_of(primitive, nac),
        images2=symmetry.images_of(primitive, supercell),
        images3=None if fc3 is None else symmetry.images_of(*symmetry.cells_of(geometry, 3)),
        geometry=geometry,
    )


@dataclass(frozen=True)
class Estimate:
    """What a calculation of force constants will take.

    Attributes:
      evaluations2, evaluations3: Hessian columns or displaced cells of second order, displaced cells or third derivatives.
      atoms2, atoms3: atoms of the supercells.
      fc_bytes: memory of the finished force constants.
      symmetrize_bytes: what comes on top of it on the host while they are symmetrised.
      batch_bytes: positions and forces of a batch; the potential's own work comes on top.
    """

    evaluations2: int
    evaluations3: int
    atoms2: int
    atoms3: int
    fc_bytes: int
    symmetrize_bytes: int
    batch_bytes: int

    def seconds(self, per_atom: float, cost2: float = 1.0, cost3: float = 1.0) -> float:
        """Time from the seconds that forces take per atom; a Hessian column costs about 2, a third derivative about 5."""
        return per_atom * (cost2 * self.evaluations2 * self.atoms2 + cost3 * self.evaluations3 * self.atoms3)


def estimate_force_constants(
    atoms: Any,
    supercell: Any,
    fc3_supercell: Any = None,
    displacement: float | None = 0.03,
    batch_size: int | None = None,
    pair_cutoff: float | None = None,
    snapshots: int | None = None,
) -> Estimate:
    """Number of evaluations and memory of `force_constants` with the same arguments. No potential is evaluated."""
    _check_pair_cutoff(pair_cutoff)
    _check_snapshots(snapshots, displacement, pair_cutoff)
    geometry = symmetry.geometry_of(atoms, supercell, fc3_supercell)
    return _estimate(geometry, displacement, batch_size, pair_cutoff, snapshots)


def _estimate(
    geometry: Geometry, displacement: float | None, batch_size: int | None, pair_cutoff: float | None,
    snapshots: int | None,
) -> Estimate:  # fmt: skip
    primitive, supercell = symmetry.cells_of(geometry)
    n_prim, n2, n3 = len(primitive), len(supercell), 0
    if geometry.fc3_supercell_matrix is not None:
        n3 = round(len(geometry.unit.numbers) * np.linalg.det(geometry.fc3_supercell_matrix))
    refuse_too_large(geometry)
    fc3 = 216 * n_prim * n3**2
    evaluations3 = 0
    if snapshots is not None:
        evaluations2, evaluations3 = 2 * snapshots * (not _one_supercell(geometry)), 2 * snapshots * (n3 > 0)
    elif displacement is None:
        evaluations2 = 3 * len(distinct_atoms(*operations_and_images(symmetry.phonopy_object(geometry))))
        if n3:
            third = symmetry.phonopy_object(geometry, 3)
            evaluations3 = len(_third_columns(*operations_and_images(third), third.primitive.cell, pair_cutoff))
    else:
        evaluations2 = len(finite_displacements(geometry, 2, displacement)["first_atoms"])
        if n3:
            firsts = finite_displacements(geometry, 3, displacement, pair_cutoff)["first_atoms"]
            evaluations3 = len(firsts) + sum(len(included_pairs(a)) for a in firsts)
    fc2 = 72 * n_prim * n2
    batch = 48 * max(n2 * check_batch(batch_size, n2), n3 * check_batch(batch_size, max(n3, 1)))
    return Estimate(evaluations2, evaluations3, n2, n3, fc2 + fc3, (PEAK - 1) * (fc2 + fc3), batch)


def force_constants(
    potential: Potential,
    atoms: Any,
    supercell: Any,
    fc3_supercell: Any = None,
    displacement: float | None = 0.03,
    *,
    pair_cutoff: float | None = None,
    batch_size: int | None = None,
    primitive: Any = "auto",
    symprec: float = symmetry.SYMPREC,
    dtype: str = "float64",
    progress: Callable[[int, int], None] | None = None,
    snapshots: int | None = None,
    seed: int = 0,
) -> ForceConstants:
    """Force constants of a potential, symmetrised.

    Args:
      potential: a potential.
      atoms: the cell, relaxed (`relax`); ASE `Atoms`, `System` or the path of a structure file.
      supercell, fc3_supercell: 3 whole numbers or a 3x3 matrix of the given cell; without the second there is no fc3.
      displacement: Å, finite displacements, generated by phonopy and phono3py (third order needs phono3py) and solved here
        (`solver`). None: exact derivatives by AD, of symmetry-distinct atoms and pairs. Both ways the space group is built
        in, permutations and sum rules follow by orthogonal projection.
      pair_cutoff: Å, third order only: pairs further apart than this are not displaced together. Elements are known where two
        of their three atoms are that close; the others are zero but for the sum rule. None: all pairs.
      batch_size: displaced cells (or third derivatives) evaluated together; memory grows with it.
      primitive: "auto", a centring letter or a matrix (phonopy's).
      symprec: Å.
      dtype: precision of the potential. With nequix-mp-1 and 0.03 Å, single precision took half the time and changed kappa of
        NaCl and wurtzite ZnO by less than 3e-4, SRME by less than 5e-4.
      progress: called with the number of evaluations that are done and of all, of one order after the other.
      snapshots: fit second and third order (symfc) to so many random displacements of all atoms, each by `displacement` and
        with its opposite, instead of displacing one and two atoms: fewer cells where symmetry is low. What is beyond third
        order stays in the fit. None: no fit.
      seed: of the random displacements, 0 to 2^32 - 1.

    Returns: ForceConstants; fc2 in eV/Å^2, fc3 in eV/Å^3; with `force_sets` unless by AD.

    Raises:
      InputError: matrices, displacement, structure; too few snapshots; phono3py missing.
      CapacityError: fc3 would not fit into memory while it is symmetrised.

    Source: finite displacements: Parlinski, Li, Kawazoe, PRL 78, 4063 (1997); Togo, J. Phys. Soc. Jpn. 92, 012001 (2023).
    """
    if displacement is not None and not (np.isfinite(displacement) and 1e-5 <= displacement <= 0.5):
        raise InputError(f"displacement is {displacement} Å; it must lie between 1e-5 and 0.5, or be None for AD")
    _check_pair_cutoff(pair_cutoff)
    _check_snapshots(snapshots, displacement, pair_cutoff, seed)
    check_dtype(dtype)
    check_potential(potential, System.from_atoms(atoms))
    geometry = symmetry.geometry_of(atoms, supercell, fc3_supercell, primitive, symprec)
    refuse_too_large(geometry)
    third = geometry.fc3_supercell_matrix is not None
    sets, fc3 = None, None
    if displacement is None:
        fc2 = _fc2_by_ad(potential, geometry, dtype)
        if third:
            fc3 = _fc3_by_ad(potential, geometry, pair_cutoff, batch_size, dtype, progress)
    elif snapshots is not None:
        made: list[Mapping[str, Any] | None] = [None, None]
        for order in [*([] if _one_supercell(geometry) else [2]), *([3] if third else [])]:
            random = symmetry.phonopy_object(geometry, order)
            random.generate_displacements(
                distance=displacement, number_of_snapshots=snapshots, random_seed=seed, is_plusminus=True
            )
            moves = random.dataset["displacements"]
            forces = _forces(potential, geometry, order, moves, batch_size, dtype, progress)
            made[order - 2] = {"displacements": moves, "forces": forces}
        sets = ForceSets(*made)
        fc2, fc3 = symmetry.solve_force_sets(geometry, sets)
    else:
        single, plan = displacement_plan(geometry, 2, displacement)
        forces, fc2 = _by_displacements(potential, geometry, 2, plan, solve_fc2, batch_size, dtype, progress)
        sets = ForceSets(with_forces(single, forces))
        if third:
            pairs, plan = displacement_plan(geometry, 3, displacement, pair_cutoff)
            forces, fc3 = _by_displacements(potential, geometry, 3, plan, solve_fc3, batch_size, dtype, progress)
            sets = replace(sets, third=with_forces(pairs, forces))
    return empty_force_constants(geometry, fc2, fc3).replace(force_sets=sets)


def _check_pair_cutoff(pair_cutoff: float | None) -> None:
    if pair_cutoff is not None and not (np.isfinite(pair_cutoff) and pair_cutoff > 0):
        raise InputError(f"pair_cutoff is {pair_cutoff} Å; give a positive distance, or None for all pairs")


def _check_snapshots(
    snapshots: int | None, displacement: float | None, pair_cutoff: float | None, seed: int = 0
) -> None:
    if snapshots is None:
        return
    if not isinstance(snapshots, int | np.integer) or snapshots < 1:
        raise InputError(
            f"snapshots is {snapshots!r}; give a whole number of random displacements, at least 1, or None"
        )
    if displacement is None or pair_cutoff is not None:
        name, value = ("displacement", None) if displacement is None else ("pair_cutoff", pair_cutoff)
        raise InputError(
            f"{name} is {value} with snapshots={snapshots}: random displacements need a length in Å and no cutoff of pairs"
        )
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed!r}; give a whole number from 0 to 2^32 - 1")


def _one_supercell(geometry: Geometry) -> bool:
    third = geometry.fc3_supercell_matrix
    return third is not None and bool(np.all(third == geometry.supercell_matrix))


def refuse_too_large(geometry: Geometry) -> None:
    """Refuse what would not fit while it is symmetrised, without generating displacements."""
    if geometry.fc3_supercell_matrix is not None:
        n_super = round(len(geometry.unit.numbers) * np.linalg.det(geometry.fc3_supercell_matrix))
        n_prim = max(1, round(len(geometry.unit.numbers) * abs(np.linalg.det(geometry.primitive_matrix))))
        size = 216.0 * n_prim * n_super**2
        have = available_memory()
        if PEAK * size > have:
            raise CapacityError(
                f"fc3 of {n_prim} atoms in a supercell of {n_super} needs {size / 2**30:.1f} GiB, {PEAK} times that while it is "
                f"symmetrised, and {have / 2**30:.1f} GiB are available: choose a smaller fc3_supercell"
            )


def _fc2_by_ad(potential: Potential, geometry: Geometry, dtype: str) -> np.ndarray:
    phonopy = symmetry.phonopy_object(geometry)
    operations, images = operations_and_images(phonopy)
    distinct = distinct_atoms(operations, images)
    columns = [3 * atom + axis for atom in distinct for axis in range(3)]
    found = hessian_columns(potential, symmetry.system_of(phonopy.supercell), columns, dtype)
    rows = {atom: found[3 * k : 3 * k + 3].transpose(1, 0, 2) for k, atom in enumerate(distinct)}
    return project_fc2(fc2_from_rows(rows, operations, images), images, operations.to_primitive(images))


def _third_columns(operations, images, lattice, pair_cutoff: float | None) -> list[tuple[int, int]]:
    pairs = [(i, j) for i in distinct_atoms(operations, images) for j in pair_orbits(operations, i)]
    if pair_cutoff is not None:
        place = {int(row): k for k, row in enumerate(images.primitive_rows)}
        starts = images.multiplicity[..., 1]
        far = np.linalg.norm(images.vectors @ lattice, axis=-1)
        pairs = [(i, j) for i, j in pairs if far[starts[j, place[i]]] < pair_cutoff]
    # A pair of an atom with itself is symmetric in its two directions.
    return [(3 * i + a, 3 * j + b) for i, j in pairs for a in range(3) for b in range(a if i == j else 0, 3)]


def _fc3_by_ad(potential: Potential, geometry: Geometry, pair_cutoff, batch_size, dtype: str, progress) -> np.ndarray:
    phonopy = symmetry.phonopy_object(geometry, 3)
    operations, images = operations_and_images(phonopy)
    columns = _third_columns(operations, images, phonopy.primitive.cell, pair_cutoff)
    found = third_derivatives(potential, symmetry.system_of(phonopy.supercell), columns, batch_size, dtype, progress)
    rows: dict[tuple[int, int], np.ndarray] = {}
    for (first, second), value in zip(columns, found, strict=True):
        (i, a), (j, b) = divmod(first, 3), divmod(second, 3)
        row = rows.setdefault((i, j), np.zeros((len(images.primitive_of), 3, 3, 3)))
        row[:, a, b] = value
        if i == j:
            row[:, b, a] = value
    fc3, known = fc3_from_rows(rows, operations, images)
    return project_fc3(fc3, images, operations.to_primitive(images), None if known.all() else known)


def _forces(potential, geometry: Geometry, order: int, moves, batch_size, dtype: str, progress) -> np.ndarray:
    system = symmetry.system_of(symmetry.cells_of(geometry, order)[1])
    return displaced_forces(potential, system, moves, batch_size, dtype, progress)


def _by_displacements(
    potential, geometry: Geometry, order: int, plan: Any, solve, batch_size, dtype: str, progress
) -> tuple[np.ndarray, np.ndarray]:
    """Forces of a plan's cells, and the force constants that they give."""
    forces = _forces(potential, geometry, order, plan.moves, batch_size, dtype, progress)
    with double_precision():
        return forces, np.asarray(solve(jax.numpy.asarray(forces), plan))
