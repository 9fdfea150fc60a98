"""Trees of arrays in HDF5 files, written as a whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jaxmd_thermal.errors import InputError, OutputError


def write_tree(group: Any, tree: Mapping[str, Any]) -> None:
    """Arrays and numbers of a nested mapping into a group; other values are left out."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            write_tree(group.create_group(str(key)), value)
        elif value is not None:
            array = np.asarray(value)
            if array.dtype.kind in "fiubc":
                group[str(key)] = array


def read_tree(group: Any) -> dict[str, Any]:
    """A group as a nested dictionary of arrays."""
    return {k: read_tree(v) if isinstance(v, h5py.Group) else np.asarray(v) for k, v in group.items()}


def write_arrays(path: str | Path, tree: Mapping[str, Any], notes: Mapping[str, Any] | None = None) -> Path:
    """A file of arrays, with `notes` (JSON) as an attribute. Atomic: a reader sees the old file or the new one.

    Raises:
      OutputError: the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(partial, "w") as file:
            write_tree(file, tree)
            file.attrs["notes"] = json.dumps(notes or {})
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path} could not be written ({error}): free some space or choose another folder") from error
    return path


def read_arrays(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays, notes) of a file that `write_arrays` wrote.

    Raises:
      InputError: not a readable HDF5 file.
    """
    try:
        with h5py.File(path, "r") as file:
            return read_tree(file), json.loads(str(file.attrs.get("notes", "{}")))
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{path}' is not a readable HDF5 file ({error}): run the command again to rebuild it"
        ) from error
