"""Labelled structures: checks that name what is wrong with them, splits by compound."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.system import System

CLOSEST = 0.5
"""Å. No two nuclei of a solid come closer; lengths in nm or in fractions do."""

LARGEST_FORCE = 1e3
"""eV/Å; beyond it a label is a mistake, not a structure."""

SUFFIXES = (".xz", ".gz", ".yaml", ".yml")
"""What the name of a phonopy file has behind that of its compound, the last one first."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One structure with what is known of it; what is not known is None.

    Attributes:
      numbers: (atoms,) atomic numbers.
      positions, cell: (atoms, 3), (3, 3) Å; rows of the cell are lattice vectors.
      pbc: periodicity.
      energy: eV of the whole structure.
      forces: (atoms, 3) eV/Å.
      stress: (3, 3) eV/Å^3, positive under tension.
      columns: (c,) degrees of freedom 3 * atom + axis, of which second (and third) derivatives are known.
      hessian: (c, atoms, 3) eV/Å^2: d^2E/dx dx_c.
      third: (c, atoms, 3) eV/Å^3: d^3E/dx dx_c dx_c.
      compound: frames of one compound never stand on both sides of a split.
      source: where it came from, for messages.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: tuple[bool, bool, bool] = (True, True, True)
    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    columns: np.ndarray | None = None
    hessian: np.ndarray | None = None
    third: np.ndarray | None = None
    compound: str = ""
    source: str = "a frame"

    @property
    def n_atoms(self) -> int:
        return len(self.numbers)

    @property
    def system(self) -> System:
        """The structure alone, with the masses of the elements."""
        from ase.data import atomic_masses

        numbers = np.asarray(self.numbers, np.int32)
        return System(
            np.asarray(self.positions, float), np.asarray(self.cell, float), numbers, atomic_masses[numbers], self.pbc
        )

    def replace(self, **changes: Any) -> Frame:
        return replace(self, **changes)


def compound_of(path: str | Path) -> str:
    """Name of the compound of a file or folder of phonopy: that of the path without `SUFFIXES`."""
    name = Path(path).name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def told_apart(paths: Sequence[str | Path], names: Sequence[str]) -> list[str]:
    """The names of paths; where several have the same one, it follows as many of their folders as tell them apart.

    What is no path that exists (the name of a potential) has no folders.

    Raises:
      InputError: no folders tell two of them apart.
    """
    folders = [Path(os.path.abspath(path)).parts[1:-1] if os.path.exists(path) else () for path in paths]
    out = list(names)
    for name in dict.fromkeys(names):
        same = [i for i, other in enumerate(names) if other == name]
        depth = 0
        while len({out[i] for i in same}) < len(same):
            depth += 1
            if depth > max(len(folders[i]) for i in same):
                given = " and ".join(f"'{paths[i]}'" for i in same)
                raise InputError(
                    f"{given} would all be called '{out[same[-1]]}': name each only once, or rename one of them"
                )
            for i in same:
                out[i] = "/".join([*folders[i][-depth:], name])
    return out


def check_frames(frames: Sequence[Frame], species: Sequence[int] | None = None) -> None:
    """Refuse frames that no training could mean.

    Args:
      species: atomic numbers that the potential knows; None: any.

    Raises:
      InputError: no frames, an unknown element, values that are not finite, shapes, lengths or forces in other units; the
        message names the file and the frame.
    """
    if not frames:
        raise InputError("the data set holds no frames: give files with labelled structures")
    for frame in frames:
        _check_frame(frame, species)


def _check_frame(frame: Frame, species: Sequence[int] | None) -> None:
    n, where = frame.n_atoms, frame.source
    if not n:
        raise InputError(f"{where} holds 0 atoms; at least 1 is needed")
    if species is not None:
        unknown = sorted(set(np.asarray(frame.numbers).tolist()) - set(species))
        if unknown:
            from ase.data import chemical_symbols

            names = ", ".join(chemical_symbols[z] if 0 <= z < len(chemical_symbols) else f"Z = {z}" for z in unknown)
            raise InputError(f"{where} holds {names}, which the potential does not know: leave the frame out")
    shapes: dict[str, tuple[int, ...]] = {"positions": (n, 3), "cell": (3, 3), "forces": (n, 3), "stress": (3, 3)}
    if frame.columns is not None:
        shapes |= {"hessian": (len(frame.columns), n, 3), "third": (len(frame.columns), n, 3)}
    elif frame.hessian is not None or frame.third is not None:
        raise InputError(f"{where} has second or third derivatives, but no `columns` that say along what")
    for name, shape in shapes.items():
        value = getattr(frame, name)
        if value is None:
            continue
        if np.shape(value) != shape:
            raise InputError(f"{where}: {name} has the shape {np.shape(value)}; {shape} is needed")
        if not np.all(np.isfinite(value)):
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
            raise InputError(
                f"{where}: {name}{list(place)} is {value[place]}; it must be finite: repair or drop the frame"
            )
    if frame.energy is not None and not np.isfinite(frame.energy):
        raise InputError(f"{where}: the energy is {frame.energy} eV; it must be finite: repair or drop the frame")
    if frame.stress is not None and not all(frame.pbc):
        raise InputError(f"{where} has a stress, but the periodicity {frame.pbc}: leave the stress out")
    if frame.columns is not None and (np.min(frame.columns) < 0 or np.max(frame.columns) >= 3 * n):
        raise InputError(f"{where}: columns must lie between 0 and {3 * n - 1}, 3 * atom + axis")
    if frame.forces is not None and np.max(np.abs(frame.forces)) > LARGEST_FORCE:
        raise InputError(
            f"{where}: a force component is {np.max(np.abs(frame.forces)):.3g} eV/Å, beyond {LARGEST_FORCE:.0e}: are the "
            "forces in other units?"
        )


def split_by_compound(frames: Sequence[Frame], fraction: float, seed: int = 0) -> tuple[list[Frame], list[Frame]]:
    """(training, validation) frames; whole compounds go to one side.

    The choice depends on the seed and on the names of the compounds, not on their order.

    Args:
      fraction: of the compounds that validate, 0 to 1; at least one on either side where it is neither.

    Raises:
      InputError: a fraction out of range, or fewer than two compounds to share out.
    """
    if not 0.0 <= fraction <= 1.0:
        raise InputError(f"fraction is {fraction}; it must lie between 0 and 1")
    names = sorted({f.compound for f in frames})
    count = round(fraction * len(names))
    if 0.0 < fraction < 1.0:
        if len(names) < 2:
            raise InputError(
                f"all frames belong to one compound, '{names[0] if names else ''}': a split by compound needs two; name the "
                "compounds, or give validation data of their own"
            )
        count = min(max(count, 1), len(names) - 1)
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    held_out = set(ranked[:count])
    return [f for f in frames if f.compound not in held_out], [f for f in frames if f.compound in held_out]
