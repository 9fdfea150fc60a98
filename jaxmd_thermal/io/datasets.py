"""Data sets for training, from files of structures (extxyz, ASE databases) and of phonopy and phono3py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal.errors import InputError, nearest
from jaxmd_thermal.io.phono3py import read_displaced, read_force_constants
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.commensurate import folded, smallest_cells
from jaxmd_thermal.lattice.force_constants import ForceConstants
from jaxmd_thermal.system import System
from jaxmd_thermal.training.data import Frame, check_frames, compound_of
from jaxmd_thermal.training.plausibility import (
    check_displacements,
    check_energies_and_forces,
    check_force_constants,
    check_restoring_forces,
)

CELLS = ("supercell", "commensurate")
"""What stands for a crystal in training on its force constants."""


def read_frames(
    path: str | Path,
    *,
    energy_key: str = "energy",
    forces_key: str = "forces",
    stress_key: str = "stress",
    compound: str | Callable[[Any], str] = "compound",
    check_units: bool = True,
) -> list[Frame]:
    """Labelled structures of any file that ASE reads: extended xyz, databases (.db, .json), trajectories, outputs.

    Args:
      energy_key, forces_key, stress_key: names of the labels, in the calculator's results, `info` or `arrays`. Energies in
        eV, forces in eV/Å, stress in eV/Å^3 with ASE's sign, 3x3 or six Voigt components.
      compound: entry of `info` that names the compound, or a function of the ASE `Atoms`; without one the reduced formula.
      check_units: compare energies of similar frames with the work of their forces.

    Raises:
      InputError: a file that is missing or unreadable, no frames, labels of a wrong shape or not finite (with the frame),
        units off by more than a factor of four.
    """
    from ase.io import iread

    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"there is no file '{path}': give a file of structures that ASE reads (.extxyz, .db, .traj, ...)"
        )
    frames = []
    try:
        for number, atoms in enumerate(iread(path, index=":")):
            frames.append(_frame(atoms, f"'{path}', frame {number}", (energy_key, forces_key, stress_key), compound))
    except InputError:
        raise
    except Exception as error:  # ASE's readers raise whatever their parser stumbles over
        raise InputError(f"'{path}', frame {len(frames)} cannot be read ({type(error).__name__}: {error})") from error
    check_frames(frames)
    if check_units:
        check_energies_and_forces(frames, f"'{path}'")
    return frames


def _frame(atoms: Any, source: str, keys: tuple[str, str, str], compound: str | Callable[[Any], str]) -> Frame:
    results = {} if atoms.calc is None else dict(atoms.calc.results)

    def label(key: str) -> Any:
        for place in (results, atoms.info, atoms.arrays):
            if place.get(key) is not None:
                return place[key]
        return None

    energy, forces, stress = (label(key) for key in keys)
    if stress is not None:
        stress = np.asarray(stress, float)
        if stress.size == 6:
            xx, yy, zz, yz, xz, xy = stress.ravel()
            stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        elif stress.size == 9:
            stress = stress.reshape(3, 3)
    name = compound(atoms) if callable(compound) else atoms.info.get(compound)
    return Frame(
        numbers=np.asarray(atoms.numbers, np.int32),
        positions=np.asarray(atoms.positions, float),
        cell=np.asarray(atoms.cell.array, float),
        pbc=(bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2])),
        energy=None if energy is None else float(energy),
        forces=None if forces is None else np.asarray(forces, float),
        stress=stress,
        compound=str(name) if name is not None else atoms.get_chemical_formula(empirical=True),
        source=source,
    )


def read_phonon_frames(
    path: str | Path,
    *,
    compound: str | None = None,
    at_rest: bool = True,
    stress: bool = False,
    third: bool = False,
    cells: str = "supercell",
    max_atoms: int | None = None,
    check_units: bool = True,
) -> list[Frame]:
    """The undisplaced crystal of a file of phonopy or phono3py, with columns of its force constants.

    The columns are those of the primitive cell's atoms; the others repeat them. Force constants are symmetrised.

    Args:
      path: a file or folder (`ForceConstants.from_phono3py`).
      compound: name; None: the name of the file.
      at_rest: label the forces as zero, what they are at the relaxed geometry.
      stress: label the stress as zero; right only if the cell was relaxed with the same settings.
      third: third derivatives, too, where the file has them.
      cells: "supercell", or "commensurate": the smallest cells that hold its wave vectors (`lattice.commensurate`), with the
        force constants folded into them. A few atoms each say what the supercell says, at a fraction of the cost.
      max_atoms: of a frame; larger ones are left out, and wave vectors that need larger cells.
      check_units: compare displacements and force constants with what is usual.

    Returns: at most one frame; two where second and third order have supercells of their own; one for each of the small cells.

    Raises:
      InputError: an unreadable file, units off by an order of magnitude, or third derivatives in small cells.
    """
    if cells not in CELLS:
        raise InputError(f"there are no cells '{cells}'{nearest(cells, CELLS)}: {', '.join(CELLS)}")
    if third and cells != "supercell":
        raise InputError(f'cells is "{cells}", which is for second derivatives only: take third=False or "supercell"')
    path = Path(path)
    fc = read_force_constants(path)
    assert fc.geometry is not None
    name = compound or compound_of(path)
    source = f"'{path}', undisplaced supercell"
    whole = _at_rest(fc, 2, name, source, at_rest, stress)
    if check_units:
        _check_lengths(path)
        check_force_constants(whole)
    frames = [whole] if cells == "supercell" else _small_cells(fc, whole, path, max_atoms)
    if third and fc.fc3 is not None:
        other = _at_rest(fc, 3, name, f"{source} of third order", at_rest, stress)
        if other.n_atoms == frames[0].n_atoms and np.allclose(other.positions, frames[0].positions):
            frames = [frames[0].replace(third=other.third)]
        else:
            frames.append(other)
    frames = [f for f in frames if max_atoms is None or f.n_atoms <= max_atoms]
    if frames:
        check_frames(frames)
    return frames


def _small_cells(fc: ForceConstants, whole: Frame, path: Path, max_atoms: int | None) -> list[Frame]:
    crystal = fc.crystal
    largest = None if max_atoms is None else max_atoms // len(crystal.numbers)
    found = smallest_cells(fc.images2.matrix, crystal.lattice, symmetry.point_group(crystal), largest)
    out = []
    for matrix in found:
        system, small = folded(fc.fc2, fc.images2, whole.system, matrix)
        n, cells = len(system.numbers), len(system.numbers) // len(crystal.numbers)
        rows = cells * np.arange(len(crystal.numbers))
        out.append(
            whole.replace(
                numbers=np.asarray(system.numbers, np.int32),
                positions=system.positions,
                cell=system.cell,
                forces=None if whole.forces is None else np.zeros((n, 3)),
                columns=(3 * rows[:, None] + np.arange(3)).ravel(),
                hessian=small.transpose(0, 2, 1, 3).reshape(-1, n, 3),
                source=f"'{path}', folded into {n} atoms",
            )
        )
    return out


def _check_lengths(path: Path) -> None:
    try:
        _, displacements, _ = read_displaced(path)
    except InputError:
        return  # stored force constants, without forces
    single = _single(displacements)
    if single.any():
        check_displacements(displacements[single], f"'{path}'")


def _single(displacements: np.ndarray) -> np.ndarray:
    """(sets,) whether one atom alone is displaced."""
    return np.sum(np.any(displacements != 0.0, axis=2), axis=1) == 1


def _at_rest(fc: ForceConstants, order: int, name: str, source: str, at_rest: bool, stress: bool) -> Frame:
    assert fc.geometry is not None
    images = fc.images2 if order == 2 else fc.images3
    assert images is not None
    system = symmetry.system_of(symmetry.cells_of(fc.geometry, order)[1])
    rows = np.asarray(images.primitive_rows)
    columns = (3 * rows[:, None] + np.arange(3)).ravel()
    hessian = third = None
    if order == 2:
        hessian = np.asarray(fc.fc2, float).transpose(0, 2, 1, 3).reshape(len(columns), -1, 3)
    else:
        fc3 = np.asarray(fc.fc3, float)
        own = np.stack(
            [fc3[p, :, row] for p, row in enumerate(rows)]
        )  # (primitive, atoms, 3, 3, 3): a, b, c of (p, i, p)
        third = np.einsum("piaba->paib", own).reshape(len(columns), -1, 3)
    return Frame(
        numbers=np.asarray(system.numbers, np.int32),
        positions=np.asarray(system.positions, float),
        cell=np.asarray(system.cell, float),
        forces=np.zeros((len(system.numbers), 3)) if at_rest else None,
        stress=np.zeros((3, 3)) if stress else None,
        columns=columns,
        hessian=hessian,
        third=third,
        compound=name,
        source=source,
    )


def read_displaced_frames(path: str | Path, *, compound: str | None = None, check_units: bool = True) -> list[Frame]:
    """The displaced supercells of a file of phonopy or phono3py, each with its forces.

    Args and errors: as for `read_phonon_frames`; a file without forces is an error. Units are checked where one atom alone
    is displaced, by the length of its way and the force that drives it back.
    """
    path = Path(path)
    system, displacements, forces = read_displaced(path)
    single = _single(displacements)
    if check_units and single.any():
        check_displacements(displacements[single], f"'{path}'")
        check_restoring_forces(system, displacements[single], forces[single], f"'{path}'")
    frames = [_displaced(system, u, f, compound or compound_of(path), f"'{path}', displacement {number}")
              for number, (u, f) in enumerate(zip(displacements, forces, strict=True))]  # fmt: skip
    check_frames(frames)
    return frames


def _displaced(system: System, move: np.ndarray, forces: np.ndarray, name: str, source: str) -> Frame:
    return Frame(
        numbers=np.asarray(system.numbers, np.int32),
        positions=np.asarray(system.positions, float) + move,
        cell=np.asarray(system.cell, float),
        forces=forces,
        compound=name,
        source=source,
    )
