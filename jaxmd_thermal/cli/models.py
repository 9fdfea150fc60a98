"""What `jaxmd-thermal models ...` does: list, fetch and export potentials."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.io.registry import FOLDER_VARIABLE, MODELS, Model, check_file, locate, model_named, search_folders


def show(as_json: bool = False) -> int:
    """`models list`: all names, and which of them can be used here. Checksums are compared."""
    rows = [*_built_in(), *(_published(model) for model in MODELS.values())]
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("name", "here", "elements", "cutoff (Å)", "steps", "licence", "what"):
        table.add_column(title, overflow="fold", no_wrap=title in ("name", "here", "elements"))
    colors = {"yes": "green", "built in": "green", "no": "yellow", "damaged": "bold red"}
    for row in rows:
        table.add_row(
            row["name"], f"[{colors[row['here']]}]{row['here']}[/]", _elements(row["elements"]), f"{row['cutoff']:g}",
            str(row["steps"]), row["licence"] or "", row["what"],
        )  # fmt: skip
    # A terminal wraps the last column; in a pipe, where nobody can widen it, a row stays a line.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    console.print(table)
    console.print(
        f"searched: {', '.join(map(str, search_folders()))} ({FOLDER_VARIABLE} adds a folder)", soft_wrap=True
    )
    console.print("get one: jaxmd-thermal models get NAME", soft_wrap=True)
    return 0


def get(names: list[str], to: str | None = None) -> int:
    """`models get`: download, and say what it is and how it wants to be cited."""
    from jaxmd_thermal.cli.progress import announce
    from jaxmd_thermal.io.download import download

    for name in names:
        _check_name(name)  # all of them before the first download
    for name in names:
        model = MODELS[name]
        announce(f"{name}: {model.size / 1e6:.1f} MB, {model.training}; licence {model.licence}")
        with _reporter(model) as progress:
            folder = download(model, to, progress)
        announce(f"{name}: in {folder}, checksums right. Cite: {model.citation}")
    if to is not None and Path(to).expanduser().resolve() not in [f.resolve() for f in search_folders()]:
        announce(f"set {FOLDER_VARIABLE}={Path(to).expanduser().resolve()} so that these names find it")
    return 0


def export(name: str, out: str) -> int:
    """`models export`: any potential in our own format."""
    from jaxmd_thermal.cli.progress import announce
    from jaxmd_thermal.io.exported import save_potential
    from jaxmd_thermal.io.models import load_potential

    announce(f"{name}: exported to {save_potential(load_potential(name), out)}")
    return 0


def _check_name(name: str) -> None:
    from jaxmd_thermal.io.models import REGISTRY

    if name in REGISTRY:
        raise InputError(f"'{name}' is built in: there is nothing to get, use it by its name")
    model_named(name)


def _built_in() -> list[dict[str, Any]]:
    from jaxmd_thermal.io.models import REGISTRY

    rows = []
    for name, (build, what) in REGISTRY.items():
        potential = build()
        rows.append(
            {
                "name": name,
                "here": "built in",
                "path": None,
                "elements": None if potential.species is None else list(potential.species),
                "cutoff": potential.cutoff,
                "steps": potential.interaction_steps,
                "licence": None,
                "what": what,
                "size": 0,
                "citation": None,
                "source": None,
            }
        )
    return rows


def _published(model: Model) -> dict[str, Any]:
    folder, here = locate(model), "no"
    if folder is not None:
        try:
            for file in model.files:
                check_file(model, file, folder / file.name)
            here = "yes"
        except InputError:
            here = "damaged"
    return {
        "name": model.name,
        "here": here,
        "path": None if folder is None else str(folder),
        "elements": list(model.elements),
        "cutoff": model.cutoff,
        "steps": model.steps,
        "licence": model.licence,
        "what": model.training,
        "size": model.size,
        "citation": model.citation,
        "source": model.source,
    }


def _elements(numbers: list[int] | None) -> str:
    """`any`, `Se, Sn` or `89 elements`."""
    if numbers is None:
        return "any"
    if len(numbers) > 4:
        return f"{len(numbers)} elements"
    from ase.data import chemical_symbols

    return ", ".join(chemical_symbols[n] for n in numbers)


@contextmanager
def _reporter(model: Model) -> Iterator[Any]:
    """A callback for `download(progress=)`: a bar in a terminal, nothing in log files."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks = {}

        def progress(file: Any, done: int) -> None:
            if file.name not in tasks:
                tasks[file.name] = bar.add_task(file.name, total=file.size)
            bar.update(tasks[file.name], completed=done)

        yield progress
