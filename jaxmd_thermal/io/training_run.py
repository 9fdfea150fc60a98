"""The folder of a training: settings, log, checkpoints, and the potential at the end.

    settings.json    what was asked for, with fingerprints of potential and data
    log.jsonl        one JSON object a step (also of co-training), and one for each validation
    checkpoints/     the last two states (orbax)
    potential/       the result (`load_potential` reads it)
    tensorboard/     events, if they are asked for

Every checkpoint appears under its name only when it is complete. On resume the log is cut back to the checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from jaxmd_thermal._backend import writable_directory
from jaxmd_thermal.errors import CheckpointError, InputError
from jaxmd_thermal.io.run_directory import KEPT_CHECKPOINTS, check_same, stored_settings, write_text, writing


class TrainingRun:
    """Log and checkpoints below one folder.

    Args:
      path: new, or left by an earlier process with the same settings.
      settings: what decides the numbers; JSON values.
      tensorboard: write events as well.

    Raises:
      CheckpointError: the folder holds a training with other settings; names what differs.
      InputError: `tensorboard` without the package.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], tensorboard: bool = False):
        self.path = writable_directory(path)
        document = json.loads(json.dumps(settings))
        file = self.path / "settings.json"
        if file.exists():
            check_same(stored_settings(file), document, f"{self.path} holds a training with other settings")
        else:
            write_text(file, json.dumps(document, indent=1))
        self._events = self._writer() if tensorboard else None

    def _writer(self) -> Any:
        try:
            from tensorboardX import SummaryWriter  # type: ignore[import-not-found]
        except ImportError as error:
            raise InputError(
                "events for TensorBoard need tensorboardX: pip install 'jaxmd-thermal[tensorboard]'"
            ) from error
        return SummaryWriter(str(self.path / "tensorboard"))

    def log(self, record: dict[str, Any]) -> None:
        """Append one line; numbers are also events at `record["step"]`."""
        file = self.path / "log.jsonl"
        with writing(file), file.open("a") as out:
            out.write(json.dumps(record) + "\n")
        if self._events is not None:
            kind = record.get("kind", "train")
            for name, value in record.items():
                if isinstance(value, float):
                    self._events.add_scalar(f"{kind}/{name}", value, record["step"])

    def records(self) -> list[dict[str, Any]]:
        """The complete lines of the log."""
        file = self.path / "log.jsonl"
        if not file.exists():
            return []
        out = []
        for line in file.read_text().splitlines():
            try:
                out.append(json.loads(line))
            except ValueError:  # the line that a kill cut off
                break
        return out

    def save(self, state: Any, meta: dict[str, Any]) -> Path:
        """Store a state; `meta["step"]` names it."""
        from jaxmd_thermal.io.checkpoint import save_tree

        folder = self.path / "checkpoints"
        name = f"{meta['step']:010d}"
        with writing(folder):
            temporary = folder / f".{name}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            digest = save_tree(temporary / "state", state)
            (temporary / "meta.json").write_text(json.dumps({**meta, "digest": digest}))
            shutil.rmtree(folder / name, ignore_errors=True)
            os.replace(temporary, folder / name)
            for old in self._saved()[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old, ignore_errors=True)
        return folder / name

    def _saved(self) -> list[Path]:
        folder = self.path / "checkpoints"
        return sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.exists() else []

    def restore(self, template: Any) -> tuple[Any, dict[str, Any]] | None:
        """State and meta of the newest checkpoint that is intact; None if there is none. The log is cut back to it.

        Raises:
          CheckpointError: there are checkpoints, but none can be read.
        """
        from jaxmd_thermal.io.checkpoint import load_tree, verify_tree

        failures = []
        for folder in reversed(self._saved()):
            try:
                meta = json.loads((folder / "meta.json").read_text())
                verify_tree(folder / "state", meta["digest"])
                state = load_tree(folder / "state", template)
            except (OSError, ValueError, KeyError) as error:
                failures.append(f"{folder}: {error}")
                continue
            self._cut_log(meta["step"])
            return state, meta
        if failures:
            raise CheckpointError(
                f"no checkpoint in {self.path / 'checkpoints'} can be read ({'; '.join(failures)}): delete that folder to start "
                "again, or choose another one"
            )
        self._cut_log(0)
        return None

    def _cut_log(self, step: int) -> None:
        kept = [r for r in self.records() if r["step"] <= step]
        if (self.path / "log.jsonl").exists():
            write_text(self.path / "log.jsonl", "".join(json.dumps(r) + "\n" for r in kept))

    def finish(self, potential: Any) -> Path:
        """Write the potential."""
        from jaxmd_thermal.io.exported import save_potential

        if self._events is not None:
            self._events.close()
        folder = self.path / "potential"
        return save_potential(potential, folder, overwrite=folder.exists())
