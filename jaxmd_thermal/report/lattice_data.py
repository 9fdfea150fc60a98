"""What a lattice calculation left behind, read for the report. Missing pieces are noted, not fatal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.io.hdf5 import read_arrays

LATTICE_METHODS = ("wigner", "rta", "lbte")


@dataclass(frozen=True)
class LatticeData:
    """Arrays behind the figures of lattice dynamics.

    Attributes:
      phonons, notes: content of phonons.hdf5; empty without it.
      modes: {mode file: arrays under the names of a conductivity result, with `settings` and `crystal.volume`}.
      summary: content of phonons.json, or empty.
    """

    phonons: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    modes: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)


def load_lattice(directory: Path, document: Mapping[str, Any], problems: list[str]) -> LatticeData | None:
    """Lattice data of a folder (or of its first sub-folder that has some), or None if this is no lattice calculation."""
    results = document.get("results") or []
    found = sorted([*directory.glob("phonons.hdf5"), *directory.glob("*/phonons.hdf5")])
    if not found and not any(r.get("method") in LATTICE_METHODS for r in results):
        return None
    phonons, notes = _read(found[0], directory, problems) if found else ({}, {})
    modes = {}
    for name in dict.fromkeys(r["mode_file"] for r in results if r.get("mode_file")):
        arrays, facts = _read(directory / name, directory, problems)
        if arrays:
            crystal = SimpleNamespace(volume=facts.get("volume_A3") or document.get("volume_A3"))
            modes[name] = SimpleNamespace(**arrays, settings=facts.get("settings") or {}, crystal=crystal)
    summary = {}
    if (directory / "phonons.json").exists():
        try:
            summary = json.loads((directory / "phonons.json").read_text())
        except (OSError, ValueError) as error:
            problems.append(f"phonons.json could not be read ({error}); its numbers are left out.")
    return LatticeData(phonons, notes, modes, summary)


def _read(path: Path, directory: Path, problems: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return read_arrays(path)
    except InputError as error:
        problems.append(f"{path.relative_to(directory)} is missing or damaged; its figures are left out ({error}).")
        return {}, {}
