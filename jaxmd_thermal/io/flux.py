"""Heat-flux series of other codes and of our own runs, converted to eV Å/fs at this boundary.

| format   | file                                      | what is read                                           |
|----------|-------------------------------------------|--------------------------------------------------------|
| "lammps" | `log.lammps`, file of `fix ave/time`      | three named columns of `compute heat/flux`             |
| "gpumd"  | `compute.out` of `compute M I O jp jk`    | 6 columns a group (potential, kinetic), or 3 (jp only) |
| "npz"    | NumPy archive                             | `flux`, and if there `timestep`, `volume`, ...         |
| "hdf5"   | `run.h5` of this package                  | `/flux/*`, `/temperature` (its mean), the volume       |

LAMMPS: only the first three entries of `compute heat/flux` are the flux (the others are the convective part alone);
the last block of thermo rows that has them is taken, which is the production run. Variables (`v_Jx`) need `density` to
be stated, because the example of LAMMPS's manual divides them by the volume. GPUMD: `hac.out` holds a correlation, not
a flux, and is refused; so is a `compute.out` with other quantities, which its columns cannot be told from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal.errors import InputError, nearest
from jaxmd_thermal.units import ASE_TIME, ELEMENTARY_CHARGE

KCAL_MOL = 4184.0 / 6.02214076e23 / ELEMENTARY_CHARGE
"""eV per kcal/mol (thermochemical calorie, exact Avogadro constant)."""

FLUX_UNITS = {
    "internal": 1.0,  # eV Å/fs
    "metal": 1e-3,  # LAMMPS metal: eV Å/ps
    "real": KCAL_MOL,  # LAMMPS real: kcal/mol Å/fs
    "gpumd": 1.0 / ASE_TIME,  # eV^(3/2) amu^(-1/2), that is eV Å per Å sqrt(amu/eV)
}
FORMATS = ("lammps", "gpumd", "npz", "hdf5")
_ALIASES = {
    "flux": ("flux", "flux1", "heat_flux", "j"),
    "timestep": ("timestep_fs", "timestep", "dt_fs", "dt"),
    "volume": ("volume_a3", "volume"),
    "temperature": ("temperature_k", "temperature"),
}
_TRIPLETS = (r"^[cfv]_\w+\[{}\]$", r"^(?:v_)?(?:[jJqQ]|[fF]lux|[hH]eat_?[fF]lux|hf)_?{}$")


@dataclass(frozen=True)
class FluxSeries:
    """`flux` (replicas, frames, 3) extensive, eV Å/fs; `timestep` fs between frames; `volume` Å^3; `temperature` K.

    `volume` and `temperature` are None where the file does not tell them. `source` names the file(s).
    """

    flux: np.ndarray
    timestep: float
    volume: float | None = None
    temperature: float | None = None
    source: str = ""


def read_flux(
    path: str | Path | Sequence[str | Path],
    *,
    format: str | None = None,
    timestep: float | None = None,
    units: str | None = None,
    columns: Sequence[str] | None = None,
    volume: float | None = None,
    temperature: float | None = None,
    groups: int = 1,
    density: bool | None = None,
) -> FluxSeries:
    """Read a heat-flux series; several files become replicas, cut to the shortest.

    Args:
      path: a file or several.
      format: "lammps", "gpumd", "npz" or "hdf5"; default: from the name (`compute.out`, .npz, .h5/.hdf5; else LAMMPS).
      timestep: fs between rows. Needed for text files, except LAMMPS logs that print their time step.
      units: of the flux: "metal" (eV Å/ps), "real" (kcal/mol Å/fs), "gpumd", "internal" (eV Å/fs). Default: what the
        file says, else "metal" for LAMMPS, "gpumd" for GPUMD and "internal" for the others.
      columns: names of the x, y, z columns in a LAMMPS file; default: the first three that look like a flux
        (`c_NAME[1..3]`, `v_Jx v_Jy v_Jz`, `Jx Jy Jz`).
      volume, temperature: override or supply what the file says, Å^3 and K.
      groups: number of groups in GPUMD's `compute.out`; they are added up.
      density: True: the flux was divided by the volume; it is multiplied back. Must be stated for LAMMPS variables.

    Raises:
      InputError: names file, line and column, and what to do.
    """
    paths = [Path(p) for p in ([path] if isinstance(path, str | Path) else path)]
    if not paths:
        raise InputError("no flux file given; name at least one.")
    for value, known, what in ((format, FORMATS, "format"), (units, tuple(FLUX_UNITS), "units")):
        if value is not None and value not in known:
            raise InputError(f"{what} '{value}' is not one of {', '.join(known)}{nearest(value, known)}")
    series = []
    for file in paths:
        if not file.is_file():
            raise InputError(f"{file}: there is no such file; check the path.")
        kind = format or _guess(file)
        if kind == "lammps":
            one = _read_lammps(file, timestep, units, columns, density)
        elif kind == "gpumd":
            one = _read_gpumd(file, timestep, units or "gpumd", groups)
        elif kind == "npz":
            one = _read_npz(file, timestep, units)
        else:
            one = _read_hdf5(file, timestep)
        one = replace(one, volume=volume or one.volume, temperature=temperature or one.temperature)
        if density:
            if one.volume is None:
                raise InputError(f"{file}: a flux density needs the volume; give volume in Å^3.")
            one = replace(one, flux=one.flux * one.volume)
        series.append(one)
    return _stack(series, paths)


def _guess(path: Path) -> str:
    if path.suffix in (".h5", ".hdf5"):
        return "hdf5"
    if path.suffix == ".npz":
        return "npz"
    return "gpumd" if path.name in ("compute.out", "hac.out") else "lammps"


def _stack(series: list[FluxSeries], paths: list[Path]) -> FluxSeries:
    first = series[0]
    for one, path in zip(series[1:], paths[1:]):
        if not np.isclose(one.timestep, first.timestep, rtol=1e-6):
            raise InputError(f"{path}: {one.timestep:g} fs between rows, but {paths[0]} has {first.timestep:g}.")
        if one.volume and first.volume and not np.isclose(one.volume, first.volume, rtol=1e-3):
            raise InputError(f"{path}: volume {one.volume:g} Å^3, but {paths[0]} has {first.volume:g}.")
    frames = min(one.flux.shape[1] for one in series)
    temperatures = [one.temperature for one in series if one.temperature is not None]
    return FluxSeries(
        np.concatenate([one.flux[:, :frames] for one in series]),
        first.timestep,
        first.volume,
        float(np.mean(temperatures)) if temperatures else None,
        ", ".join(str(p) for p in paths),
    )


def _table(path: Path, rows: list[tuple[int, str]], names: Sequence[str] | None = None) -> np.ndarray:
    """Numbers from (line number, text) rows; an error names the line and the column."""
    if not rows:
        raise InputError(f"{path}: there is no row of numbers.")
    try:
        table = np.loadtxt([text for _, text in rows], ndmin=2)
    except ValueError:
        table = None
    width = len(names) if names else len(rows[0][1].split())
    if table is not None and table.shape[1] == width:
        if np.all(np.isfinite(table)):
            return table
        row, column = (int(i) for i in np.argwhere(~np.isfinite(table))[0])
        raise InputError(
            f"{path}, line {rows[row][0]}, column {names[column] if names else column + 1}: {table[row, column]}. "
            "Cut the file before that line, or find out why the run broke."
        )
    for number, text in rows:
        words = text.split()
        if len(words) != width:
            raise InputError(
                f"{path}, line {number}: {len(words)} columns, expected {width}. "
                "The line is cut off or belongs to another table; remove it."
            )
        for i, word in enumerate(words):
            try:
                float(word)
            except ValueError:
                column = names[i] if names else i + 1
                raise InputError(f"{path}, line {number}, column {column}: '{word}' is not a number.") from None
    raise InputError(f"{path}: the rows of numbers cannot be read as a table.")


def _find_columns(names: list[str], columns: Sequence[str] | None) -> list[int] | None:
    """Positions of x, y, z, or None if this table has no flux, or several triplets none of which is called one."""
    if columns is not None:
        if len(columns) != 3:
            raise InputError(f"{len(columns)} column names given, expected three: x, y, z.")
        return [names.index(c) for c in columns] if all(c in names for c in columns) else None
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        for pattern in _TRIPLETS:
            for labels in ("123", "xyz", "XYZ"):
                if re.match(pattern.format(labels[0]), name):
                    head, tail = name.rsplit(labels[0], 1)
                    wanted = [f"{head}{k}{tail}" for k in labels]
                    if all(w in names for w in wanted):
                        found[name] = [i, names.index(wanted[1]), names.index(wanted[2])]
    likely = [v for k, v in found.items() if re.search(r"flux|heat|hf|^(?:[cfv]_)?[jJqQ]", k)]
    candidates = likely or list(found.values())
    return candidates[0] if likely or len(candidates) == 1 else None


def _read_lammps(
    path: Path, timestep: float | None, units: str | None, columns: Sequence[str] | None, density: bool | None
) -> FluxSeries:
    """Last table with flux columns: a header line of names (`Step ...` or `# TimeStep ...`) and the rows below it."""
    names: list[str] = []
    picked: list[int] | None = None
    tables: list[tuple[list[str], list[int], list[tuple[int, str]], int]] = []
    md_step, style, seen = None, None, []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            words = text.replace("#", " ").split()
            if not words:
                continue
            if found := re.match(r"\s*Unit style\s*:\s*(\w+)", text):
                style = found[1]
            elif found := re.match(r"\s*Time step\s*:\s*(\S+)", text):
                md_step = float(found[1])
            if words[0] in ("Step", "TimeStep") and len(words) > 1:
                names, seen = words, seen + words
                picked = _find_columns(names, columns)
                if picked is not None:
                    tables.append((names, picked, [], number))
            elif text.startswith("Loop time") or text.startswith("ERROR"):
                picked = None
            elif picked is not None and not text.startswith(("#", "WARNING")):
                tables[-1][2].append((number, text))
    tables = [t for t in tables if t[2]]
    if not tables:
        have = f"the columns are {', '.join(dict.fromkeys(seen))}" if seen else "there is no header line of names"
        missing = next((c for c in columns or () if c not in seen), None)
        what = f"no column '{missing}'{nearest(missing, seen)}" if missing else "no columns of a heat flux"
        raise InputError(
            f"{path}: {what}; {have}. Name the three with columns=, for example c_flux[1] c_flux[2] "
            "c_flux[3], and keep the header `Step ...` or `# TimeStep ...`."
        )
    names, picked, rows, header = tables[-1]
    if density is None and names[picked[0]].startswith("v_"):
        raise InputError(
            f"{path}, line {header}, column {names[picked[0]]}: a variable may be the flux or the flux divided by the "
            "volume. State density=True or False, or use the columns c_NAME[1] to c_NAME[3] of compute heat/flux."
        )
    table = _table(path, rows, names)
    steps = np.diff(table[:, 0])
    if len(steps) and np.any(steps != steps[0]):
        bad = int(np.argmax(steps != steps[0]))
        raise InputError(
            f"{path}, line {rows[bad + 1][0]}, column {names[0]}: a step of {steps[bad]:g} after {steps[0]:g}. "
            "The rows must be equally spaced; cut the file there."
        )
    if timestep is None:
        if md_step is None or not len(steps):
            spacing = f" (rows are {steps[0]:g} steps apart)" if len(steps) else ""
            raise InputError(f"{path}: the time step is not in the file; give timestep, fs between rows{spacing}.")
        timestep = md_step * float(steps[0]) * (1000.0 if style in (None, "metal") else 1.0)
    units = units or ("real" if style == "real" else "metal")
    if style is not None and style not in ("metal", "real"):
        raise InputError(f"{path}: LAMMPS unit style '{style}' is not supported; use metal or real.")

    def column_mean(name: str) -> float | None:
        return float(table[:, names.index(name)].mean()) if name in names else None

    flux = table[:, picked][None] * FLUX_UNITS[units]
    return FluxSeries(flux, float(timestep), column_mean("Volume"), column_mean("Temp"), f"{path} (line {header})")


def _read_gpumd(path: Path, timestep: float | None, units: str, groups: int) -> FluxSeries:
    if path.name == "hac.out":
        raise InputError(
            f"{path}: holds a correlation that is already averaged, not a flux. Add `compute 0 10 1 jp jk` to run.in "
            "and give compute.out."
        )
    if timestep is None:
        raise InputError(f"{path}: the time step is not in the file; give timestep, fs between rows.")
    with open(path, encoding="utf-8", errors="replace") as file:
        rows = [(n, text) for n, text in enumerate(file, 1) if text.strip() and not text.startswith("#")]
    table = _table(path, rows)
    if table.shape[1] not in (3 * groups, 6 * groups):
        raise InputError(
            f"{path}, line {rows[0][0]}: {table.shape[1]} columns; for {groups} group(s) `compute ... jp jk` has "
            f"{6 * groups}, `jp` alone {3 * groups}. Compute no other quantity, or set groups."
        )
    # x of all groups, then y, then z; the potential part before the kinetic part.
    parts = table.reshape(len(table), -1, 3, groups)
    return FluxSeries(parts.sum(axis=(1, 3))[None] * FLUX_UNITS[units], float(timestep), source=str(path))


def _read_npz(path: Path, timestep: float | None, units: str | None) -> FluxSeries:
    try:
        with np.load(path, allow_pickle=False) as archive:
            data: Mapping[str, Any] = {key.lower(): archive[key] for key in archive.files}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable .npz archive ({error}).") from error

    def get(what: str) -> Any:
        return next((data[k] for k in _ALIASES[what] if k in data), None)

    flux, step = get("flux"), timestep if timestep is not None else get("timestep")
    if flux is None:
        raise InputError(f"{path}: no array 'flux'{nearest('flux', data)}; there are {', '.join(data)}.")
    if step is None:
        raise InputError(f"{path}: no 'timestep'; give timestep, fs between frames.")
    if flux.ndim not in (2, 3) or flux.shape[-1] != 3:
        raise InputError(f"{path}: flux has shape {flux.shape}, expected (frames, 3) or (replicas, frames, 3).")
    stated = str(data["units"]).removeprefix("lammps-") if "units" in data else "internal"
    if units is None and stated not in FLUX_UNITS:
        raise InputError(f"{path}: units '{stated}' are not one of {', '.join(FLUX_UNITS)}; give units.")
    flux = np.asarray(flux, float) * FLUX_UNITS[units or stated]
    volume, temperature = (None if (v := get(k)) is None else float(v) for k in ("volume", "temperature"))
    return FluxSeries(flux.reshape(-1, *flux.shape[-2:]), float(step), volume, temperature, str(path))


def _read_hdf5(path: Path, timestep: float | None) -> FluxSeries:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if "flux/potential" not in file:
                raise InputError(f"{path}: no dataset /flux/potential; was the flux sampled in this run?")
            parts = {n: np.asarray(file["flux"][n], float) for n in ("potential", "convective") if n in file["flux"]}
            time = np.asarray(file["flux/time"], float) if "flux/time" in file else None
            attributes = dict(file.attrs)
            if "temperature" in file:  # a run refers to the temperature that it had, not to the one that was asked for
                attributes["temperature_K"] = np.mean(file["temperature"])
    except OSError as error:
        raise InputError(f"{path}: not a readable HDF5 file ({error}).") from error
    for name, part in parts.items():
        if part.ndim != 3 or part.shape[2] != 3 or part.shape != parts["potential"].shape:
            raise InputError(f"{path}: /flux/{name} has shape {part.shape}, expected (frames, replicas, 3).")
    if timestep is None:
        if time is not None and len(time) > 1:
            steps = np.diff(time)
            if not np.allclose(steps, steps[0], rtol=1e-6):
                bad = int(np.argmax(~np.isclose(steps, steps[0], rtol=1e-6))) + 1
                raise InputError(f"{path}: /flux/time is not equally spaced at frame {bad} ({time[bad]:g} fs).")
            timestep = float(steps.mean())
        elif "timestep_fs" in attributes:
            timestep = float(attributes["timestep_fs"])
        else:
            raise InputError(f"{path}: neither /flux/time nor the attribute timestep_fs; give timestep, fs.")
    volume, temperature = (float(attributes[k]) if k in attributes else None for k in ("volume_A3", "temperature_K"))
    flux = sum(parts.values()).transpose(1, 0, 2)
    return FluxSeries(flux, timestep, volume, temperature, str(path))
