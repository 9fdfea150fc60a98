"""Potentials by name, from weight files, from folders and from descriptions. Nothing is ever unpickled."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxmd_thermal.errors import InputError, nearest
from jaxmd_thermal.io.registry import FOLDER_VARIABLE, MODELS, checked

PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".dill", ".model")
"""Suffixes of files that would be unpickled."""

_SIGMA_JMD = 3.405
_ARGON = (18,)


def _lj_argon_cut25() -> Any:
    from jaxmd_thermal.potentials import LennardJones

    # Rahman's argon as most codes take it: plain truncation at 2.5 sigma.
    return LennardJones(0.0103206594, 3.4, 8.5, species=_ARGON)


def _lj_argon_jmd25() -> Any:
    from jaxmd_thermal.potentials import LennardJones

    cutoff, switch_start = 2.5 * _SIGMA_JMD, 2.0 * _SIGMA_JMD
    return LennardJones(0.0104, _SIGMA_JMD, cutoff, "switch", switch_start, species=_ARGON)


def _lj_argon_gk() -> Any:
    from jaxmd_thermal.potentials import LennardJones

    return LennardJones(0.01042, _SIGMA_JMD, 10.5, "switch", switch_start=9.0, species=_ARGON)


def _sw_silicon() -> Any:
    from jaxmd_thermal.potentials import StillingerWeber

    return StillingerWeber.silicon()


REGISTRY: dict[str, tuple[Callable[[], Any], str]] = {
    "lj-argon-cut25": (_lj_argon_cut25, "Lennard-Jones argon, truncated at 2.5 sigma = 8.5 Å, not shifted"),
    "lj-argon-jmd25": (_lj_argon_jmd25, "Lennard-Jones argon, switched between 2.0 and 2.5 sigma"),
    "lj-argon-gk": (_lj_argon_gk, "Lennard-Jones argon, switched between 9.0 and 10.5 Å (conductivity references)"),
    "sw-silicon": (_sw_silicon, "Stillinger-Weber silicon, parameters of 1985"),
}
"""Built-in potentials: constructor and description. Argon always means a model; the truncation is part of it."""


def load_potential(name_or_path: Any) -> Any:
    """A potential by its name, from weights, from an exported folder or from a TOML file that describes one.

    Args:
      name_or_path: one of

        - a built-in name: `lj-argon-cut25`, `lj-argon-jmd25`, `lj-argon-gk`, `sw-silicon`;
        - the name of published weights (`nequix-mp-1`, `so3krates-snse`, ...; `jaxmd-thermal models list` shows all). The
          files are looked for in `$JAXMD_THERMAL_MODELS`, then in the user's cache, and compared with their checksums;
          nothing is downloaded here;
        - a path: a Nequix weight file (`.nqx`), a folder of a So3krates model, a folder written by `save_potential`, or
          a description like::

            type = "LennardJones"
            epsilon = 0.01042     # eV
            sigma = 3.405         # Å
            cutoff = 10.5         # Å
            truncation = "switch"
            switch_start = 9.0    # Å

        - a potential, which is returned as it is.

    Returns: a pytree with `atomic_energies(graph)`.

    Raises:
      InputError: the name is unknown (the nearest known one is suggested), its weights are not on this machine or have
        another checksum, or the file describes no potential.
    """
    if hasattr(name_or_path, "atomic_energies"):
        return name_or_path
    if not isinstance(name_or_path, str | Path):
        raise InputError(
            f"a potential cannot be loaded from {type(name_or_path).__name__}: give a name, a path, or an object with "
            "atomic_energies(graph)"
        )
    name = str(name_or_path)
    if name in REGISTRY:
        return REGISTRY[name][0]()
    if name in MODELS:
        return _published(name)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_file(path)
    known = [*REGISTRY, *MODELS]
    raise InputError(
        f"unknown potential '{name}'{nearest(name, known) or '.'} Known names: {', '.join(known)}; or give the path of a "
        ".nqx or .toml file, or of a folder"
    )


def _published(name: str) -> Any:
    """Weights of the registry, after their checksums were compared."""
    model = MODELS[name]
    folder = checked(model)
    if model.kind == "nequix":
        from jaxmd_thermal.io.nqx import read_nqx

        return read_nqx(folder / model.files[0].name)
    from jaxmd_thermal.io.so3krates import CHECKPOINTS, read_so3krates

    more = {path.name for path in folder.glob(CHECKPOINTS)} - {file.name for file in model.files}
    if more:  # the reader takes the newest, which would not be the one whose checksum is right
        raise InputError(
            f"'{folder}' also holds {', '.join(sorted(more))}, which is not part of '{name}': put the published files into "
            "a folder of their own, or load your weights by their path"
        )
    return read_so3krates(folder)


def _from_folder(path: Path) -> Any:
    from jaxmd_thermal.io.exported import DOCUMENT, read_potential

    if (path / DOCUMENT).is_file():
        return read_potential(path)
    if (path / "hyperparameters.json").is_file():
        from jaxmd_thermal.io.so3krates import read_so3krates

        return read_so3krates(path)
    raise InputError(
        f"the folder '{path}' holds no potential: needed is {DOCUMENT} (a folder of save_potential) or "
        "hyperparameters.json (a So3krates model); a .nqx file is given by its own path, and a folder with weights of "
        f"several models by {FOLDER_VARIABLE}"
    )


def _refuse_pickle(path: Path) -> None:
    """A pickle runs code of its author when it is loaded, whatever its suffix says."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InputError(f"cannot read the potential '{path}': {error.strerror or error}") from error
    # Pickles of protocol 2 and later begin with 0x80 and its number, PyTorch's archives of pickles are zip files.
    if path.suffix.lower() in PICKLES or start[:1] == b"\x80" or start == b"PK\x03\x04":
        raise InputError(
            f"'{path}' is a pickle (or an archive of pickles), which could run any code while it is read, so it never is: "
            "load it with the program that wrote it, where you trust it, and save plain weights there (Nequix models: "
            ".nqx; others: build the potential and call save_potential)"
        )


def _from_file(path: Path) -> Any:
    from jaxmd_thermal import potentials

    _refuse_pickle(path)
    if path.suffix.lower() == ".nqx":
        from jaxmd_thermal.io.nqx import read_nqx

        return read_nqx(path)
    if path.suffix != ".toml":
        raise InputError(
            f"cannot read a potential from '{path}': only .nqx weights and .toml descriptions are understood"
        )
    try:
        options = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read the potential '{path}': {error}") from error
    kinds = {"LennardJones": potentials.LennardJones}
    kind = options.pop("type", None)
    if kind == "StillingerWeber":
        if options:
            raise InputError(f"'{path}': StillingerWeber takes no options here, got {', '.join(options)}")
        return potentials.StillingerWeber.silicon()
    if kind not in kinds:
        raise InputError(
            f"'{path}': type = {kind!r} is no potential{nearest(str(kind), ['LennardJones', 'StillingerWeber'])} "
            "Known types: LennardJones, StillingerWeber"
        )
    import dataclasses

    fields = [f.name for f in dataclasses.fields(kinds[kind])]
    for key in options:
        if key not in fields:
            raise InputError(
                f"'{path}': {kind} has no option '{key}'{nearest(key, fields)} Options: {', '.join(fields)}"
            )
    if "species" in options:
        options["species"] = tuple(options["species"])
    try:
        return kinds[kind](**options)
    except TypeError as error:
        raise InputError(f"'{path}': {error}; options: {', '.join(fields)}") from error
