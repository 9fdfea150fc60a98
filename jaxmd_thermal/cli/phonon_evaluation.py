"""`evaluate phonons`: the phonons of one or several potentials beside those of DFT forces; tables and bands."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmd_thermal._backend import enable_compilation_cache, quiet_compiler, writable_directory
from jaxmd_thermal.cli.progress import announce
from jaxmd_thermal.cli.training import read_manifest
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.transport.results import write_json


def run(
    potentials: Sequence[str],
    paths: Sequence[str],
    *,
    manifest: str | None = None,
    split: Sequence[str] = (),
    temperature: float = 300.0,
    relaxed: str | None = None,
    mesh: int = 19,
    out: str | None = None,
) -> int:
    """Evaluate potentials, the first of which is the one that the others are compared with. Returns the exit code."""
    quiet_compiler()
    enable_compilation_cache()
    named, functionals = compounds_of(paths, manifest, split)
    from jaxmd_thermal.io.models import load_potential
    from jaxmd_thermal.training.data import told_apart

    names = told_apart(potentials, [Path(p).name if Path(p).exists() else p for p in potentials])
    models = {name: load_potential(place) for name, place in zip(names, potentials, strict=True)}
    tables = evaluated(models, named, functionals, temperature=temperature, relaxed=relaxed, mesh=mesh)
    announce(summary_of(tables))
    if out is not None:
        written(tables, Path(out))
        announce(f"tables and bands: {out}")
    return 0


def compounds_of(
    paths: Sequence[str], manifest: str | None, split: Sequence[str] = ()
) -> tuple[dict[str, Path], dict[str, str]]:
    """{compound: file} and {compound: functional} of files, and of the rows of a manifest with one of the splits (all: none).

    Raises:
      InputError: nothing is named, no row has such a split, or two files have one name.
    """
    from jaxmd_thermal.training.evaluation import by_compound

    named = {name: Path(path) for name, path in by_compound(paths).items()}
    functionals: dict[str, str] = {}
    if manifest is not None:
        rows = read_manifest(manifest)
        chosen = [r for r in rows if not split or r.get("split") in split]
        if not chosen:
            raise InputError(f"'{manifest}' has no rows whose `split` is {' or '.join(split)}")
        for row in chosen:
            if (other := named.get(row["key"])) is not None and other.resolve() != row["path"].resolve():
                raise InputError(
                    f"'{other}' and '{row['path']}' of the manifest are both called '{row['key']}': rename one"
                )
        functionals = {r["key"]: r.get("functional") or "unknown" for r in rows}
        named |= {r["key"]: r["path"] for r in chosen}
    if not named:
        raise InputError("evaluate phonons needs files of phonopy, or --manifest with a CSV file that names them")
    return named, functionals


def evaluated(
    models: dict[str, Any],
    named: dict[str, Path],
    functionals: dict[str, str],
    *,
    temperature: float = 300.0,
    relaxed: str | None = None,
    mesh: int = 19,
) -> dict[str, Any]:
    """`PhononTable` of each model."""
    from jaxmd_thermal.training.evaluation import evaluate_phonons

    tables = {}
    for name, potential in models.items():

        def show(done: int, count: int, compound: str, name: str = name) -> None:
            print(f"{name}: {compound} ({done + 1} of {count})", file=sys.stderr, flush=True)

        tables[name] = evaluate_phonons(
            potential, named, temperature, relaxed=relaxed, functionals=functionals, mesh=mesh, progress=show
        )
    return tables


def summary_of(tables: dict[str, Any]) -> str:
    """The tables, and the ratios of each to the first."""
    lines = []
    for name, table in tables.items():
        lines += ["", f"{name}, at the {table.geometry} geometry, {table.temperature:g} K", table.to_text()]
    first, *others = tables
    for name in others:
        ratio = tables[name].relative_to(tables[first])
        left = len(tables[name].only_one_has(tables[first]))
        lines.append(
            f"{name} over {first}: {ratio:.3f} (mean over the four metrics of the ratio of mean absolute errors"
            + (f"; compounds left out, as only one of the two has errors for them: {left})" if left else ")")
        )
    return "\n".join(lines).strip()


def written(tables: dict[str, Any], out: Path) -> None:
    """`phonons.json`, `phonons.csv`, and a figure of the bands of each compound."""
    folder = writable_directory(out)
    document = {}
    rows = []
    for name, table in tables.items():
        groups = sorted({r.functional for r in table.rows})
        document[name] = {
            "temperature_K": table.temperature, "geometry": table.geometry, "mesh": table.mesh,
            "means_per_primitive_cell": table.means(), "means_per_atom": table.means(per_atom=True),
            "means_by_functional": {g: table.means(functional=g) for g in groups},
            "classification": table.classification(), "compounds": table.records(),
        }  # fmt: skip
        rows += [{"model": name, **record} for record in table.records()]
    write_json(document, folder / "phonons.json")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / "phonons.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    compounds = [row.name for row in next(iter(tables.values())).rows]
    for place, compound in enumerate(compounds):
        found = {name: table.rows[place].force_constants for name, table in tables.items()}
        if any(found.values()):
            draw_bands(compound, found, folder / f"bands_{compound.replace('/', '_')}.svg")


def draw_bands(compound: str, found: dict[str, Any], file: Path) -> None:
    """Bands of the models and of the reference on one axis."""
    from matplotlib.figure import Figure

    from jaxmd_thermal.lattice.phonons import bands

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    reference = next(both[1] for both in found.values() if both)
    curves = [("DFT", reference, "black")]
    curves += [(name, both[0], f"C{i}") for i, (name, both) in enumerate(found.items()) if both]
    for name, constants, color in curves:
        solved = bands(constants, nac=False)
        for part, (x, phonons) in enumerate(zip(solved.distances, solved.phonons, strict=True)):
            lines = axis.plot(x, phonons.frequencies, color=color, lw=1.0, ls="-" if name == "DFT" else "--")
            lines[0].set_label(name if part == 0 else "_")
        if name == "DFT":
            ends = [(solved.distances[0][0], solved.segments[0][0])]
            starts = [segment[0] for segment in solved.segments[1:]] + [solved.segments[-1][2]]
            for x, segment, start in zip(solved.distances, solved.segments, starts, strict=True):
                ends.append((x[-1], start if start == segment[2] else f"{segment[2]}|{start}"))
            axis.set_xticks([x for x, _ in ends], [label for _, label in ends])
            axis.set_xlim(0.0, ends[-1][0])
    axis.axhline(0.0, color="0.7", lw=0.6)
    axis.set_ylabel("THz")
    axis.set_title(compound)
    axis.legend(fontsize=8)
    figure.savefig(file)
