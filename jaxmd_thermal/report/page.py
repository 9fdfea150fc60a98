"""The page: one HTML file without outside resources, readable on a phone and on paper."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal.report import figures, lattice
from jaxmd_thermal.report.campaign import build_campaign_report
from jaxmd_thermal.report.comparison import comparable
from jaxmd_thermal.report.curves import traces_of
from jaxmd_thermal.report.data import RunData, conductivity, load_run, number, with_error
from jaxmd_thermal.report.shell import escape, framed, page, rows, section, write_page
from jaxmd_thermal.units import AMU_A2_FS2, BAR

MAX_SIGMAS = 3.0
"""Combined standard errors from which on two methods contradict each other."""

METHODS = {
    "green-kubo": ("Green-Kubo", "fluctuations of the heat flux at equilibrium"),
    "hnemd": ("HNEMD", "response of the heat flux to a driving force"),
    "wigner": ("Wigner", "lattice dynamics, populations and coherences"),
    "rta": ("BTE, relaxation time", "lattice dynamics, relaxation-time approximation"),
    "lbte": ("BTE, full", "lattice dynamics, linearised Boltzmann equation"),
}
POSITIONAL = ("structure", "name")
NEGATIVE = {"isotopes", "nac"}
"""Switches that may be on by default, so that the command has to say when they are off."""
SETTING_NAMES = {
    "potential": ("potential", ""),
    "structure": ("structure", ""),
    "supercell": ("supercell", ""),
    "temperature": ("temperature", "K"),
    "timestep": ("time step", "fs"),
    "steps": ("steps measured", ""),
    "equilibration": ("equilibration steps", ""),
    "equilibration_steps": ("equilibration steps", ""),
    "replicas": ("replicas", ""),
    "sample_every": ("steps between stored values", ""),
    "dtype": ("precision of the potential", ""),
    "driving_force": ("driving force", "1/Å"),
    "spectral_lags": ("memory of the spectrum", "samples"),
    "volume": ("volume (given)", "Å³"),
    "thickness": ("thickness (given)", "Å"),
    "ensemble": ("ensemble", ""),
    "mesh": ("mesh of q-points", ""),
    "fc3_supercell": ("supercell, third order", ""),
    "displacement": ("displacement", "Å"),
    "ad": ("exact derivatives", ""),
    "protocol": ("relaxation", ""),
    "sigma": ("width of Gaussians", "THz"),
    "isotopes": ("isotope scattering", ""),
    "nac": ("non-analytic correction", ""),
    "boundary": ("boundary mean free path", "Å"),
    "method": ("methods", ""),
    "populations": ("populations", ""),
    "cell_lengths_A": ("cell lengths used", "Å"),
    "cell_angles_deg": ("cell angles used", "°"),
}
GLOSS = {
    "trust": "Every estimate of the same number. The reported error is widened until none of them contradicts it.",
    "autocorrelation": "Memory of the heat flux, averaged over directions and replicas. Noise beyond the cutoff.",
    "running": "The running value and the one that is reported, with its standard error as a band.",
    "spectrum": "Power spectrum of the heat flux. Its smooth limit at zero frequency is the conductivity.",
    "temperature": "Thin: each replica. Thick: their smoothed mean. A drift would mean that it was not in equilibrium.",
    "energy": "Change since the first frame. A trend means that the time step is too long.",
    "size": "The same run in several cells. The value of the largest is reported.",
    "linear": "The same value at every driving force means that the response is linear.",
    "spectral": "Which vibrations carry the heat: spectral conductivity and its integral (dashed); potential part.",
}


def build_report(directory: str | Path) -> Path:
    """Write `DIR/report.html` from `DIR/results.json`, `run.h5`, `structure.extxyz`, and return its path.

    The page of a campaign comes from `campaign.json`.
    Pieces that are missing or damaged are left out and named at the end of the page.

    Raises:
      InputError: no run in that folder.
      OutputError: the page cannot be written.
    """
    if (Path(directory) / "campaign.json").exists():
        return build_campaign_report(Path(directory))
    data = load_run(directory)
    return write_page(Path(directory) / "report.html", render(data))


def render(data: RunData) -> str:
    """The page as a string."""
    title = _title(data)
    sections = [
        _header(data, title),
        _next_step(data),
        lattice.side_by_side(data, METHODS),
        lattice.overview(data),
        *(_result_section(data, entry, i) for i, entry in enumerate(data.results)),
        _stability(data),
        _structure(data),
        _settings(data),
        _provenance(data),
    ]
    return page(title, sections)


def _title(data: RunData) -> str:
    what = data.structure.get_chemical_formula("metal", empirical=True) if data.structure is not None else ""
    temperatures = sorted({number(r.get("temperature_K")) for r in data.results} - {None})  # type: ignore[type-var]
    at = ", ".join(f"{t:g}" for t in temperatures)
    subject = "Phonons" if data.lattice is not None else "Molecular dynamics"
    subject = "Thermal conductivity" if data.results else subject
    return subject + (f" of {what}" if what else "") + (f" at {at} K" if at else "")


def _header(data: RunData, title: str) -> str:
    cards = []
    for entry in data.results:
        value, error = conductivity(entry)
        name, how = METHODS.get(str(entry.get("method")), (str(entry.get("method")), ""))
        verdict = entry.get("verdict") or {}
        good = bool(verdict.get("converged"))
        relative = f"{100 * error / abs(value):.0f} % standard error" if value and error else "no error bar"
        if lattice.is_lattice(entry):
            relative = lattice.card_line(entry)
        cards.append(
            f'<article class="card {"good" if good else "bad"}">'
            f'<p class="method">{escape(name)} · {_temperature(entry)}<span>{escape(how)}</span></p>'
            f'<p class="kappa">{escape(with_error(value, error))}<small> W/(m K)</small></p>'
            f'<p class="verdict"><b>{"✓ converged" if good else "! not converged"}</b> · {escape(relative)}</p>'
            f'<p class="why">{escape(_reason(str(verdict.get("text") or "")))}</p></article>'
        )
    if not data.results:
        cards = lattice.cards(data)
    if not cards:
        cards.append('<article class="card"><p class="why">This run measured no conductivity.</p></article>')
    return (
        f'<header><p class="brand">jaxmd_thermal</p><h1>{escape(title)}</h1>{_agreement(data)}</header>'
        f'<section class="cards">{"".join(cards)}</section>'
    )


def _temperature(entry: Mapping[str, Any]) -> str:
    asked = number(entry.get("temperature_K"))
    mean = number((entry.get("details") or {}).get("mean_temperature_K"))
    text = f"{asked:g} K" if asked is not None else "temperature unknown"
    return escape(text + (f" (mean of the run {mean:.1f} K)" if mean is not None else ""))


def _reason(text: str) -> str:
    for start in ("converged: ", "not converged: "):
        if text.startswith(start):
            return text[len(start) :]
    return text


def _agreement(data: RunData) -> str:
    """A sentence for each pair of methods at the same temperature; red where they contradict each other."""
    pairs = _pairs(data)
    parts = []
    for a, b, where, sigmas in pairs:
        word = ("agree" if sigmas < MAX_SIGMAS else "DISAGREE") + f" {where}" * bool(where)
        parts.append(f"{a} and {b} {word}: they differ by {sigmas:.1f} combined standard errors.")
    alarm = " alarm" if any(sigmas >= MAX_SIGMAS for *_, sigmas in pairs) else ""
    return f'<p class="lead{alarm}">{escape(" ".join(parts))}</p>' if parts else ""


def _pairs(data: RunData) -> list[tuple[str, str, str, float]]:
    """(method, method, direction, difference in combined standard errors) for results at the same temperature."""
    pairs = []
    for i, a in enumerate(data.results):
        for b in data.results[i + 1 :]:
            if a.get("method") == b.get("method") or a.get("temperature_K") != b.get("temperature_K"):
                continue
            (x, dx), (y, dy), where = comparable(a, b) or ((None, None), (None, None), "")
            if x is None or y is None or not dx or not dy:
                continue
            names = [METHODS.get(str(r.get("method")), (str(r.get("method")),))[0] for r in (a, b)]
            pairs.append((names[0], names[1], where, float(abs(x - y) / np.hypot(dx, dy))))
    return pairs


def _next_step(data: RunData) -> str:
    if not data.results and data.lattice is None:
        return ""
    undecided = [r for r in data.results if not (r.get("verdict") or {}).get("converged")]
    command = dict(data.command)
    if not command.get("verb"):
        return ""
    typed = command.get("typed")
    settings = {k: v for k, v in (command.get("settings") or {}).items() if typed is None or k in typed or k == "steps"}
    if command["verb"] in ("phonons", "wigner"):
        return _suggestion(*lattice.next_step(data, command["verb"], settings))
    methods = {str(r.get("method")) for r in data.results}
    out = str(settings.get("out") or data.directory)
    at_odds = any(sigmas >= MAX_SIGMAS for *_, sigmas in _pairs(data))
    if undecided or at_odds:
        sentence = "Not converged yet. A longer run, in a new folder:"
        if not undecided:
            sentence = "The two routes contradict each other, so at least one error bar is too small. A longer run:"
        value, error = conductivity((undecided or data.results)[0])
        target = (error or 0.0) / (0.1 * abs(value)) if value else 2.0
        settings["steps"] = int(round(int(settings.get("steps") or 0) * min(max(target**2, 2.0), 100.0), -3))
        verb, settings["out"] = command["verb"], out + "-long"
    elif "hnemd" not in methods and command["verb"] == "green-kubo" and not settings.get("flux"):
        sentence = "Converged. An independent check by the other route:"
        verb, settings["driving_force"], settings["out"] = "hnemd", [[0.01, 0.0, 0.0]], out + "-hnemd"
        settings.pop("sizes", None)
    else:
        sentence = "Converged. Is the cell large enough? The same in a larger one:"
        verb, settings["out"] = command["verb"], out + "-large"
        settings["supercell"] = [int(n) + 1 for n in settings.get("supercell") or (1, 1, 1)]
    return _suggestion(sentence, verb, settings)


def _suggestion(sentence: str, verb: str, settings: Mapping[str, Any]) -> str:
    return f'<section class="next"><p>{sentence}</p><pre>{escape(command_line(verb, settings))}</pre></section>'


def command_line(verb: str, settings: Mapping[str, Any]) -> str:
    """The command that asks for these settings."""
    words = ["jaxmd-thermal", verb]
    words += [shlex.quote(str(settings[key])) for key in POSITIONAL if settings.get(key)]
    for key, value in settings.items():
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            words += [flag] if value else [f"--no-{key}"] if key in NEGATIVE else []
            continue
        if key in POSITIONAL or value in (None, [], ()):
            continue
        nested = isinstance(value, list | tuple) and isinstance(value[0], list | tuple)
        for item in value if nested else [value]:
            parts = item if isinstance(item, list | tuple) else [item]
            words += [flag, *(shlex.quote(f"{p:g}" if isinstance(p, float) else str(p)) for p in parts)]
    return " ".join(words)


def _result_section(data: RunData, entry: Mapping[str, Any], index: int) -> str:
    method = str(entry.get("method"))
    name, _ = METHODS.get(method, (method, ""))
    if lattice.is_lattice(entry) and any(not lattice.is_lattice(r) for r in data.results):
        name += f", {lattice.figures.statistics(entry)}"
    traces = {} if lattice.is_lattice(entry) else traces_of(data, entry)
    details = entry.get("details") or {}
    key = f"r{index}"
    running = "integral" if method == "green-kubo" else "average"
    parts = [
        framed(figures.running_conductivity(traces, entry, running), f"{key}run", "Conductivity", GLOSS["running"]),
        framed(figures.estimators(entry), f"{key}est", "Can it be trusted?", GLOSS["trust"]),
        framed(figures.cell_size(details), f"{key}size", "Size of the cell", GLOSS["size"]),
        framed(figures.autocorrelation(traces, details), f"{key}acf", "Autocorrelation", GLOSS["autocorrelation"]),
        framed(figures.power_spectrum(traces), f"{key}psd", "Spectrum of the heat flux", GLOSS["spectrum"]),
        framed(figures.linear_regime(traces), f"{key}lin", "Linear regime", GLOSS["linear"]),
        framed(figures.spectral_conductivity(traces), f"{key}spe", "Spectral conductivity", GLOSS["spectral"]),
        *lattice.result_parts(data, entry, key),
        _tensor(entry),
    ]
    heading = f"{name}, {entry['temperature_K']:g} K" if number(entry.get("temperature_K")) is not None else name
    return section(heading, parts)


def _tensor(entry: Mapping[str, Any]) -> str:
    kappa = entry.get("thermal_conductivity_W_mK") or {}
    tensor, stderr = kappa.get("tensor"), kappa.get("tensor_stderr")
    if not tensor:
        return ""
    caption = "W/(m K), Cartesian axes, without statistical errors."
    if stderr:
        caption = "W/(m K), Cartesian axes, with standard errors. Off-diagonal elements of a cubic crystal are zero within them."
    else:  # what symmetry makes zero is zero up to rounding
        largest = max((abs(number(v) or 0.0) for row in tensor for v in row), default=0.0)
        tensor = [[0.0 if number(v) is not None and abs(v) < 1e-9 * largest else v for v in row] for row in tensor]
    lines = []
    for i, row in enumerate(tensor):
        cells = "".join(
            "<td>–</td>"
            if number(v) is None
            else f"<td>{escape(with_error(number(v), number(stderr[i][j]) if stderr else None))}</td>"
            for j, v in enumerate(row)
        )
        lines.append(f"<tr><th>{'xyz'[i]}</th>{cells}</tr>")
    return (
        "<figure><h3>Tensor</h3><table class=tensor><tr><th></th><th>x</th><th>y</th><th>z</th></tr>"
        f"{''.join(lines)}</table><figcaption>{caption}</figcaption></figure>"
    )


def _stability(data: RunData) -> str:
    target = next((number(r.get("temperature_K")) for r in data.results), number(data.settings.get("temperature")))
    parts = [
        framed(figures.temperature(data.series, target), "temperature", "Temperature", GLOSS["temperature"]),
        framed(figures.energy_drift(data.series), "energy", "Energy conservation", GLOSS["energy"]),
    ]
    return section("Was the run sound?", parts)


def _structure(data: RunData) -> str:
    atoms = data.structure
    volume = number(data.document.get("volume_A3"))
    pairs: list[tuple[str, Any]] = [("atoms", data.document.get("n_atoms"))]
    if atoms is not None:
        lengths, angles = atoms.cell.lengths(), atoms.cell.angles()
        periodic = ", ".join(a for a, p in zip("abc", atoms.pbc) if p) or "none"
        pairs = [
            ("formula", atoms.get_chemical_formula("metal")),
            ("atoms", len(atoms)),
            ("cell lengths", " × ".join(f"{x:.4g}" for x in lengths) + " Å"),
            ("cell angles", ", ".join(f"{x:.4g}" for x in angles) + "°"),
            ("periodic along", periodic),
        ]
    if atoms is not None and len(atoms) != data.document.get("n_atoms"):  # lattice dynamics: results per primitive cell
        pairs.append(("atoms of the primitive cell", data.document.get("n_atoms")))
        volume = atoms.get_volume() if all(atoms.pbc) else None
    if volume is not None:
        pairs.append(("volume", f"{volume:,.1f} Å³".replace(",", " ")))
        if atoms is not None:
            # amu/Å^3 -> g/cm^3 by way of the exact constants: eV/Å^3 over (Å/fs)^2, 1 bar = 1e5 Pa.
            density = atoms.get_masses().sum() / volume * AMU_A2_FS2 / BAR * 1e5 * 1e-10 / 1e3
            pairs.append(("density", f"{density:.3f} g cm⁻³"))
    table, picture = rows(pairs), figures.structure(atoms)
    shown = f'<div class="panel">{table}</div>' if table else ""
    if picture is not None:
        shown = f'<figure class="picture">{figures.to_svg(picture, "structure")}</figure>' + shown
    return section("Simulated cell", [shown])


def _settings(data: RunData) -> str:
    pairs = []
    for key, value in data.settings.items():
        if value in (None, [], "") or isinstance(value, Mapping) or key in ("seed", "out"):
            continue
        name, unit = SETTING_NAMES.get(key, (key.replace("_", " "), ""))
        if isinstance(value, list):
            value = "; ".join(" ".join(map(_number, v)) if isinstance(v, list) else _number(v) for v in value) \
                if isinstance(value[0], list) else " ".join(map(_number, value))  # fmt: skip
        else:
            value = _number(value)
        pairs.append((name, f"{value} {unit}".strip()))
    pairs.append(("seed", data.document.get("seed")))
    step, steps = number(data.settings.get("timestep")), number(data.settings.get("steps"))
    if step and steps:
        pairs.append(("length of each replica", f"{step * steps / 1e6:.4g} ns"))
    pairs = [p for p in pairs if p[1] not in (None, "")]
    half = -(-len(pairs) // 2)
    tables = "".join(f'<div class="panel">{rows(part)}</div>' for part in (pairs[:half], pairs[half:]) if part)
    return section("Settings", [tables])


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value:g}"


def _provenance(data: RunData) -> str:
    versions = rows([(k, v) for k, v in (data.document.get("versions") or {}).items()])
    command = data.command.get("line")
    repeat = f"<p>This page comes from</p><pre>{escape(command)}</pre>" if command else ""
    notes = "".join(f"<li>{escape(n)}</li>" for n in dict.fromkeys(data.notes))
    notes = f"<h3>Left out</h3><ul>{notes}</ul>" if notes else ""
    heat_flux = (
        "<p>Heat flux: J = Σ e_i v_i − Σ r_ij P_ij with the power P_ij that crosses each edge of the neighbour graph, "
        "the semi-local definition of Langer et al., PRB 108, L100302 (2023), exact for message passing; extensive, "
        "eV Å/fs. Errors are one standard error.</p>"
    )
    driven = any(not lattice.is_lattice(r) for r in data.results) or data.lattice is None
    definition = (heat_flux if driven else "") + (lattice.DEFINITION if data.lattice is not None else "")
    return f'<section class="fine"><h2>How this was made</h2>{definition}{repeat}{versions}{notes}</section>'
