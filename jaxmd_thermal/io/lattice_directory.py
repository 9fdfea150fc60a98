"""The folder of a lattice calculation: its finished stages, so that the same command goes on where it stopped.

    stages.json          what the relaxed cell and the force constants were made of, and how long that took
    relaxed.extxyz       the relaxed cell
    force_constants/     files of phonopy and phono3py
    phonons.hdf5         bands, density of states, thermodynamics
    modes-METHOD.hdf5    q-points, weights, frequencies, linewidths and mode conductivities
    phono3py/METHOD/     the same as phono3py's kappa-m*.hdf5

A stage counts as finished when stages.json names it, which happens after its files are complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmd_thermal.errors import CheckpointError, OutputError
from jaxmd_thermal.io.ase import atoms_from, write_structure
from jaxmd_thermal.io.run_directory import check_same, write_text

if TYPE_CHECKING:
    from ase import Atoms

    from jaxmd_thermal.lattice.force_constants import ForceConstants

STAGES = "stages.json"
FORCE_CONSTANTS = "force_constants"


class LatticeDirectory:
    """Finished stages of a folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def finished(self) -> dict[str, Any]:
        """{stage: {"key", "seconds", ...}}.

        Raises:
          CheckpointError: stages.json is damaged.
        """
        try:
            found = json.loads((self.path / STAGES).read_text())
            return found if isinstance(found, dict) else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"'{self.path / STAGES}' is damaged ({error}): delete it to compute again, or choose another --out"
            ) from error

    @property
    def times(self) -> dict[str, dict[str, float]]:
        """{stage: seconds, CPU seconds, compile seconds}, those of earlier processes included."""
        kept = ("seconds", "cpu_seconds", "compile_seconds")
        return {name: {k: entry[k] for k in kept if k in entry} for name, entry in self.finished.items()}

    def relaxed(self, key: Mapping[str, Any]) -> Atoms | None:
        """The relaxed cell, to the last bit, if it was made from the same `key`."""
        entry = self._entry("relaxation", key)
        if entry is None:
            return None
        kept = entry["atoms"]
        atoms = atoms_from(self.path / "relaxed.extxyz")
        atoms.set_cell(np.array(kept["cell"]), scale_atoms=False)
        atoms.positions = np.array(kept["positions"])
        atoms.set_masses(np.array(kept["masses"]))
        atoms.info = {"relaxation": kept["relaxation"]}
        return atoms

    def save_relaxed(self, key: Mapping[str, Any], atoms: Atoms, took: Mapping[str, float]) -> None:
        write_structure(self.path / "relaxed.extxyz", atoms)
        exact = {
            "cell": np.asarray(atoms.cell).tolist(), "positions": atoms.positions.tolist(),
            "masses": atoms.get_masses().tolist(), "relaxation": atoms.info.get("relaxation"),
        }  # fmt: skip
        self._finish("relaxation", key, {**took, "atoms": exact})

    def force_constants(self, key: Mapping[str, Any]) -> ForceConstants | None:
        """The force constants, if they were made from the same `key`."""
        from jaxmd_thermal.io.phono3py import read_force_constants

        if self._entry("force_constants", key) is None:
            return None
        return read_force_constants(self.path / FORCE_CONSTANTS)

    def save_force_constants(self, key: Mapping[str, Any], found: ForceConstants, took: Mapping[str, float]) -> None:
        temporary, final = self.path / f".{FORCE_CONSTANTS}.partial", self.path / FORCE_CONSTANTS
        shutil.rmtree(temporary, ignore_errors=True)
        found.save(temporary)
        try:
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
        except OSError as error:
            raise OutputError(f"cannot write '{final}': {error.strerror or error}; choose another --out") from error
        self._finish("force_constants", key, took)

    def entries(self, method: str, key: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """Entries of results.json of one method."""
        entry = self._entry(method, key)
        return None if entry is None else entry["entries"]

    def save_entries(self, method: str, key: Mapping[str, Any], found: list, took: Mapping[str, float]) -> None:
        self._finish(method, key, {**took, "entries": found})

    def _entry(self, stage: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """What is known of a finished stage, None if there is none.

        Raises:
          CheckpointError: it was made from something else; names what differs.
        """
        entry = self.finished.get(stage)
        if entry is None:
            return None
        stage = stage.replace("_", " ")
        what = f"'{self.path}' holds a {stage} stage of another calculation"
        check_same(entry["key"], json.loads(json.dumps(dict(key))), what)
        return entry

    def _finish(self, stage: str, key: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        document = self.finished | {stage: {"key": dict(key), **facts}}
        write_text(self.path / STAGES, json.dumps(document, indent=1))
