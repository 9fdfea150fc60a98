"""Table and page of a campaign over many compounds."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxmd_thermal.errors import InputError, OutputError
from jaxmd_thermal.report.figures import ABOVE, BLUE, GREY, RED, new_figure, styled
from jaxmd_thermal.report.shell import escape, framed, page, rows, section, write_page

COLUMNS = (
    "mp_id", "name", "structure", "kappa", "populations", "coherences", "kappa_dft", "srd", "sre", "srme", "kappa_dft_nac",
    "published_kappa", "published_srme", "published_median_srme", "seconds", "cpu_seconds", "compile_seconds",
    "peak_memory_GB", "device_GB", "dtype", "device", "date", "failed", "error",
)  # fmt: skip
SHOWN = {
    "name": "compound", "structure": "structure", "kappa": "κ", "populations": "pop.", "coherences": "coh.",
    "kappa_dft": "κ DFT", "srd": "SRD", "sre": "SRE", "srme": "SRME", "published_kappa": "κ publ.",
    "published_srme": "SRME publ.", "published_median_srme": "median publ.", "seconds": "s", "peak_memory_GB": "GB",
}  # fmt: skip


def write_csv(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One row a compound, with versions in the last columns. Atomic.

    Raises:
      OutputError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    names = ("jaxmd_thermal", "jax", "jaxlib", "numpy", "python", "backend")
    try:
        with partial.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow([*COLUMNS, *names])
            for row in table:
                versions = row.get("versions") or {}
                out.writerow([_plain(row.get(c)) for c in COLUMNS] + [versions.get(n, "") for n in names])
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write '{path}': {error.strerror or error}; free space or change permissions"
        ) from error


def _plain(value: Any) -> Any:
    return "" if value is None else f"{value:.8g}" if isinstance(value, float) else value


def build_campaign_report(directory: Path) -> Path:
    """Write `DIR/report.html` from `DIR/campaign.json`, and return its path.

    Raises:
      InputError: campaign.json is damaged.
      OutputError: the page cannot be written.
    """
    path = Path(directory) / "campaign.json"
    try:
        found = json.loads(path.read_text())
        title = f"{found['campaign']}: {found['potential']}"
        sections = [
            _header(found, title),
            section("Against DFT", [
                framed(parity(found["rows"]), "parity", "Conductivities", "Each compound at 300 K. Open: published for the same "
                       "model. Grey: a factor of two.", wide=False),
                framed(errors(found["rows"]), "errors", "Errors by compound", "SRME of each compound; grey: median of all "
                       "published models. Failed compounds count as 2."),
            ]),
            _table(found), _made(found, directory),
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{path}' is damaged ({error}); run the campaign again to rebuild it") from error
    return write_page(Path(directory) / "report.html", page(title, sections))


def _header(found: Mapping[str, Any], title: str) -> str:
    means, theirs = found["means"], found["published_means"]
    cards = []
    for key, name in (("srme", "SRME"), ("sre", "SRE"), ("srd", "SRD")):
        value = means.get(key)
        beside = f"published for all compounds: {theirs[key]:.4g}" if key in theirs else ""
        cards.append(
            f'<article class="card"><p class="method">Mean {name}</p><p class="kappa">'
            f'{"–" if value is None else f"{value:.4f}"}</p><p class="why">{escape(beside)}</p></article>'
        )
    done = f"{found['done']} of {found['compounds']} compounds, {found['failed']} failed. Protocol {found['protocol']}."
    return (
        f'<header><p class="brand">jaxmd_thermal</p><h1>{escape(title)}</h1><p class="lead">{escape(done)} Reference: '
        f"{escape(found['reference'])}, {found['temperature_K']:g} K.</p></header>"
        f'<section class="cards">{"".join(cards)}</section>'
    )


@styled
def parity(table: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Conductivity of the potential over that of DFT."""
    points = [r for r in table if r["kappa"]]
    if not points:
        return None
    figure, axis = new_figure(5.6, 5.0)
    dft, ours = np.array([r["kappa_dft"] for r in points]), np.array([r["kappa"] for r in points])
    ends = np.array([0.6 * min(dft.min(), ours.min()), 1.6 * max(dft.max(), ours.max())])
    axis.plot(ends, ends, color=GREY, lw=1.0)
    axis.fill_between(ends, 0.5 * ends, 2 * ends, color=GREY, alpha=0.12, lw=0)
    axis.plot(dft, ours, "o", color=BLUE, ms=5, label="this campaign")
    theirs = [(r["kappa_dft"], r["published_kappa"]) for r in points if r.get("published_kappa")]
    if theirs:
        axis.plot(*zip(*theirs), "o", mfc="none", mec=RED, ms=9, label="published")
    if len(points) <= 25:
        for r in points:
            axis.annotate(
                r["name"], (r["kappa_dft"], r["kappa"]), xytext=(6, -4), textcoords="offset points", fontsize=8
            )
    axis.set(
        xscale="log",
        yscale="log",
        xlim=ends,
        ylim=ends,
        xlabel="κ of DFT (W/(m K))",
        ylabel="κ of the potential (W/(m K))",
    )
    axis.legend(**ABOVE, ncols=2)
    return figure


@styled
def errors(table: Sequence[Mapping[str, Any]]) -> Figure | None:
    """SRME of every compound, ascending."""
    if not table:
        return None
    order = sorted(table, key=lambda r: r["srme"])
    figure, axis = new_figure(6.4, max(2.0, 0.6 + 0.2 * len(order)))
    y = np.arange(len(order))
    axis.barh(
        y, [r["srme"] for r in order], color=[RED if r["failed"] or r["error"] else BLUE for r in order], height=0.7
    )
    median = [
        (r["published_median_srme"], i) for i, r in enumerate(order) if r.get("published_median_srme") is not None
    ]
    if median:
        axis.plot(*zip(*median), "|", color="#5b6570", ms=8, mew=2)
    axis.set_yticks(y, [f"{r['name']} {r['structure'][:2]}" for r in order], fontsize=8)
    axis.set(xlabel="SRME", xlim=(0, None), ylim=(-0.6, len(order) - 0.4))
    axis.grid(axis="y", visible=False)
    return figure


def _table(found: Mapping[str, Any]) -> str:
    if not found["rows"]:
        return ""
    head = "".join(f"<th>{escape(title)}</th>" for title in SHOWN.values())
    lines = []
    for r in found["rows"]:
        cells = "".join(f"<td>{escape(_shown(r.get(key)))}</td>" for key in SHOWN)
        lines.append(f"<tr>{cells}</tr>")
        reason = r["failed"] or r["error"]
        if reason:
            lines.append(f'<tr><td colspan={len(SHOWN)} class="why">{escape(reason)}</td></tr>')
    return (
        f'<section><h2>All compounds</h2><figure class="wide many"><table class=tensor><tr>{head}</tr>{"".join(lines)}</table>'
        "<figcaption>Conductivities in W/(m K); seconds of all stages; GB: peak memory of the process. Failed compounds count "
        "with SRE and SRME 2, as the benchmark does.</figcaption></figure></section>"
    )


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) > 1e-12 else "0"
    return "–" if value is None else str(value)


def _made(found: Mapping[str, Any], directory: Path) -> str:
    pairs = [("date", found["date"]), ("machine", found["machine"]), *found["versions"].items()]
    command = ""
    if (Path(directory) / "command.json").exists():
        line = json.loads((Path(directory) / "command.json").read_text()).get("line")
        command = f"<p>This page comes from</p><pre>{escape(line)}</pre>" if line else ""
    return (
        '<section class="fine"><h2>How this was made</h2><p>Metrics of Póta, Ahlawat, Csányi, Simoncelli, arXiv:2408.00755. '
        "Conventional cells, displacements of 0.03 Å, linear tetrahedra, natural isotopes, no non-analytic term of the "
        f"potential, 300 K.</p>{command}{rows(pairs)}</section>"
    )
