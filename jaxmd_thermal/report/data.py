"""What a run left behind, read for the report. Missing pieces become None; only a missing result is an error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.io.hdf5 import hdf5_file, read_tree, write_tree
from jaxmd_thermal.report.lattice_data import LatticeData, load_lattice

SERIES = ("time", "temperature", "potential_energy", "kinetic_energy", "conserved_energy")


@dataclass(frozen=True)
class Series:
    """One run.h5: traces over time with the replicas as columns, and the arrays behind the figures of its result.

    Attributes:
      label: name of the folder when a report covers several runs, else "".
      values: `time` (frames,) fs; `temperature` K, energies eV, each (frames, replicas). Only what the file holds.
      flux: {"potential", "convective"} -> (frames, replicas, 3) eV Å/fs, with `flux_time` (frames,) fs; or None.
      traces: {method: {name: array}} curves saved with the results.
      attributes: of the root group, `settings` decoded.
    """

    label: str
    values: dict[str, np.ndarray]
    flux: dict[str, np.ndarray] | None
    flux_time: np.ndarray | None
    traces: dict[str, dict[str, Any]]
    attributes: dict[str, Any]

    @property
    def n_atoms(self) -> int | None:
        return int(self.attributes["n_atoms"]) if "n_atoms" in self.attributes else None


@dataclass(frozen=True)
class RunData:
    """All that a report shows."""

    directory: Path
    document: Mapping[str, Any]
    series: list[Series]
    structure: Any = None
    command: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lattice: LatticeData | None = None

    @property
    def results(self) -> list[Mapping[str, Any]]:
        return list(self.document.get("results") or [])

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.document.get("settings") or {}


def load_run(directory: str | Path) -> RunData:
    """Read `results.json`, every `run.h5` (of the folder and of its sub-folders) and the structure.

    Raises:
      InputError: no folder, or no readable results.json in it.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"there is no folder '{directory}'; give the --out folder of a run")
    path = directory / "results.json"
    files = sorted([*directory.glob("run.h5"), *directory.glob("*/run.h5")])
    if not path.exists():
        hint = "the run is not finished: jaxmd-thermal resume" if files else "give the --out folder of a run, not"
        raise InputError(f"'{directory}' holds no results.json; {hint} {directory}")
    try:
        document = json.loads(path.read_text())
        if not isinstance(document, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' is damaged ({error}); run the command again to rebuild it") from error

    notes: list[str] = []
    series = []
    for file in files:
        try:
            series.append(_read_series(file, "" if file.parent == directory else file.parent.name))
        except (OSError, KeyError, ValueError) as error:
            notes.append(
                f"{file.relative_to(directory)} could not be read ({_one_line(error)}); its curves are left out."
            )
    lattice = load_lattice(directory, document, notes)
    if not files and lattice is None:
        notes.append("There is no run.h5 here; the time series are left out.")
    command = {}
    for file in (directory / "command.json", *sorted(directory.glob("*/command.json"))):
        try:
            command = json.loads(file.read_text())
            break
        except (OSError, ValueError):
            continue
    return RunData(directory, document, series, _read_structure(directory, notes), command, notes, lattice)


def _read_series(path: Path, label: str) -> Series:
    with h5py.File(path, "r") as file:
        values = {name: _columns(file[name], name) for name in SERIES if name in file}
        attributes: dict[str, Any] = {}
        for key, value in file.attrs.items():
            value = value.decode() if isinstance(value, bytes) else value
            attributes[key] = value.item() if isinstance(value, np.generic) else value
        try:
            attributes["settings"] = json.loads(attributes.get("settings", "{}"))
        except (TypeError, ValueError):
            attributes["settings"] = {}
        flux, flux_time = None, None
        if "flux" in file:
            group: Any = file["flux"]
            flux = {name: np.asarray(group[name]) for name in ("potential", "convective") if name in group} or None
            flux_time = np.asarray(group["time"]) if "time" in group else None
        traces = {}
        if "traces" in file:
            traced: Any = file["traces"]
            traces = {method: read_tree(group) for method, group in traced.items()}
    return Series(label, values, flux, flux_time, traces, attributes)


def _columns(dataset: Any, name: str) -> np.ndarray:
    array = np.asarray(dataset)
    return array if name == "time" else array.reshape(len(array), -1)


def write_traces(path: str | Path, traces: Mapping[str, Mapping[str, Any]]) -> None:
    """Save the curves of results into `run.h5:/traces/<method>/`, replacing earlier ones; other values are left out.

    Raises:
      OutputError: the file cannot be written; its samples are untouched.
    """
    with hdf5_file(path, "a") as file:
        for method, tree in traces.items():
            name = f"traces/{method}"
            if name in file:
                del file[name]
            write_tree(file.create_group(name), tree)


def write_flux(path: str | Path, flux: np.ndarray, timestep: float, volume: float, temperature: float) -> None:
    """A run.h5 that holds a heat-flux series of another code, (replicas, frames, 3) eV Å/fs, and nothing else.

    Raises:
      OutputError: the file cannot be written.
    """
    with hdf5_file(path) as file:
        file["flux/potential"] = flux.transpose(1, 0, 2)  # the total flux; another code's parts are not known
        file["flux/convective"] = np.zeros_like(flux.transpose(1, 0, 2))
        file["flux/time"] = timestep * (1.0 + np.arange(flux.shape[1]))
        file.attrs.update(volume_A3=volume, temperature_K=temperature, timestep_fs=timestep)


def _read_structure(directory: Path, notes: list[str]) -> Any:
    from jaxmd_thermal.io.ase import read_structure

    for file in (directory / "structure.extxyz", *sorted(directory.glob("*/structure.extxyz"))):
        if file.exists():
            try:
                return read_structure(file)
            except InputError as error:
                notes.append(str(error))
    return None


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def number(value: Any) -> float | None:
    """The value as a finite float, or None."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def conductivity(entry: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """(isotropic value, standard error) of an entry of results.json, W/(m K)."""
    kappa = entry.get("thermal_conductivity_W_mK") or {}
    return number(kappa.get("isotropic")), number(kappa.get("stderr"))


def with_error(value: float | None, error: float | None = None) -> str:
    """`0.361 ± 0.015`: the error with two digits, the value to the same place."""
    if value is None:
        return "not available"
    if error is None or error <= 0:
        return f"{value:.4g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    if places > 6 or abs(value) >= 1e6:
        return f"{value:.4g} ± {error:.2g}"
    shown = round(value, places) + 0.0  # no "-0.000"
    return f"{shown:.{places}f} ± {error:.{places}f}"
