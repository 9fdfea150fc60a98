"""Potentials in our own format: a folder with the parameters (orbax) and a JSON file that says what they belong to.

The JSON names the class and repeats its fields; arrays are entries `{"array": "0003"}` that point into the checkpoint.
Only classes of `jaxmd_thermal.potentials` are ever built from it, so a file from elsewhere can run no code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal.errors import CheckpointError, InputError, OutputError, nearest

DOCUMENT = "potential.json"
ARRAYS = "parameters"
FORMAT = "jaxmd_thermal potential"
VERSION = 1
UNITS = {"energy": "eV", "length": "Å", "mass": "amu", "time": "fs"}


def save_potential(potential: Any, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a potential to a folder, from which `load_potential(folder)` returns it with the same bits.

    The folder holds architecture, units, versions and parameters, and nothing of this machine. It appears only when it is
    complete.

    Args:
      potential: of a class in `jaxmd_thermal.potentials`, or a sum of such.
      folder: a new folder; its parents are created.
      overwrite: replace an earlier export there.

    Returns: the folder.

    Raises:
      InputError: a class that is not known here, a field that is no parameter, number or text, or a folder that exists
        (and is no export, or `overwrite` is not set).
      OutputError: the folder cannot be written.
    """
    from jaxmd_thermal.io.checkpoint import save_arrays

    folder = Path(folder).expanduser()
    if folder.exists() and not (overwrite and (folder / DOCUMENT).is_file()):
        what = "exists and holds no exported potential" if overwrite else "exists already"
        raise InputError(
            f"'{folder}' {what}: choose another folder, or save_potential(..., overwrite=True) to replace an earlier export"
        )
    arrays: dict[str, np.ndarray] = {}
    leaves: dict[str, dict[str, Any]] = {}
    spec = _encode(potential, "", False, arrays, leaves)
    part, old = (folder.with_name(f"{folder.name}.{what}{os.getpid()}") for what in ("part", "old"))
    try:
        part.mkdir(parents=True)
        document = {
            "format": FORMAT,
            "version": VERSION,
            "units": UNITS,
            "written_with": _versions(),
            "potential": spec,
            "arrays": leaves,
            "digest": save_arrays(part / ARRAYS, arrays) if arrays else None,
            "description": _digest(spec, leaves),
        }
        (part / DOCUMENT).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    except OSError as error:
        raise OutputError(f"cannot write '{folder}': {error.strerror or error}; choose another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def read_potential(folder: str | Path) -> Any:
    """The potential of a folder that `save_potential` wrote; its arrays are NumPy, whatever JAX's precision is.

    Raises:
      InputError: the folder is damaged or incomplete, or parameters and architecture do not belong together; says what
        differs.
    """
    from jaxmd_thermal.io.checkpoint import load_arrays, verify_tree

    folder = Path(folder).expanduser()
    document = _document(folder)
    arrays: dict[str, np.ndarray] = {}
    if document["arrays"]:
        try:
            verify_tree(folder / ARRAYS, document["digest"])
            arrays = load_arrays(folder / ARRAYS)
        except (ValueError, OSError, CheckpointError) as error:
            raise InputError(f"the parameters in '{folder}' are damaged ({error}): export or copy it again") from error
    for key, leaf in document["arrays"].items():
        found = arrays.get(key)
        if found is None or [str(found.dtype), list(found.shape)] != [leaf["dtype"], leaf["shape"]]:
            raise InputError(
                f"'{folder}' holds weights of another architecture: '{leaf['name']}' should be {leaf['dtype']} of shape "
                f"{tuple(leaf['shape'])}, found {'nothing' if found is None else f'{found.dtype} of shape {found.shape}'}"
            )
    try:
        potential = _decode(document["potential"], folder, arrays, None)
        _check_architecture(potential, folder)
    except InputError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError) as error:
        raise InputError(
            f"'{folder}' describes no potential ({type(error).__name__}: {error}): it is damaged or was changed; export it "
            "again"
        ) from error
    known = document.get("description")  # exports of before this entry lack it
    if known is not None and known != _digest(document["potential"], document["arrays"]):
        raise InputError(
            f"'{folder / DOCUMENT}' was changed after it was written, or is damaged: export or copy it again; another "
            "architecture needs other weights"
        )
    return potential


def _digest(spec: Any, leaves: Any) -> str:
    """Of what the JSON says of the potential: numbers of the architecture make other energies without a warning."""
    return hashlib.sha256(json.dumps([spec, leaves], sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    import jax

    from jaxmd_thermal import __version__

    return {"jaxmd_thermal": __version__, "jax": jax.__version__, "numpy": np.__version__}


def _document(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / DOCUMENT).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read '{folder / DOCUMENT}' ({error}): give a folder of save_potential") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"'{folder / DOCUMENT}' is not of the format '{FORMAT}': give a folder of save_potential")
    missing = [key for key in ("version", "units", "potential", "arrays", "digest") if key not in document]
    if missing:
        raise InputError(f"'{folder / DOCUMENT}' lacks {', '.join(missing)}: it is damaged; export it again")
    if document["version"] != VERSION:
        raise InputError(
            f"'{folder}' has version {document['version']} of the format, this program reads {VERSION}: install the "
            f"version of jaxmd_thermal that wrote it ({document.get('written_with', {}).get('jaxmd_thermal', 'unknown')})"
        )
    if document["units"] != UNITS:
        raise InputError(f"'{folder}' is in the units {document['units']}; needed are {UNITS}")
    return document


# What the JSON holds: numbers, text and null as they are; everything else is an object with one key for its kind.


def _encode(value: Any, name: str, fixed: bool, arrays: dict[str, np.ndarray], leaves: dict[str, Any]) -> Any:
    """JSON of a value; arrays go to `arrays`. `fixed`: part of the architecture, where no arrays belong."""

    def inner(part: Any, key: Any, fixed: bool = fixed) -> Any:
        return _encode(part, f"{name}/{key}" if name else str(key), fixed, arrays, leaves)

    if isinstance(value, np.generic) and fixed:
        value = value.item()
    if value is None or (isinstance(value, bool | str | int | float) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, tuple | list):
        return {type(value).__name__: [inner(part, i) for i, part in enumerate(value)]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: inner(part, key) for key, part in value.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if _is_module(type(value)):
            return {"module": type(value).__name__, "fields": {f: inner(getattr(value, f), f, True)
                                                               for f in _module_fields(type(value))}}  # fmt: skip
        if _known_potential(type(value).__name__) is type(value):
            fields = dataclasses.fields(value)
            return {"potential": type(value).__name__,
                    "fields": {f.name: inner(getattr(value, f.name), f.name, bool(f.metadata.get("static")))
                               for f in fields}}  # fmt: skip
    if not fixed and hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value)
        if array.dtype.kind in "fiub" and not array.size:  # orbax takes none; its shape says it all
            return {"empty": [str(array.dtype), list(array.shape)]}
        if array.dtype.kind in "fiub":
            key = f"{len(arrays):04d}"
            arrays[key] = array
            leaves[key] = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
            return {"array": key}
    raise InputError(
        f"{name or 'this object'} is {type(value).__name__}, which cannot be exported: potentials of "
        "jaxmd_thermal.potentials can, with numbers, text and arrays of real numbers as their fields"
    )


def _decode(spec: Any, folder: Path, arrays: dict[str, np.ndarray], owner: type | None) -> Any:
    """The value of a piece of JSON; `owner` is the potential class in whose file network classes are looked up."""
    if not isinstance(spec, dict):
        return spec
    kinds = {"tuple", "list", "dict", "array", "empty", "potential", "module"} & spec.keys()
    if len(kinds) != 1 or set(spec) - kinds - {"fields"}:
        raise InputError(
            f"'{folder}' has an entry with the keys {sorted(spec)} that is not understood: export it again"
        )
    (kind,) = kinds
    content = spec[kind]
    if kind in ("tuple", "list"):
        return {"tuple": tuple, "list": list}[kind](_decode(part, folder, arrays, owner) for part in content)
    if kind == "dict":
        return {key: _decode(part, folder, arrays, owner) for key, part in content.items()}
    if kind == "array":
        return arrays[content]
    if kind == "empty":
        return np.empty(content[1], content[0])
    if kind == "potential":
        built = owner = _known_potential(content)
        names = [f.name for f in dataclasses.fields(built)] if built else []
    else:
        built = _network_class(content, owner)
        names = _module_fields(built) if built else []
    if built is None:
        from jaxmd_thermal import potentials

        raise InputError(
            f"'{folder}' is of the unknown class '{content}'{nearest(content, potentials.__all__)}: it was written by "
            "another version of jaxmd_thermal, or by another program"
        )
    missing, unknown = [n for n in names if n not in spec["fields"]], [n for n in spec["fields"] if n not in names]
    if missing or unknown:
        raise InputError(
            f"'{folder}': {content} needs the fields {', '.join(names)}; "
            f"missing are [{', '.join(missing)}], unknown are [{', '.join(unknown)}]"
        )
    return built(**{key: _decode(part, folder, arrays, owner) for key, part in spec["fields"].items()})


def _known_potential(name: str) -> type | None:
    """The public potential class of that name."""
    from jaxmd_thermal import potentials

    if name not in potentials.__all__:
        return None
    found = getattr(potentials, name)
    return found if dataclasses.is_dataclass(found) and issubclass(found, potentials.Potential) else None


def _network_class(name: str, owner: type | None) -> type | None:
    """The Flax module of that name in the file of a potential class."""
    import sys

    found = getattr(sys.modules[owner.__module__], name, None) if owner is not None else None
    return found if isinstance(found, type) and _is_module(found) else None


def _is_module(cls: type) -> bool:
    import flax.linen as nn

    return issubclass(cls, nn.Module)


def _module_fields(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.name not in ("parent", "name")]


def _check_architecture(potential: Any, folder: Path) -> None:
    """Parameters of a network must have the shapes that its architecture declares.

    Raises:
      InputError: names the first parameter that differs.
    """
    from jaxmd_thermal.potentials._learned import parameter_shapes
    from jaxmd_thermal.potentials.base import terms_of

    for term in terms_of(potential):
        network = getattr(term, "network", None)
        if network is None:
            continue
        wanted, found = _shapes(parameter_shapes(network)), _shapes(term.params)
        wanted["references"], found["references"] = (len(term.species),), np.shape(term.references)
        if getattr(network, "n_species", len(term.species)) != len(term.species):
            wanted["species"], found["species"] = (network.n_species,), (len(term.species),)
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise InputError(
                    f"'{folder}' holds weights of another architecture: '{name}' should have the shape {wanted.get(name)}, "
                    f"found {found.get(name)}"
                )


def _shapes(tree: Any) -> dict[str, Any]:
    import jax

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): tuple(np.shape(leaf)) for path, leaf in leaves}
