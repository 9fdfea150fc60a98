"""Structures from and to ASE, with its unit of time converted at this boundary and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import chemical_symbols

from jaxmd_thermal.errors import InputError, OutputError, nearest
from jaxmd_thermal.units import ASE_TIME

BUILTIN_STRUCTURES = {
    # Cubic cells at zero pressure: argon at about 50 K with the set `gk`, silicon at 0 K with Stillinger-Weber.
    "argon": ("Ar", "fcc", 5.3737),
    "silicon": ("Si", "diamond", 5.431),
}
"""Names that stand for a structure where a path is expected: (symbol, lattice, cubic lattice constant in Å)."""


def velocities_from_ase(velocities: Any) -> np.ndarray:
    """Å/fs from ASE's Å per sqrt(Å^2 amu/eV)."""
    return np.asarray(velocities, float) / ASE_TIME


def velocities_to_ase(velocities: Any) -> np.ndarray:
    """ASE's Å per sqrt(Å^2 amu/eV) from Å/fs."""
    return np.asarray(velocities, float) * ASE_TIME


def velocities_of(atoms: Atoms) -> np.ndarray | None:
    """(atoms, 3) Å/fs, or None if the structure carries no velocities."""
    return velocities_from_ase(atoms.get_velocities()) if atoms.has("momenta") else None


def read_structure(path: str | Path, index: int = -1) -> Atoms:
    """One structure from any file that ASE reads (extxyz, POSCAR, cif, LAMMPS data, ...); the last of several.

    Raises:
      InputError: the file is missing, unreadable or holds no atoms; the message names it and a remedy.
    """
    from ase.io import read

    path = Path(path)
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, [*siblings, *BUILTIN_STRUCTURES])
        raise InputError(
            f"there is no structure file '{path}'{hint or ':'} give a file that ASE reads, or one of the built-in "
            f"structures {_names(BUILTIN_STRUCTURES)}"
        )
    if path.is_dir():
        raise InputError(f"'{path}' is a folder; give the structure file inside it")
    if not os.access(path, os.R_OK):
        raise InputError(f"the structure file '{path}' may not be read: change its permissions (chmod +r)")
    try:
        atoms = read(path, index=index)
    except Exception as error:  # ASE's readers raise whatever their parser stumbles over
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"cannot read a structure from '{path}' ({reason}): check that the file is complete and that its name says "
            "its format (for example .extxyz, .cif, POSCAR)"
        ) from error
    if not isinstance(atoms, Atoms) or len(atoms) == 0:
        raise InputError(f"the structure file '{path}' holds 0 atoms; at least 1 is needed: check the file")
    return atoms


def builtin_structure(name: str) -> Atoms:
    """The conventional cell of a built-in crystal, `argon` or `silicon`."""
    if name not in BUILTIN_STRUCTURES:
        raise InputError(f"no built-in structure '{name}'{nearest(name, BUILTIN_STRUCTURES)}")
    symbol, lattice, constant = BUILTIN_STRUCTURES[name]
    return bulk(symbol, lattice, a=constant, cubic=True)


def atoms_from(structure: Any) -> Atoms:
    """ASE `Atoms` (a copy) of whatever describes a structure.

    Args:
      structure: `Atoms`; a path; the name of a built-in crystal (a file of that name wins); a `System`; or an object
        with `cell`, `positions`, `numbers` and `masses`, such as phonopy's.

    Raises:
      InputError: nothing of these, or an unreadable file.
    """
    if isinstance(structure, Atoms):
        return structure.copy()
    if isinstance(structure, str | os.PathLike):
        if str(structure) in BUILTIN_STRUCTURES and not Path(structure).exists():
            return builtin_structure(str(structure))
        return read_structure(Path(structure))
    if all(hasattr(structure, name) for name in ("cell", "positions", "numbers", "masses")):
        return to_atoms(structure)
    raise InputError(
        f"a structure cannot be made from {type(structure).__name__}: give ASE Atoms, a System, the path of a "
        f"structure file, or one of {_names(BUILTIN_STRUCTURES)}"
    )


def to_atoms(system: Any, velocities: Any = None, positions: Any = None, cell: Any = None) -> Atoms:
    """ASE `Atoms` of a System (or Atoms), optionally with other positions or cell (Å), and with velocities in Å/fs."""
    atoms = Atoms(
        numbers=np.asarray(system.numbers),
        positions=np.asarray(system.positions if positions is None else positions, float),
        cell=np.asarray(system.cell if cell is None else cell, float),
        pbc=getattr(system, "pbc", True),
        masses=np.asarray(system.get_masses() if isinstance(system, Atoms) else system.masses, float),
    )
    if velocities is not None:
        velocities = np.asarray(velocities, float)
        if velocities.shape != atoms.positions.shape:
            raise InputError(f"velocities have the shape {velocities.shape}; {atoms.positions.shape} is needed")
        atoms.set_velocities(velocities_to_ase(velocities))
    return atoms


def supercell(structure: Any, repeats: int | Sequence[int]) -> Atoms:
    """The structure repeated along its lattice vectors (all of them by a single integer).

    Raises:
      InputError: repeats that are not positive integers, or repetition along a direction that is not periodic.
    """
    atoms = atoms_from(structure)
    counts = [repeats] * 3 if isinstance(repeats, int | np.integer) else list(repeats)
    if len(counts) != 3 or any(int(c) != c or c < 1 for c in counts):
        raise InputError(
            f"--supercell {' '.join(map(str, counts))}: three integers of at least 1 are needed, as in 4 4 4"
        )
    for axis, (count, periodic) in enumerate(zip(counts, atoms.pbc)):
        if count > 1 and not periodic:
            raise InputError(
                f"cannot repeat {count} times along direction {'abc'[axis]}, which is not periodic: use 1 there, or "
                "make the structure periodic (pbc)"
            )
    return atoms.repeat([int(c) for c in counts])


def write_structure(path: str | Path, structure: Any, velocities: Any = None) -> Path:
    """Write one structure as extended xyz (or the format that the suffix names).

    Raises:
      OutputError: the file cannot be written.
    """
    from ase.io import write

    atoms = atoms_from(structure) if velocities is None else to_atoms(structure, velocities)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write(path, atoms)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror or error}; choose another --out") from error
    return Path(path)


def formula(numbers: Any) -> str:
    """`Ar256` or `Ga128As128`: elements in the order of first appearance."""
    numbers = np.asarray(numbers).tolist()
    return "".join(f"{chemical_symbols[n]}{numbers.count(n)}" for n in dict.fromkeys(numbers))


def _names(known) -> str:
    return ", ".join(f"'{k}'" for k in known)
