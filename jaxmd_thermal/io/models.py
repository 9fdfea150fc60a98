"""Potentials by name or from a file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxmd_thermal.errors import InputError, nearest

_SIGMA_JMD = 3.405


def _lj_argon_cut25() -> Any:
    from jaxmd_thermal.potentials import LennardJones

    # Rahman's argon as most codes take it: plain truncation at 2.5 sigma.
    return LennardJones(0.0103206594, 3.4, 8.5)


def _lj_argon_jmd25() -> Any:
    from jaxmd_thermal.potentials import LennardJones

    return LennardJones(0.0104, _SIGMA_JMD, 2.5 * _SIGMA_JMD, "switch", switch_start=2.0 * _SIGMA_JMD)


def _lj_argon_gk() -> Any:
    from jaxmd_thermal.potentials import LennardJones

    return LennardJones(0.01042, _SIGMA_JMD, 10.5, "switch", switch_start=9.0)


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
    """A potential by its built-in name, or from a TOML file that describes one.

    Args:
      name_or_path: `lj-argon-cut25`, `lj-argon-jmd25`, `lj-argon-gk`, `sw-silicon`; a potential (returned as it is); or
        a file like::

            type = "LennardJones"
            epsilon = 0.01042     # eV
            sigma = 3.405         # Å
            cutoff = 10.5         # Å
            truncation = "switch"
            switch_start = 9.0    # Å

    Returns: a pytree with `atomic_energies(graph)`.

    Raises:
      InputError: the name is unknown (the nearest known one is suggested) or the file describes no potential.
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
    path = Path(name_or_path)
    if path.is_file():
        return _from_file(path)
    known = ", ".join(REGISTRY)
    raise InputError(
        f"unknown potential '{name}'{nearest(name, REGISTRY) or '.'} Known names: {known}; or give a TOML file"
    )


def _from_file(path: Path) -> Any:
    from jaxmd_thermal import potentials

    if path.suffix != ".toml":
        raise InputError(f"cannot read a potential from '{path}': only .toml descriptions are understood")
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
