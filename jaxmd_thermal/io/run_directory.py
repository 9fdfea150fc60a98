"""The folder of a run: settings, samples in parts, checkpoints, and run.h5 at the end.

    settings.json        what was asked for, and fingerprints of structure and potential
    structure.extxyz     the structure as given
    parts/               samples of each chunk, written atomically; merged into run.h5 when the run ends
    checkpoints/         the last two states (orbax), each with the plan of its neighbour list
    run.h5, final.extxyz, trajectory.extxyz, results.json, report.html

Every file appears under its name only when it is complete, so a kill at any moment leaves a folder that can be resumed.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal.errors import CheckpointError, OutputError
from jaxmd_thermal.neighbors import NeighborPlan
from jaxmd_thermal.system import System

KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Saved:
    """A checkpoint: where the run was, and a loader that fills a template of the same structure."""

    stage: int
    frames: int
    plan: NeighborPlan
    load: Callable[[Any], Any]


class RunDirectory:
    """Recorder of `dynamics.run.execute`."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.settings = settings
        self._count = 0

    @classmethod
    def open(cls, out, settings: dict[str, Any], system: System, potential, velocities=None) -> RunDirectory:
        """The folder `out`, new or left by an earlier process with the same settings.

        Raises:
          CheckpointError: the folder holds a run with other settings; names what differs.
          OutputError: the folder cannot be written.
        """
        path = Path(out)
        document = {
            **_plain(settings),
            "structure": fingerprint((system.positions, system.cell, system.numbers, system.masses, system.pbc)),
            "potential": fingerprint(potential),
            "velocities": None if velocities is None else fingerprint(velocities),
        }
        file = path / "settings.json"
        run = cls(path, document)
        if file.exists():
            check_same(stored_settings(file), document, f"{path} holds a run with other settings")
        else:
            with writing(path):
                (path / "parts").mkdir(parents=True, exist_ok=True)
                (path / "checkpoints").mkdir(exist_ok=True)
            run.save_structure(
                system, velocities if velocities is None or np.ndim(velocities) == 2 else None, None, "structure.extxyz"
            )
            write_text(file, json.dumps(document, indent=1))
        return run

    # -- samples ---------------------------------------------------------------------------------------------

    def append(self, stage: str, start: int, rows: dict[str, np.ndarray]) -> None:
        """Store the samples of one chunk; `start` is the number of frames before it."""
        file = self.path / "parts" / f"{stage}-{start:012d}.npz"
        with writing(file):
            temporary = file.with_suffix(".tmp")
            with temporary.open("wb") as handle:
                np.savez(handle, **rows)  # type: ignore[arg-type]
            os.replace(temporary, file)

    def samples(self, stage: str) -> dict[str, np.ndarray]:
        """All samples of a stage, from its parts, or from run.h5 once they are merged."""
        files = self._parts(stage)
        if (self.path / "run.h5").exists() or not files:  # run.h5 is complete; parts may be half deleted then
            return self._merged(stage)
        parts, frames = [], 0
        for start, file in files:
            if start != frames:
                raise CheckpointError(
                    f"samples of stage '{stage}' are missing in {file.parent}: frames {frames} to {start}; "
                    "choose another --out and run again"
                )
            try:
                with np.load(file, allow_pickle=False) as archive:
                    parts.append({name: archive[name] for name in archive.files})
            except (OSError, ValueError, KeyError) as error:
                raise CheckpointError(
                    f"{file} cannot be read ({error}): samples of stage '{stage}' are lost; run again with another --out"
                ) from error
            frames += len(next(iter(parts[-1].values())))
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def _parts(self, stage: str) -> list[tuple[int, Path]]:
        """(first frame, file) of the parts of a stage, in order."""
        found = (self.path / "parts").glob(f"{stage}-*.npz")
        return sorted((int(file.stem.rsplit("-", 1)[1]), file) for file in found)

    def _merged(self, stage: str) -> dict[str, np.ndarray]:
        import h5py

        file = self.path / "run.h5"
        try:
            with h5py.File(file) as h5:
                group: Any = h5[f"stages/{stage}"]
                return {name: group[name][()] for name in group}
        except (OSError, KeyError) as error:
            raise CheckpointError(
                f"{file} holds no samples of stage '{stage}' ({error}): run again with another --out"
            ) from error

    # -- checkpoints -----------------------------------------------------------------------------------------

    def checkpoint(self, carry, *, stage: int, frames: int, plan: NeighborPlan) -> None:
        """Store the state after `frames` frames of stage number `stage`."""
        from jaxmd_thermal.io.checkpoint import save_tree

        folder = self.path / "checkpoints"
        name = f"{stage:03d}-{frames:012d}"
        with writing(folder):
            temporary = folder / f".{name}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            digest = save_tree(temporary / "state", carry)
            meta = {"stage": stage, "frames": frames, "plan": dataclasses.asdict(plan), "digest": digest}
            (temporary / "meta.json").write_text(json.dumps(meta))
            final = folder / name
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            for old in self._checkpoints()[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old, ignore_errors=True)

    def _checkpoints(self) -> list[Path]:
        folder = self.path / "checkpoints"
        return (
            sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")) if folder.exists() else []
        )

    def restore(self) -> Saved | None:
        """The newest checkpoint that is intact, or None if there is none; samples beyond it are dropped.

        Raises:
          CheckpointError: there are checkpoints, but none can be read.
        """
        from jaxmd_thermal.io.checkpoint import load_tree, verify_tree

        failures = []
        for folder in reversed(self._checkpoints()):
            try:
                meta = json.loads((folder / "meta.json").read_text())
                verify_tree(folder / "state", meta["digest"])
                raw = meta["plan"]
                plan = NeighborPlan(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()})
            except (OSError, ValueError, KeyError, TypeError) as error:
                failures.append(f"{folder}: {error}")
                continue
            if failures:
                import logging

                logging.getLogger(__name__).warning(
                    "checkpoint damaged (%s); going on from the one before, %s", failures[-1], folder
                )
            self._drop_samples_after(meta["stage"], meta["frames"])
            return Saved(meta["stage"], meta["frames"], plan, partial(load_tree, folder / "state"))
        if failures:
            raise CheckpointError(
                f"no checkpoint in {self.path / 'checkpoints'} can be read ({'; '.join(failures)}): "
                "delete the folders 'checkpoints' and 'parts' (its samples are intact) to start again, or choose another --out"
            )
        self._drop_samples_after(0, 0)
        return None

    def _drop_samples_after(self, stage: int, frames: int) -> None:
        """Parts that were written after a checkpoint, of its stage and of later ones, will be written again."""
        for number, name in enumerate(self.settings["stages"]):
            for start, file in self._parts(name):
                if number > stage or (number == stage and start >= frames):
                    file.unlink()

    # -- structures and the end ------------------------------------------------------------------------------

    def save_structure(self, system: System, velocities, order, name: str) -> Path:
        """Write a structure as extended XYZ; `order` undoes the driver's sorting."""
        from ase.io import write

        atoms = system.to_atoms(velocities)
        if order is not None:
            atoms = atoms[order]
        file = self.path / name
        with writing(file):
            temporary = file.with_name("." + file.name)
            write(temporary, atoms, format="extxyz")
            os.replace(temporary, file)
        return file

    def finish(self, result) -> None:
        """Merge the samples into run.h5 and write the final structure; the parts are deleted afterwards."""
        from jaxmd_thermal.io.hdf5 import hdf5_file

        parts = self.path / "parts"
        if parts.exists() and any(parts.iterdir()):
            with hdf5_file(self.path / "run.h5") as h5:
                _write_h5(h5, result, self.settings)
            for stale in parts.iterdir():
                stale.unlink()
        for replica in range(len(result.positions)):
            suffix = "" if len(result.positions) == 1 else f"_{replica}"
            self.save_structure(
                result.system.replace(positions=result.positions[replica], cell=result.cell[replica]),
                result.velocities[replica],
                None,
                f"final{suffix}.extxyz",
            )
        if "positions" in result.samples:
            self._export_trajectory(result)

    def _export_trajectory(self, result) -> None:
        from ase.io import write

        samples = result.samples
        for replica in range(samples["positions"].shape[1]):
            suffix = "" if samples["positions"].shape[1] == 1 else f"_{replica}"
            file = self.path / f"trajectory{suffix}.extxyz"
            frames = []
            for i in range(len(samples["time"])):
                moved = result.system.replace(
                    positions=samples["positions"][i, replica], cell=samples["cell"][i, replica]
                )
                atoms = moved.to_atoms(samples["velocities"][i, replica])
                atoms.info["time_fs"] = float(samples["time"][i])
                frames.append(atoms)
            with writing(file):
                temporary = file.with_name("." + file.name)
                write(temporary, frames, format="extxyz")
                os.replace(temporary, file)


def _write_h5(h5, result, settings) -> None:
    """Layout that the report and `read_flux` know: the last stage at the root, every stage under `stages/`."""
    for stage in result.stages:
        group = h5.create_group(f"stages/{stage.name}")
        for name, value in stage.samples.items():
            group.create_dataset(name, data=value)
    last = result.stages[-1]
    root = h5["stages"][last.name]
    for name in ("time", "temperature", "potential_energy", "kinetic_energy", "conserved_energy", "volume"):
        h5[name] = root[name]
    if "heat_flux_potential" in last.samples:
        flux = h5.create_group("flux")
        flux["potential"] = root["heat_flux_potential"]
        flux["convective"] = root["heat_flux_convective"]
        flux["time"] = root["time"]
    h5.attrs["n_atoms"] = result.system.n_atoms
    if all(result.system.pbc):  # the cell of a slab, wire or cluster has a volume that means nothing
        h5.attrs["volume_A3"] = float(np.mean(last.samples["volume"]))
    h5.attrs["settings"] = json.dumps(settings)
    h5.attrs["versions"] = json.dumps(result.versions)
    for key in ("timestep_fs", "temperature_K", "volume_A3"):  # a conductivity run refers to the volume of its settings
        if settings.get(key) is not None:
            h5.attrs[key] = settings[key]


class writing:
    """Context that turns a failed write into an OutputError with a remedy."""

    def __init__(self, target: Path):
        self.target = target

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "free some space" if full else "check that the folder exists and may be written"
            raise OutputError(
                f"cannot write {self.target}: {error.strerror or error}. {remedy}, then run the same command again: "
                "it goes on from the last checkpoint"
            ) from error
        return False


def write_text(file: Path, text: str) -> None:
    """Write a small file so that it is there as a whole or not at all."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix="." + file.name)
        try:
            with os.fdopen(handle, "w") as out:
                out.write(text)
            os.chmod(temporary, 0o644)
            os.replace(temporary, file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def fingerprint(tree) -> str:
    """Short digest of the arrays and static parts of a pytree."""
    import jax

    leaves, structure = jax.tree.flatten(tree)
    digest = hashlib.sha256(repr(structure).encode())
    for leaf in leaves:
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _plain(value):
    """Settings as JSON: arrays become lists, objects their representation."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return repr(value)


def stored_settings(file: Path) -> dict[str, Any]:
    """The settings that a folder was made with.

    Raises:
      CheckpointError: the file is damaged.
    """
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}): the folder is damaged; choose another --out, or delete it"
        ) from error


def check_same(stored: Mapping[str, Any], given: Mapping[str, Any], what: str) -> None:
    """Settings of a folder and of this run, both as JSON has them.

    Raises:
      CheckpointError: they are not equal; names what differs.
    """
    differing = [k for k in sorted(stored.keys() | given.keys()) if stored.get(k) != given.get(k)]
    if differing:
        changes = "; ".join(f"{k}: {_short(stored.get(k))} there, {_short(given.get(k))} now" for k in differing)
        raise CheckpointError(
            f"{what} ({changes}): repeat it with the same settings to resume it, choose another --out, or delete the folder"
        )


def _short(value, limit: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
