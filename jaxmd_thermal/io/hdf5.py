"""Trees of arrays in HDF5 files, written as a whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
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


@contextmanager
def hdf5_file(path: str | Path, mode: str = "w") -> Iterator[h5py.File]:
    """An HDF5 file to fill: new ("w"), or what there is with more in it ("a"). Atomic: a reader sees the old or the new one.

    It is put together in memory, and finished bytes are written: on a full disk the HDF5 library itself fails only while
    it closes the file, with errors of no fixed type, or takes the process with it.

    Raises:
      OutputError: the file cannot be written; the one before is untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    more = mode == "a" and path.exists()
    try:
        image = BytesIO(path.read_bytes() if more else b"")
        with h5py.File(image, "r+" if more else "w") as file:
            yield file
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as out:
            out.write(image.getbuffer())
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, path)
    except OSError as error:
        if path.parent.is_dir():
            partial.unlink(missing_ok=True)
        raise OutputError(
            f"{path} could not be written ({error}): free some space or choose another folder, then run the command again"
        ) from error


def write_arrays(path: str | Path, tree: Mapping[str, Any], notes: Mapping[str, Any] | None = None) -> Path:
    """A file of arrays, with `notes` (JSON) as an attribute.

    Raises:
      OutputError: the file cannot be written.
    """
    with hdf5_file(path) as file:
        write_tree(file, tree)
        file.attrs["notes"] = json.dumps(notes or {})
    return Path(path)


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
