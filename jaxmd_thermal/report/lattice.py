"""Parts of the page that belong to lattice dynamics."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from jaxmd_thermal.report import lattice_figures as figures
from jaxmd_thermal.report.comparison import comparable, directions_of
from jaxmd_thermal.report.data import RunData, conductivity, number, with_error
from jaxmd_thermal.report.lattice_data import LATTICE_METHODS, LatticeData
from jaxmd_thermal.report.shell import escape, framed, rows, section
from jaxmd_thermal.transport.directions import named

USUAL_KELVIN = 300.0
GLOSS = {
    "bands": "Along the standard path of this lattice; imaginary modes are drawn below zero in red. Beside: density of states.",
    "linewidths": "Half widths of all modes of the mesh, by process. The lifetime of a mode is 1/(4πγ).",
    "frequency": "Conductivity of all modes up to a frequency, and its derivative (grey).",
    "mean_free_path": "Conductivity of all modes with at most this mean free path: what a sample of that size would lose.",
    "modes": "What each mode adds to the mean of the mesh, averaged over directions; coherences are shared out to both modes.",
    "coherences": "Pairs of modes between which heat tunnels, by their two frequencies. The diagonal holds close neighbours.",
    "compare": "The same potential and lattice constant, no isotope disorder. Compare classical with classical: what differs "
    "then is anharmonicity beyond three phonons, which only dynamics has, and the finite cell of dynamics.",
    "temperature": "All temperatures of this calculation. Lattice dynamics has no statistical error.",
    "thermodynamics": "Harmonic, at constant volume, per mole of primitive cells.",
    "free": "Harmonic free energy with the zero-point energy, per mole of primitive cells.",
    "displacements": "Mean over the three directions; quantum statistics.",
    "grueneisen": "Relative change of each frequency with volume, sign reversed.",
    "quasi_harmonic": "Of the volume at which static energy plus harmonic free energy is lowest; zero-point energy included.",
}
DEFINITION = (
    "<p>Conductivity of the phonon gas: three-phonon linewidths in the relaxation-time approximation (Togo, Chaput, Tanaka, PRB "
    "91, 094306 (2015)); populations and coherences after Simoncelli, Marzari, Mauri, PRX 12, 041011 (2022); the Boltzmann "
    "equation where the method says so. Frequencies are ordinary ones in THz. There is no statistical error.</p>"
)


def is_lattice(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of results.json is of lattice dynamics."""
    return entry.get("method") in LATTICE_METHODS


def card_line(entry: Mapping[str, Any]) -> str:
    """`populations 6.65 + coherences 0.10`, with the statistics and what else distinguishes a lattice result."""
    parts = [number((entry.get(f"{n}_W_mK") or {}).get("isotropic")) for n in ("populations", "coherences")]
    statistics = figures.statistics(entry)
    shown = f"{statistics} populations" if statistics else ""
    if entry.get("method") == "wigner" and None not in parts:
        shown += f" {parts[0]:.4g} + coherences {parts[1]:.3g}"
    if entry.get("method") == "lbte" and parts[0] is not None:
        shown += f", {parts[0]:.4g} in the relaxation-time approximation"
    return shown.strip()


def cards(data: RunData) -> list[str]:
    """Of a calculation of phonons without a conductivity."""
    found = data.lattice.summary if data.lattice is not None else {}
    if not found:
        return []
    bad = str(found.get("imaginary") or "")
    lines = []
    for k, kelvin in enumerate(found.get("temperatures_K") or []):
        lines.append(f"{kelvin:g} K: C_V {found['heat_capacity_J_mol_K'][k]:.4g} J/(mol K)")
    text = bad or "every mode of the mesh and of the bands has a real frequency"
    return [
        f'<article class="card {"bad" if bad else "good"}"><p class="method">Phonons<span>harmonic lattice dynamics</span></p>'
        f'<p class="verdict"><b>{"! imaginary modes" if bad else "✓ no imaginary modes"}</b></p>'
        f'<p class="why">{escape(text)}</p><p class="why">{escape("; ".join(lines))}</p></article>'
    ]


def next_step(data: RunData, verb: str, typed: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """(sentence, verb, settings) of a command that would tell more."""
    out = str(typed.get("out") or data.directory)
    same = {k: v for k, v in typed.items() if k not in ("out", "method")}
    if verb == "phonons":
        if data.lattice is not None and data.lattice.summary.get("imaginary"):
            return (
                "Imaginary modes. Are they of the structure or of the supercell? The same in a larger one:",
                verb, same | {"supercell": [n + 1 for n in data.settings.get("supercell") or (1, 1, 1)],
                              "out": out + "-large"},
            )  # fmt: skip
        same = {k: v for k, v in same.items() if k not in ("grueneisen", "quasi_harmonic", "mesh")}
        if data.settings.get("nac"):
            same["nac"] = True
        return "How well does it conduct heat?", "wigner", same | {"mesh": [9, 9, 9], "out": out + "-wigner"}
    if any(not (r.get("verdict") or {}).get("converged") for r in data.results):
        keep = {
            k: v for k, v in same.items() if k in ("structure", "potential", "force_constants", "supercell", "protocol")
        }
        return "No conductivity. Which modes are unstable?", "phonons", keep | {"out": out + "-phonons"}
    finer = [int(n) + 4 for n in data.settings.get("mesh") or (1, 1, 1)]
    kept = ("temperature", "sigma", "isotopes", "nac", "boundary", "populations")
    files = same.get("force_constants") or f"{out}/force_constants"
    same = {"force_constants": files} | {k: v for k, v in same.items() if k in kept}
    return (
        "Is the mesh fine enough? From the same force constants:",
        "wigner", same | {"mesh": finer, "out": f"{out}-{'x'.join(map(str, finer))}"},
    )  # fmt: skip


def side_by_side(data: RunData, names: Mapping[str, tuple[str, str]]) -> str:
    """Lattice dynamics and molecular dynamics of one potential: all values on one axis, and a table with their cells."""
    both = {is_lattice(r) for r in data.results}
    if len(both) < 2:
        return ""
    lines, labelled = [], []
    reference = next((r for r in data.results if r.get("method") == "green-kubo"), None)
    for r in data.results:
        value, error = conductivity(r)
        statistics = figures.statistics(r) or "classical"
        name = ", ".join(filter(None, [names[str(r["method"])][0], statistics, named(directions_of(r))]))
        labelled.append((name, value, error, is_lattice(r)))
        mesh = ((r.get("details") or {}).get("settings") or {}).get("mesh")
        cell = f"{r.get('n_atoms')} atoms" + (f", mesh {'×'.join(map(str, mesh))}" if mesh else "")
        difference = _difference(r, reference)
        lines.append(f"<tr><td>{escape(name)}</td><td>{escape(with_error(value, error))}</td><td>{escape(cell)}</td>"
                     f"<td>{escape(difference)}</td></tr>")  # fmt: skip
    head = "".join(f"<th>{h}</th>" for h in ("method, populations", "κ (W/(m K))", "cell", "against Green-Kubo"))
    table = (
        '<figure class="wide many"><h3>Cells and differences</h3>'
        f"<table class=tensor><tr>{head}</tr>{''.join(lines)}</table><figcaption>"
        "Differences in standard errors of the dynamics; lattice dynamics has none. κ is one third of the trace unless a "
        "direction is named; then Green-Kubo's value along it is the other side of the difference.</figcaption></figure>"
    )
    return section("Lattice dynamics beside molecular dynamics", [
        framed(figures.all_values(labelled), "all", "All values", GLOSS["compare"]), table,
    ])  # fmt: skip


def _difference(entry: Mapping[str, Any], reference: Mapping[str, Any] | None) -> str:
    if reference is None or entry is reference:
        return "–"
    (value, error), (base, width), where = comparable(entry, reference) or ((None, None), (None, None), "")
    if value is None or base is None or not width:
        return "–"
    sigmas = (value - base) / float(np.hypot(width, error or 0.0))
    return f"{sigmas:+.1f} σ ({100 * (value / base - 1):+.0f} %)" + f", {where}" * bool(where)


def overview(data: RunData) -> str:
    """Bands and density of states, thermodynamics, temperature dependence."""
    found = data.lattice
    if found is None:
        return ""
    tree, notes = found.phonons, found.notes
    thermal = tree.get("thermodynamics") or {}
    parts = [
        framed(figures.bands_and_density(tree, notes), "bands", "Bands and density of states", GLOSS["bands"], wide=True),
        framed(figures.over_temperature(data.results), "kofT", "Conductivity over temperature", GLOSS["temperature"]),
        framed(figures.thermodynamics(thermal), "cv", "Heat capacity and entropy", GLOSS["thermodynamics"]),
        framed(figures.free_energy(thermal), "free", "Free energy", GLOSS["free"]),
        framed(figures.displacements(tree.get("displacements") or {}, notes.get("numbers") or []), "u2",
               "Mean-square displacements", GLOSS["displacements"]),
        framed(figures.grueneisen(tree.get("grueneisen") or {}), "gr", "Grüneisen parameters", GLOSS["grueneisen"]),
        framed(figures.quasi_harmonic(tree.get("quasi_harmonic") or {}), "qh", "Quasi-harmonic expansion",
               GLOSS["quasi_harmonic"]),
        _table(found),
    ]  # fmt: skip
    return section("Phonons", parts)


def _table(found: LatticeData) -> str:
    s = found.summary
    if not s:
        return ""
    head = "".join(f"<th>{escape(h)}</th>" for h in ("T (K)", "F (kJ/mol)", "S (J/(mol K))", "C_V (J/(mol K))"))
    columns = ("free_energy_kJ_mol", "entropy_J_mol_K", "heat_capacity_J_mol_K")
    lines = [
        f"<tr><th>{t:g}</th>" + "".join(f"<td>{s[c][k]:.5g}</td>" for c in columns) + "</tr>"
        for k, t in enumerate(s["temperatures_K"])
    ]
    extra: list[tuple[str, Any]] = [
        ("zero-point energy", f"{s['zero_point_kJ_mol']:.5g} kJ/mol"),
        ("lowest frequency of the bands", f"{s['lowest_frequency_of_bands_THz']:.4g} THz"),
    ]
    expansion, equilibrium = s.get("grueneisen") or {}, s.get("quasi_harmonic") or {}
    for k, t in enumerate(s["temperatures_K"]):
        tensor = np.array(s["mean_square_displacements_A2"][k])
        extra.append((f"⟨u²⟩ of each atom at {t:g} K", ", ".join(f"{np.trace(u) / 3:.4g}" for u in tensor) + " Å²"))
        if expansion:
            extra.append((f"Grüneisen parameter at {t:g} K", f"{expansion['mean'][k]:.4g}"))
            if expansion.get("linear_expansion_1_K"):
                extra.append((f"linear expansion at {t:g} K", _per_kelvin(expansion["linear_expansion_1_K"][k])))
            elif expansion.get("expansion_tensor_1_K"):
                extra.append((f"linear expansion at {t:g} K", _components(expansion["expansion_tensor_1_K"][k])))
            if expansion.get("volumetric_expansion_1_K"):
                extra.append(
                    (f"volumetric expansion at {t:g} K", _per_kelvin(expansion["volumetric_expansion_1_K"][k]))
                )
        if equilibrium.get("volume_A3"):
            volume, modulus = equilibrium["volume_A3"][k], equilibrium["bulk_modulus_GPa"][k]
            text = f"volume {volume:.5g} Å³, bulk modulus {modulus:.4g} GPa, volumetric expansion "
            text += _per_kelvin(equilibrium["volumetric_expansion_1_K"][k])
            extra.append((f"quasi-harmonic at {t:g} K", text))
    if expansion.get("bulk_modulus_GPa"):
        extra.append(("bulk modulus", f"{expansion['bulk_modulus_GPa']:.4g} GPa"))
    for name, part in (("expansion", expansion), ("quasi-harmonic", equilibrium)):
        if part.get("invalid"):
            extra.append((name, f"not available: {part['invalid']}"))
    return (
        f"<figure><h3>Thermodynamics</h3><table class=tensor><tr>{head}</tr>{''.join(lines)}</table>{rows(extra)}"
        f"<figcaption>{escape(GLOSS['thermodynamics'])}</figcaption></figure>"
    )


def _per_kelvin(value: float) -> str:
    return f"{1e6 * value:.4g} × 10⁻⁶ 1/K"


def _components(expansion: Any) -> str:
    """Components of an expansion tensor along Cartesian axes, without those that symmetry makes zero."""
    tensor = np.array(expansion)
    some = [(i, j) for i in range(3) for j in range(i, 3) if i == j or abs(tensor[i, j]) > 1e-6 * abs(tensor).max()]
    return ", ".join(f"{'xyz'[i]}{'xyz'[j]} {_per_kelvin(tensor[i, j])}" for i, j in some)


def result_parts(data: RunData, entry: Mapping[str, Any], key: str) -> list[str]:
    """Figures of one result: those of every method at the temperature nearest to 300 K, so that the page stays small."""
    found = data.lattice
    if found is None or not is_lattice(entry) or conductivity(entry)[0] is None:
        return []
    modes = found.modes.get(str(entry.get("mode_file")))
    mine = [r for r in data.results if r.get("mode_file") == entry.get("mode_file")]
    shown = min(mine, key=lambda r: abs(float(r["temperature_K"]) - USUAL_KELVIN))
    compared = any(not is_lattice(r) for r in data.results)
    if modes is None or shown is not entry or (compared and entry.get("method") != "wigner"):
        return []
    row = int(np.argmin(np.abs(modes.temperatures - float(entry["temperature_K"]))))
    return [
        framed(figures.linewidths(modes, row), f"{key}lw", "Linewidths", GLOSS["linewidths"]),
        *(_cumulative(modes, row, over, key) for over in ("frequency", "mean_free_path")),
        framed(figures.mode_conductivity(modes, row), f"{key}mk", "Conductivity of each mode", GLOSS["modes"]),
        _coherences(modes, row, key) if entry.get("method") == "wigner" else "",
    ]


def _cumulative(modes: SimpleNamespace, row: int, over: str, key: str) -> str:
    from jaxmd_thermal.lattice.cumulative import cumulative

    curve = cumulative(modes, over, temperature=row)  # type: ignore[arg-type]
    title = "Cumulative over " + ("frequency" if over == "frequency" else "mean free path")
    return framed(figures.cumulative(curve, over), f"{key}c{over[0]}", title, GLOSS[over])


def _coherences(modes: SimpleNamespace, row: int, key: str) -> str:
    from jaxmd_thermal.lattice.cumulative import coherence_map

    found = coherence_map(modes, points=40, temperature=row)  # type: ignore[arg-type]
    return framed(figures.coherences(*found), f"{key}co", "Coherences", GLOSS["coherences"])
