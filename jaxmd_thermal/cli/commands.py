"""What the verbs do: the only place where flags meet the public functions of the package."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxmd_thermal._backend import quiet_compiler
from jaxmd_thermal.cli.settings import require, settings_for
from jaxmd_thermal.errors import CheckpointError, InputError, UnsupportedError


def run(verb: str, typed: dict[str, Any], config: str | None, *, dry_run: bool = False, show: bool = True) -> int:
    """`green-kubo`, `hnemd` and `md`: check everything, compute, write, report. Returns the exit code."""
    quiet_compiler()
    settings = settings_for(verb, typed, config)
    if getattr(settings, "flux", None):
        return _from_flux(settings)
    needed = ["structure", "potential", "temperature"] + (["driving_force"] if verb == "hnemd" else [])
    if verb == "md" and settings.ensemble == "nve":
        needed.remove("temperature")
    require(settings, verb, *needed)
    if verb == "green-kubo" and settings.sizes:
        from jaxmd_thermal.cli.sizes import run_sizes

        return run_sizes(settings, dry_run)
    out = directory(verb, settings)
    result = one(verb, settings, out, dry_run)
    if show and not dry_run:
        show_conductivities([result] if hasattr(result, "isotropic") else [], out)
    return 0


def one(verb: str, settings: Any, out: Path, dry_run: bool) -> Any:
    """One run in one folder: its result, with results.json, run.h5 and report.html written."""
    from jaxmd_thermal._backend import enable_compilation_cache, use_all_cores
    from jaxmd_thermal.cli.progress import announce, reporter
    from jaxmd_thermal.io.ase import formula, supercell
    from jaxmd_thermal.io.models import load_potential
    from jaxmd_thermal.report import build_report

    use_all_cores()  # before the weights: reading an exported potential starts the backend, and then it is too late
    potential = load_potential(settings.potential)
    atoms = supercell(settings.structure, settings.supercell)
    options = _options(verb, settings, atoms)
    at = f", {settings.temperature:g} K" if settings.temperature else ""
    announce(
        f"{verb}: {formula(atoms.numbers)}{at}, {settings.replicas} replica{'s' * (settings.replicas > 1)} -> {out}"
    )
    if dry_run:
        from jaxmd_thermal.cli.estimate import estimate

        announce(estimate(verb, potential, atoms, settings, options.get("spectral_lags", 0)))
        return None
    remember(out, verb, settings, atoms)
    enable_compilation_cache()
    with reporter() as progress:
        result = _call(_function(verb), potential, atoms, **options, out=out, progress=progress)
    save(result, out, settings)
    build_report(out)
    return result


def _function(verb: str) -> Callable:
    import jaxmd_thermal

    return getattr(jaxmd_thermal, {"green-kubo": "green_kubo", "hnemd": "hnemd", "md": "simulate"}[verb])


def _options(verb: str, settings: Any, atoms: Any) -> dict[str, Any]:
    """Arguments of the public function, in its units."""
    from jaxmd_thermal.units import GPA

    options: dict[str, Any] = {
        "temperature": settings.temperature,
        "timestep": settings.timestep,
        "steps": settings.steps,
        "replicas": settings.replicas,
        "sample_every": settings.sample_every,
        "seed": settings.seed,
        "dtype": settings.dtype,
    }
    if verb == "md":
        from jaxmd_thermal.io.ase import velocities_of

        options |= {"ensemble": settings.ensemble, "trajectory": True, "velocities": velocities_of(atoms)}
        if settings.pressure is not None:
            options["pressure"] = settings.pressure * GPA
        return options
    options |= {
        "equilibration_steps": settings.equilibration,
        "volume": settings.volume,
        "thickness": settings.thickness,
    }
    if verb == "hnemd":
        forces = settings.driving_force
        # A memory beyond a quarter of the run holds nothing but noise, and one beyond its end cannot be had.
        lags = min(settings.spectral_lags, settings.steps // settings.sample_every // 4)
        options |= {"driving_force": forces[0] if len(forces) == 1 else forces, "spectral_lags": lags}
    return options


def _call(function: Callable, potential: Any, atoms: Any, **options: Any) -> Any:
    """Call a public function with the options that were given; one that it does not take is an error, not a silence."""
    accepted = inspect.signature(function).parameters
    if options.get("progress") is not None and "progress" not in accepted:
        options["progress"] = None
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in accepted:
            raise UnsupportedError(f"{function.__name__} does not take '{key}' = {given[key]!r}: drop the option")
    return function(potential, atoms, **given)


def directory(verb: str, settings: Any) -> Path:
    """`--out`, or a folder under `runs` named after structure and verb."""
    if settings.out:
        return Path(settings.out)
    stem = Path(str(settings.structure)).stem
    at = f"-{settings.temperature:g}K" if settings.temperature else ""
    return Path("runs") / f"{stem}-{verb}{at}"


def remember(
    out: Path, verb: str, settings: Any, atoms: Any = None, plain: dict[str, Any] | None = None,
    repeatable: tuple[str, ...] = ("out",),
) -> None:  # fmt: skip
    """Write `command.json` (for `resume`) and `structure.extxyz`; refuse a folder that holds another run.

    Options in `repeatable` may differ from those of the earlier command.

    Raises:
      CheckpointError: names the options that differ.
      OutputError: the folder cannot be written.
    """
    from jaxmd_thermal._backend import writable_directory
    from jaxmd_thermal.io.ase import write_structure
    from jaxmd_thermal.report.page import command_line
    from jaxmd_thermal.transport.results import write_json

    plain = plain_settings(settings) if plain is None else plain
    earlier = _remembered(out)
    if earlier is not None:
        old = {k: v for k, v in earlier["settings"].items() if k not in repeatable} | {"verb": earlier["verb"]}
        new = {k: v for k, v in plain.items() if k not in repeatable} | {"verb": verb}
        different = [f"{k} {old.get(k)} there, {new.get(k)} here" for k in sorted(old.keys() | new.keys())
                     if old.get(k) != new.get(k)]  # fmt: skip
        if different:
            raise CheckpointError(
                f"'{out}' holds another run ({'; '.join(different)}): choose another --out, or repeat its command"
            )
    writable_directory(out)
    typed = {k: v for k, v in plain.items() if k in settings.model_fields_set} | {"out": str(out)}
    document = {"verb": verb, "settings": plain, "typed": list(typed), "line": command_line(verb, typed)}
    write_json(document, out / "command.json")
    if atoms is not None and not (out / "structure.extxyz").exists():
        write_structure(out / "structure.extxyz", atoms)


def _remembered(out: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((out / "command.json").read_text())
        return found if isinstance(found, dict) and {"verb", "settings"} <= found.keys() else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"'{out / 'command.json'}' is damaged ({error}): delete it, or choose another --out"
        ) from error


def plain_settings(settings: Any) -> dict[str, Any]:
    """Settings as JSON holds them, without what was not asked for."""
    return {k: v for k, v in settings.model_dump(mode="json").items() if v not in (None, [])}


def save(result: Any, out: Path, settings: Any) -> None:
    """results.json (unless the run wrote it) and the curves of the result, for the report."""
    from jaxmd_thermal._backend import versions
    from jaxmd_thermal.report.data import write_traces
    from jaxmd_thermal.transport.results import results_document, write_json

    plain = settings if isinstance(settings, dict) else plain_settings(settings)
    seed = plain.get("seed")
    if not hasattr(result, "isotropic"):  # molecular dynamics: no conductivity
        if not (out / "results.json").exists():
            system = result.system
            volume = float(abs(_determinant(result.cell[0]))) if all(system.pbc) else None
            write_json(results_document([], system.n_atoms, volume, plain, versions(), seed), out)
        return
    result = replace(result, settings=plain, versions=dict(result.versions) or versions(), seed=seed)
    write_json(results_document([result], result.n_atoms, result.volume, plain, result.versions, result.seed), out)
    traces = result.details.get("traces") if isinstance(result.details, Mapping) else None
    if traces:
        write_traces(out / "run.h5", {result.method: traces})


def combine(out: Path, folders: list[Path], one_cell: bool = True) -> dict[str, Any]:
    """One results.json and one report for several runs in sub-folders of `out`.

    Without `one_cell` their cells may differ: n_atoms and volume then stand in every entry, and are null in the document.

    Raises:
      InputError: the runs have cells of different size; they belong in reports of their own.
    """
    from jaxmd_thermal.report import build_report
    from jaxmd_thermal.transport.results import write_json

    documents = [json.loads((folder / "results.json").read_text()) for folder in folders]
    first = documents[0]
    for folder, document in zip(folders, documents):
        if one_cell and document["n_atoms"] != first["n_atoms"]:
            raise InputError(
                f"'{folder}' has {document['n_atoms']} atoms and '{folders[0]}' {first['n_atoms']}: one results.json "
                "holds runs of one cell"
            )
    common = {k: v for k, v in first["settings"].items() if all(d["settings"].get(k) == v for d in documents)}
    merged = first | {"results": [r for d in documents for r in d["results"]]}
    if not one_cell:
        merged |= {"n_atoms": None, "volume_A3": None, "results": [
            _placed(r, folder, d) for folder, d in zip(folders, documents) for r in d["results"]
        ]}  # fmt: skip
        merged.pop("stages", None)
    merged["settings"] = common | {folder.name: d["settings"] for folder, d in zip(folders, documents)}
    write_json(merged, out)
    build_report(out)
    return merged


def _placed(entry: Mapping[str, Any], folder: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with the size of its cell, and with its files named from the folder above."""
    files = {k: f"{folder.name}/{entry[k]}" for k in ("mode_file", "phono3py_file") if entry.get(k)}
    return {**entry, "n_atoms": document["n_atoms"], "volume_A3": document["volume_A3"], **files}


def _determinant(cell: Any) -> float:
    import numpy as np

    return float(np.linalg.det(cell))


def _from_flux(settings: Any) -> int:
    """`green-kubo --flux FILE`: the estimators applied to a series of another code."""
    from jaxmd_thermal._backend import versions
    from jaxmd_thermal.io.flux import read_flux
    from jaxmd_thermal.report import build_report
    from jaxmd_thermal.report.data import write_flux
    from jaxmd_thermal.transport.green_kubo import green_kubo_from_flux

    if settings.structure:
        raise InputError(f"--flux replaces the structure, but '{settings.structure}' was given too: drop one of them")
    typed = settings.model_fields_set  # the default time step is that of a simulation, not of a file
    series = read_flux(
        settings.flux,
        timestep=settings.timestep if "timestep" in typed else None,
        units=settings.flux_units,
        volume=settings.volume,
        temperature=settings.temperature,
    )
    for name, value, unit in (("volume", series.volume, "Å^3"), ("temperature", series.temperature, "K")):
        if value is None:
            raise InputError(f"{series.source or settings.flux[0]} does not tell the {name}: give --{name} in {unit}")
    assert series.volume is not None and series.temperature is not None
    out = Path(settings.out) if settings.out else Path("runs") / f"{Path(settings.flux[0]).stem}-green-kubo"
    given = {k: v for k, v in settings.model_dump(mode="json").items() if k in typed}
    frames = series.flux.shape[1]
    periodic = settings.flux_periodic or "xyz"
    facts = {"flux": list(settings.flux), "timestep": series.timestep, "volume": series.volume,
             "temperature": series.temperature, "frames": frames, "replicas": len(series.flux),
             "periodic": periodic}  # fmt: skip
    along = [["xyz".index(axis) == k for k in range(3)] for axis in periodic]
    result = green_kubo_from_flux(
        series.flux, series.timestep, series.volume, series.temperature, directions=along, settings=facts,
        versions=versions(),
    )  # fmt: skip
    remember(out, "green-kubo", settings, plain=given)
    write_flux(out / "run.h5", series.flux, series.timestep, series.volume, series.temperature)
    save(result, out, facts)
    build_report(out)
    show_conductivities([result], out)
    return 0


def check(verb: str, typed: dict[str, Any], config: str | None) -> int:
    """`check-heat-flux`: prints both comparisons; 1 if one fails."""
    from rich.console import Console

    quiet_compiler()
    from jaxmd_thermal import check_heat_flux
    from jaxmd_thermal._backend import enable_compilation_cache
    from jaxmd_thermal.io.ase import supercell
    from jaxmd_thermal.io.models import load_potential

    settings = settings_for(verb, typed, config)
    require(settings, verb, "structure", "potential")
    potential = load_potential(settings.potential)
    atoms = supercell(settings.structure, settings.supercell)
    enable_compilation_cache()
    found = check_heat_flux(potential, atoms)
    console = Console(highlight=False)
    console.print(f"heat flux of {settings.potential}: " + ("[green]passed" if found.passed else "[bold red]FAILED"))
    for name, what in (
        ("error_unfolded", "against the unfolded cell"),
        ("error_cluster", "against d/dt of sum r_i e_i"),
    ):
        value = getattr(found, name, None)
        console.print(f"  relative error {what}: " + ("not measured" if value is None else f"{value:.2e}"))
    text = getattr(found, "text", None)
    if text:
        console.print(f"  {text}")
    return 0 if found.passed else 1


def resume(directory: str) -> int:
    """Continue the run of a folder: the remembered command, once more."""
    out = Path(directory)
    found = _remembered(out)
    if found is None:
        raise InputError(
            f"'{out}' holds no command.json, so there is nothing to resume: give the --out folder of a run"
        )
    return verb_function(found["verb"])(found["verb"], {**found["settings"], "out": str(out)}, None)


def verb_function(verb: str) -> Callable[..., int]:
    """What runs a verb: `f(verb, typed, config, dry_run=False, show=True)`."""
    if verb in ("phonons", "wigner"):
        from jaxmd_thermal.cli import lattice

        return lattice.run
    if verb == "compare":
        from jaxmd_thermal.cli import compare

        return compare.run
    if verb == "campaign":
        from jaxmd_thermal.cli import campaign

        return campaign.run
    return run


def report(directory: str) -> int:
    """Rebuild the page of a folder."""
    from jaxmd_thermal.cli.progress import announce
    from jaxmd_thermal.report import build_report

    announce(str(build_report(directory)))
    return 0


def show_conductivities(results: list[Any], out: Path) -> None:
    """Table of the conductivities, and where the report is."""
    from jaxmd_thermal.cli.progress import announce, summary

    if results:
        summary(results)
    announce(f"report: {os.fspath(out / 'report.html')}")
