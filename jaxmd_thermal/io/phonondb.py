"""The 103 binary solids of the phonon database with their DFT conductivities, read from a folder of the user.

Structures and DFT values are not shipped (GPL-3.0): they are published at https://github.com/MPA2suite/k_SRME in `data/`.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmd_thermal.errors import InputError, nearest

if TYPE_CHECKING:
    from ase import Atoms

STRUCTURES = "phononDB-PBE-structures.extxyz"
DFT = "kappas_phononDB_PBE_noNAC.json.gz"
DFT_NAC = "kappas_phononDB_PBE_NAC.json.gz"
PER_MODEL = "per_compound_per_model_kappa103.csv"
LEADERBOARD = "leaderboard_kappa103.csv"
SOURCE = "https://github.com/MPA2suite/k_SRME (folder data/, GPL-3.0)"
KINDS = {225: "rocksalt", 216: "zincblende", 186: "wurtzite"}
FIRST = {
    "rocksalt": ("NaCl", "LiBr", "KBr", "LiF", "MgO", "KCl", "CaO", "PbTe"),
    "zincblende": ("GaAs", "SiC", "BeO", "ZnTe"),
    "wurtzite": ("BeO", "AlN", "ZnO"),
}
"""Compounds that come first, by structure; the others follow in the order of the file."""


@dataclass(frozen=True, eq=False)
class Compound:
    """One solid of the benchmark.

    Attributes:
      mp_id, name: identifier and formula; kind: rocksalt, zincblende or wurtzite.
      atoms: conventional cell as published, not relaxed.
      supercell, fc3_supercell: (3, 3) matrices of that cell; primitive: (3, 3), phonopy's matrix.
      mesh: 3 q-points along the primitive cell's reciprocal vectors.
      dft, dft_nac: `kappa_TOT_ave`, `mode_kappa_TOT_ave`, `weights`, `temperatures`; without and with the non-analytic term
        (the latter None if the folder lacks it).
    """

    mp_id: str
    name: str
    kind: str
    atoms: Atoms
    supercell: np.ndarray
    fc3_supercell: np.ndarray
    primitive: np.ndarray
    mesh: tuple[int, int, int]
    dft: Mapping[str, Any]
    dft_nac: Mapping[str, Any] | None

    @property
    def label(self) -> str:
        """`BeO wurtzite`."""
        return f"{self.name} {self.kind}"


def read_compounds(directory: str | Path) -> list[Compound]:
    """All compounds of a folder in the order in which they are worked on.

    Raises:
      InputError: the folder, a file or an entry is missing or damaged; says where the data are published.
    """
    from ase.io import read

    folder = Path(directory)
    missing = [name for name in (STRUCTURES, DFT) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"'{folder}' holds no {' and no '.join(missing)}: the data are not shipped with this program. They are published at "
            f"{SOURCE}; --data must hold {STRUCTURES} and {DFT}, and may hold {DFT_NAC} (values with the non-analytic term), "
            f"{PER_MODEL} and {LEADERBOARD} (published values of other models)"
        )
    try:
        frames: Any = read(folder / STRUCTURES, index=":")
    except Exception as error:  # ASE's readers raise whatever their parser stumbles over
        raise InputError(
            f"'{folder / STRUCTURES}' is not readable as extended XYZ ({error}): fetch it again"
        ) from error
    dft = _values(folder / DFT)
    nac = _values(folder / DFT_NAC) if (folder / DFT_NAC).is_file() else {}
    found = [_compound(i, atoms, dft, nac, folder) for i, atoms in enumerate(frames)]
    first = [(kind, name) for kind, names in FIRST.items() for name in names]

    def place(c: Compound) -> int:
        return first.index((c.kind, c.name)) if (c.kind, c.name) in first else len(first)

    return sorted(found, key=place)  # stable: the others keep the file's order


def _compound(index: int, atoms: Any, dft: Mapping[str, Any], nac: Mapping[str, Any], folder: Path) -> Compound:
    info, where = atoms.info, f"'{folder / STRUCTURES}', structure {index + 1}"
    try:
        mp_id, number = str(info["mp_id"]), int(info["symm.no"])
        supercell, third = (np.array(info[k], float) for k in ("fc2_supercell", "fc3_supercell"))
        primitive = np.array(info.get("primitive_matrix", np.eye(3)), float)  # none: the cell is primitive
        mesh, name = np.array(info["q_mesh"], int), str(info["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where}: the entry {error} is missing or garbled; mp_id, name, symm.no, q_mesh, fc2_supercell and "
            "fc3_supercell are needed in its comment line"
        ) from error
    if mp_id not in dft:
        raise InputError(
            f"{where} ({mp_id}, {name}) has no entry in '{folder / DFT}': the two files do not belong together"
        )
    bare = atoms.copy()
    bare.info = {}
    return Compound(
        mp_id, name, KINDS.get(number, f"space group {number}"), bare, supercell, third, primitive,
        (int(mesh[0]), int(mesh[1]), int(mesh[2])), dft[mp_id], nac.get(mp_id),
    )  # fmt: skip


def _values(path: Path) -> dict[str, dict[str, Any]]:
    """{mp_id: entry} of a table in pandas' JSON layout (column, row)."""
    try:
        columns = json.loads(gzip.decompress(path.read_bytes()))
        rows = list(columns["mp_id"])
        needed = ("kappa_TOT_ave", "mode_kappa_TOT_ave", "weights", "temperatures", "qpoints")
        return {columns["mp_id"][r]: {k: np.array(columns[k][r], float) for k in needed} for r in rows}
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{path}' is not readable ({type(error).__name__}: {error}): compressed JSON with mp_id, qpoints, weights, "
            f"temperatures, kappa_TOT_ave and mode_kappa_TOT_ave is expected; fetch it again from {SOURCE}"
        ) from error


def chosen(compounds: Sequence[Compound], names: Sequence[str]) -> list[Compound]:
    """Those that are named: by formula (all structures of it), by `BeO-wurtzite`, or by mp_id. None named: all.

    Raises:
      InputError: a name that fits none.
    """
    if not names:
        return list(compounds)
    keys = {c: {c.mp_id, c.name, f"{c.name}-{c.kind}"} for c in compounds}
    for name in names:
        if not any(name in k for k in keys.values()):
            known = sorted({c.name for c in compounds} | {c.mp_id for c in compounds})
            raise InputError(
                f"--compounds: there is no '{name}'{nearest(name, known)} Give formulas, formulas with the structure "
                "(BeO-wurtzite) or identifiers (mp-22862)"
            )
    return [c for c in compounds if keys[c] & set(names)]


def published(directory: str | Path, model: str) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Published values: {mp_id: {"kappa", "srme", "median_srme", "models"}} (the first two where this model is listed), and
    the model's means over all compounds ({"srme", "sre", "srd"}, empty if not listed). Empty without the files."""
    folder = Path(directory)
    each: dict[str, dict[str, float]] = {}
    for row in _rows(folder / PER_MODEL):
        mine = each.setdefault(row["mp_id"], {})
        mine.setdefault("all", []).append(float(row["srme"]))  # type: ignore[attr-defined, arg-type]
        if row["model_key"] == model:
            mine |= {"kappa": float(row["kappa_ml"] or "nan"), "srme": float(row["srme"])}
    for mine in each.values():
        values: Any = mine.pop("all")
        mine |= {"median_srme": float(np.median(values)), "models": len(values)}
    means = {}
    for row in _rows(folder / LEADERBOARD):
        if row["model_key"] == model:
            means = {k: float(row[f"kappa_{k.upper()}"]) for k in ("srme", "sre", "srd")}
    return each, means


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' is not readable as a CSV table ({error}): remove it or fetch it again") from error
