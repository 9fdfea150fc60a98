"""Pytrees on disk through orbax; the one file that knows its interface."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmd_thermal.errors import CheckpointError


def _key_data(leaf):
    """Typed PRNG keys are stored as their raw words."""
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


def _leaves(tree) -> dict[str, np.ndarray]:
    return {
        f"{i:04d}": np.asarray(x) for i, x in enumerate(jax.device_get([_key_data(x) for x in jax.tree.leaves(tree)]))
    }


def _orbax() -> Any:
    logging.getLogger("absl").setLevel(logging.ERROR)
    from orbax.checkpoint import v1

    return v1


def save_tree(path: Path, tree) -> str:
    """Store the leaves of a pytree under `path`; returns a digest of the files."""
    _orbax().save_pytree(path.absolute(), _leaves(tree)) if not hasattr(_orbax(), "save") else _orbax().save(
        path.absolute(), _leaves(tree)
    )
    return digest_of(path)


def verify_tree(path: Path, digest: str) -> None:
    """Raises ValueError if the files are not those that were stored."""
    if not path.is_dir() or digest_of(path) != digest:
        raise ValueError("its files are missing or changed (checksum)")


def load_tree(path: Path, template):
    """The pytree stored under `path`, in the structure of `template`.

    Raises:
      CheckpointError: it does not fit the template.
    """
    wanted, structure = jax.tree.flatten(template)
    expected = {f"{i:04d}": np.asarray(jax.device_get(_key_data(x))) for i, x in enumerate(wanted)}
    v1 = _orbax()
    try:
        load = v1.load if hasattr(v1, "load") else v1.load_pytree
        stored = load(path.absolute(), expected)
    except Exception as error:  # orbax raises many kinds; all mean the same to the user
        raise CheckpointError(
            f"the checkpoint {path} cannot be loaded ({type(error).__name__}: {error}): "
            "it is damaged or from another version; choose another --out"
        ) from error
    leaves = []
    for name, like in zip(sorted(expected), wanted, strict=True):
        value = np.asarray(stored[name])
        if value.shape != expected[name].shape or value.dtype != expected[name].dtype:
            raise CheckpointError(
                f"the checkpoint {path} holds an array of {value.dtype}{value.shape} where {expected[name].dtype}"
                f"{expected[name].shape} belongs: it is from another version or structure; choose another --out"
            )
        raw = jax.numpy.asarray(value)
        is_key = isinstance(like, jax.Array) and jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key)
        leaves.append(jax.random.wrap_key_data(raw) if is_key else raw)
    return jax.tree.unflatten(structure, leaves)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Store arrays of at least one number by name, in a form that tells nothing of this machine; returns a digest."""
    v1 = _orbax()
    (v1.save if hasattr(v1, "save") else v1.save_pytree)(path.absolute(), arrays)
    note = path / "commit_success.txt"
    if note.exists():  # only its presence counts; its text names the folder where it was written
        note.write_text("complete\n")
    return digest_of(path)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `save_arrays` stored, with its shapes and types.

    Without a template on purpose: with one, orbax converts silently to the types that are asked for.

    Raises:
      CheckpointError: the files are damaged.
    """
    v1 = _orbax()
    try:
        load = v1.load if hasattr(v1, "load") else v1.load_pytree
        return {name: np.asarray(value) for name, value in load(path.absolute()).items()}
    except Exception as error:  # orbax raises many kinds; all mean the same to the user
        raise CheckpointError(f"the arrays in {path} cannot be loaded ({type(error).__name__}: {error})") from error


def digest_of(path: Path) -> str:
    """Digest of all files below a folder."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(str(file.relative_to(path)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
