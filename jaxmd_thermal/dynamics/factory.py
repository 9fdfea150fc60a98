"""Ensembles by name, with defaults that suit crystals; the door of `simulate` and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import InputError, nearest
from .base import Ensemble, require
from .csvr import CSVR
from .langevin import Langevin
from .nose_hoover import NoseHoover
from .npt import NPT
from .nve import NVE

ENSEMBLES = ("nve", "langevin", "nose-hoover", "csvr", "npt", "npt-flexible")


def ensemble_from_name(
    name: str,
    *,
    temperature: float | None = None,
    pressure: float | None = None,
    timestep: float = 1.0,
    damping: float | None = None,
    pressure_damping: float | None = None,
    bulk_modulus: float | None = None,
    stride: int = 1,
    zero_momentum: bool = True,
    pbc: Sequence[bool] | None = None,
) -> Ensemble:
    """The ensemble called `name`.

    Args:
      name: one of `ENSEMBLES`; underscores and capitals are accepted.
      temperature: K; needed by all but "nve", which ignores it (it only sets the initial velocities).
      pressure: eV/Å^3 (`1.0 * units.GPA`), positive when it compresses; for "npt" and "npt-flexible", default 0.
      timestep: fs; the default dampings follow it.
      damping: fs, of the thermostat. Default 100 time steps (500 for "langevin", whose noise disturbs the dynamics
        more).
      pressure_damping: fs, of the cell. Default 1000 time steps.
      bulk_modulus: eV/Å^3, an estimate that sets the rate of the cell. Default 10 GPa.
      stride: steps between two changes of the cell.
      zero_momentum: hold the total momentum at zero; False for atoms in an external field.
      pbc: periodicity of the structure, if known; "npt" needs three periodic directions.

    Raises:
      InputError: unknown name (with the nearest known one), a missing or impossible value, a structure without volume.
    """
    key = str(name).strip().lower().replace("_", "-")
    if key not in ENSEMBLES:
        raise InputError(f"unknown ensemble '{name}'{nearest(key, ENSEMBLES) or '.'} Known: {', '.join(ENSEMBLES)}")
    require(timestep, "timestep", "fs")
    if pressure is not None and not key.startswith("npt"):
        raise InputError(
            f"the ensemble '{key}' keeps the cell, but pressure = {pressure:g} was given; use 'npt' or drop it"
        )
    if key == "nve":
        if temperature is not None:
            require(temperature, "temperature", "K", strict=False, remedy="it sets the initial velocities")
        return NVE()
    if temperature is None:
        raise InputError(f"the ensemble '{key}' needs a temperature in K; give one or use 'nve'")
    if damping is None:
        damping = (500.0 if key == "langevin" else 100.0) * timestep
    bath: dict[str, Any] = {"temperature": temperature, "damping": damping, "zero_momentum": zero_momentum}
    if key == "langevin":
        return Langevin(**bath)
    if key == "nose-hoover":
        return NoseHoover(**bath)
    if key == "csvr":
        return CSVR(**bath)
    cell: dict[str, Any] = {"flexible": key == "npt-flexible", "stride": stride}
    cell["pressure"] = 0.0 if pressure is None else pressure
    cell["damping"] = 1000.0 * timestep if pressure_damping is None else pressure_damping
    if bulk_modulus is not None:
        cell["bulk_modulus"] = bulk_modulus
    ensemble = NPT(CSVR(**bath), **cell)
    if pbc is not None:
        ensemble.require_periodic(pbc)
    return ensemble
