"""Figures of lattice dynamics: each function returns a matplotlib figure, or None when there is nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from matplotlib.figure import Figure

from jaxmd_thermal.report.data import conductivity
from jaxmd_thermal.report.figures import ABOVE, BLUE, GREEN, GREY, INK, RED, new_figure, styled

MAX_DOTS = 1500
BINS = 40
COLORS = (BLUE, RED, GREEN, INK, GREY)


@styled
def bands_and_density(phonons: Mapping[str, Any], notes: Mapping[str, Any]) -> Figure | None:
    """Bands along the standard path, and beside them the density of states, total and of each element."""
    bands, dos = phonons.get("bands"), phonons.get("dos")
    if not bands or not dos:
        return None
    figure, (left, right) = new_figure(9.6, 4.2, ncols=2, sharey=True, width_ratios=(3.2, 1))
    labels = notes.get("labels") or []
    ticks: list[tuple[float, str]] = []
    lowest = highest = 0.0
    for i, name in enumerate(sorted(bands["distance"])):
        x, f = np.asarray(bands["distance"][name]), np.asarray(bands["frequencies"][name])
        left.plot(x, f, color=BLUE, lw=1.2)
        left.plot(x, np.where(f < -1e-3, f, np.nan), color=RED, lw=2.0)
        lowest, highest = min(lowest, float(f.min())), max(highest, float(f.max()))
        a, b = labels[i] if i < len(labels) else ("", "")
        if ticks and abs(ticks[-1][0] - x[0]) < 1e-9:
            if ticks[-1][1] != a:  # the path jumps
                ticks[-1] = (ticks[-1][0], f"{ticks[-1][1]}|{a}")
        else:
            ticks.append((float(x[0]), a))
        ticks.append((float(x[-1]), b))
    for at, _ in ticks:
        left.axvline(at, color="#b4bac2", lw=0.8)
    left.axhline(0, color=GREY, lw=0.8)
    left.set_xticks([t for t, _ in ticks], [name for _, name in ticks])
    left.grid(axis="x", visible=False)
    left.set(xlim=(0, ticks[-1][0]), ylabel="frequency (THz)", ylim=(1.05 * lowest, 1.05 * highest))
    right.fill_betweenx(dos["frequencies"], 0, dos["total"], color=GREY, alpha=0.25, lw=0)
    right.plot(dos["total"], dos["frequencies"], color=INK, lw=1.0, label="total")
    numbers = list(notes.get("numbers") or [])
    projected = np.asarray(dos.get("projected", np.zeros((0, 0))))
    if len(set(numbers)) > 1 and len(projected) == len(numbers):
        for number, color in zip(dict.fromkeys(numbers), (BLUE, RED, GREEN)):
            mine = projected[[n == number for n in numbers]].sum(0)
            right.plot(mine, dos["frequencies"], color=color, lw=1.2, label=chemical_symbols[number])
        right.legend(loc="upper right")
    right.set(xlabel="states (1/THz)", xlim=(0, None))
    right.axhline(0, color=GREY, lw=0.8)
    return figure


@styled
def linewidths(modes: Any, row: int) -> Figure | None:
    """Half widths of all modes over frequency, by process."""
    figure, axis = new_figure()
    f = modes.frequencies.ravel()
    kinds = [("normal", modes.gamma_normal[row], BLUE), ("Umklapp", modes.gamma_umklapp[row], RED)]
    for name, label, color in (("gamma_isotope", "isotopes", GREEN), ("gamma_boundary", "boundary", INK)):
        if hasattr(modes, name):
            kinds.append((label, getattr(modes, name), color))
    top = 0.0
    for label, gamma, color in kinds:
        keep = (np.ravel(gamma) > 0) & (f > 0)
        x, y = f[keep], np.ravel(gamma)[keep]
        step = max(1, len(x) // MAX_DOTS + (len(x) % MAX_DOTS > 0))
        axis.plot(x[::step], y[::step], ".", color=color, ms=2.6, alpha=0.6, mew=0, label=label)
        top = max(top, float(y.max(initial=0.0)))
    if not top:
        return None
    axis.set(xlabel="frequency (THz)", ylabel="linewidth γ (THz)", yscale="log", xlim=(0, None))
    _decades(axis, top)
    axis.legend(**ABOVE, ncols=4, markerscale=3)
    return figure


@styled
def cumulative(curve: tuple[np.ndarray, np.ndarray], over: str) -> Figure | None:
    """Conductivity of all modes up to a frequency (THz) or mean free path (Å)."""
    x, kappa = curve
    figure, axis = new_figure()
    if over == "frequency":
        # In bins wide enough to hold modes of a usual mesh.
        edges = np.linspace(0.0, x[-1], BINS + 1)
        density = np.diff(np.interp(edges, x, kappa)) / np.diff(edges)
        right = axis.twinx()
        right.stairs(density, edges, color=GREY, alpha=0.3, fill=True)
        right.set_ylabel("κ(ν) (W/(m K) / THz)", color="#5b6570")
        right.grid(visible=False)
        right.set_ylim(0, None)
        axis.set_zorder(right.get_zorder() + 1)
        axis.patch.set_visible(False)
        axis.set(xlabel="frequency (THz)", xlim=(0, x[-1]))
    else:
        some = kappa > 1e-4 * kappa[-1]  # before it there is nothing to see
        x, kappa = x[some] / 10.0, kappa[some]
        axis.set(xlabel="mean free path (nm)", xscale="log")
        half = x[min(int(np.searchsorted(kappa, 0.5 * kappa[-1])), len(x) - 1)]
        axis.axvline(half, color=GREY, lw=1.0, ls=":")
        axis.annotate(f"half at {half:.3g} nm", (half, 1.0), xycoords=("data", "axes fraction"), fontsize=8, ha="left",
                      va="top", color="#5b6570", xytext=(3, 0), textcoords="offset points")  # fmt: skip
    axis.plot(x, kappa, color=BLUE, lw=1.8)
    axis.set_ylabel("cumulated κ (W/(m K))")
    axis.set_ylim(0, None)
    return figure


@styled
def mode_conductivity(modes: Any, row: int) -> Figure | None:
    """What each mode contributes, over its frequency."""
    figure, axis = new_figure()
    f = modes.frequencies
    part = modes.mode_kappa[row] / modes.weights[:, None]
    x, y = f.ravel(), part.ravel()
    keep = (y > 0) & (x > 0)
    if not keep.any():
        return None
    x, y = x[keep], y[keep]
    step = max(1, len(x) // MAX_DOTS + (len(x) % MAX_DOTS > 0))
    axis.plot(x[::step], y[::step], ".", color=BLUE, ms=2.8, alpha=0.6, mew=0)
    axis.set(xlabel="frequency (THz)", ylabel="κ of a mode (W/(m K))", yscale="log", xlim=(0, None))
    _decades(axis, float(y.max()))
    return figure


def _decades(axis: Any, top: float) -> None:
    """Six decades below the largest value; what symmetry makes zero would stretch the axis to rounding errors."""
    axis.set_ylim(max(axis.get_ylim()[0], 1e-6 * top), 2.0 * top)


@styled
def coherences(edges: np.ndarray, parts: np.ndarray) -> Figure | None:
    """Conductivity of coherences by the frequencies of the two modes."""
    if not np.any(parts > 0):
        return None
    from matplotlib.colors import ListedColormap, PowerNorm

    figure, axis = new_figure(5.6, 4.4)
    shades = np.linspace(0, 1, 64)[:, None]
    white, blue = np.array([1.0, 1.0, 1.0]), np.array([0x1F, 0x5F, 0xA8]) / 255
    image = axis.imshow(
        np.maximum(parts, 0).T, origin="lower", norm=PowerNorm(0.5), extent=(0, edges[-1], 0, edges[-1]), interpolation="nearest",
        cmap=ListedColormap((1 - shades) * white + shades * blue), aspect="equal",
    )  # fmt: skip
    bar = figure.colorbar(image, ax=axis, shrink=0.9)
    bar.set_label("W/(m K)")
    axis.set(xlabel="frequency (THz)", ylabel="frequency (THz)")
    axis.grid(visible=False)
    return figure


@styled
def over_temperature(results: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Conductivity over temperature, of every method; errors where there are some."""
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for r in results:
        value, error = conductivity(r)
        if value is not None and r.get("temperature_K"):
            name = str(r["method"]) + (" (classical)" if statistics(r) == "classical" else "")
            rows.setdefault(name, []).append((float(r["temperature_K"]), value, error or 0.0))
    if max((len(v) for v in rows.values()), default=0) < 2:
        return None
    figure, axis = new_figure()
    for (name, values), color in zip(rows.items(), COLORS):
        t, k, e = np.array(sorted(values)).T
        axis.errorbar(t, k, e if e.any() else None, fmt="o-", color=color, ms=4.5, lw=1.3, capsize=3, label=name)
    axis.set(xlabel="temperature (K)", ylabel="κ (W/(m K))")
    axis.set_ylim(0, None)
    axis.legend(**ABOVE, ncols=3)
    return figure


@styled
def all_values(rows: Sequence[tuple[str, float | None, float | None, bool]]) -> Figure | None:
    """(name, value, error, whether by lattice dynamics) on one axis."""
    some = [r for r in rows if r[1] is not None]
    if not some:
        return None
    figure, axis = new_figure(6.4, 0.36 * len(some) + 0.9)
    for y, (_, value, error, harmonic) in enumerate(some):
        color, mark = (BLUE, "o") if harmonic else (RED, "s")
        axis.errorbar([value], [-y], xerr=[[error]] * 2 if error else None, fmt=mark, color=color, ms=6, capsize=4)
        if error:
            axis.axvspan(value - error, value + error, color=color, alpha=0.08, lw=0)
    axis.set_yticks([-float(i) for i in range(len(some))], [r[0] for r in some])
    axis.set(xlabel="κ (W/(m K))", ylim=(-len(some) + 0.4, 0.6), xlim=(0, None))
    axis.grid(axis="y", visible=False)
    return figure


def statistics(entry: Mapping[str, Any]) -> str:
    """`quantum`, `classical`, or empty: the populations that a lattice result was computed with."""
    settings = (entry.get("details") or {}).get("settings") or {}
    return str(settings.get("populations") or "")


@styled
def thermodynamics(tree: Mapping[str, Any]) -> Figure | None:
    """Heat capacity and entropy over temperature."""
    if not tree:
        return None
    figure, axis = new_figure()
    axis.plot(tree["temperatures"], tree["heat_capacity"], color=BLUE, lw=1.6, label="heat capacity")
    axis.plot(tree["temperatures"], tree["entropy"], color=RED, lw=1.6, label="entropy")
    axis.set(xlabel="temperature (K)", ylabel="J/(mol K)", xlim=(0, None))
    axis.legend(**ABOVE, ncols=2)
    return figure


@styled
def free_energy(tree: Mapping[str, Any]) -> Figure | None:
    """Harmonic free energy over temperature."""
    if not tree:
        return None
    figure, axis = new_figure()
    axis.plot(tree["temperatures"], tree["free_energy"], color=BLUE, lw=1.6)
    axis.set(xlabel="temperature (K)", ylabel="free energy (kJ/mol)", xlim=(0, None))
    return figure


@styled
def displacements(tree: Mapping[str, Any], numbers: Sequence[int]) -> Figure | None:
    """Mean-square displacement of each atom along one direction."""
    if not tree:
        return None
    figure, axis = new_figure()
    seen: set[int] = set()
    for number, column in zip(numbers, np.asarray(tree["u2"]).T):
        label = None if number in seen else chemical_symbols[number]
        color = COLORS[list(dict.fromkeys(numbers)).index(number) % len(COLORS)]
        axis.plot(tree["temperatures"], column, lw=1.6, color=color, label=label)
        seen.add(number)
    axis.set(xlabel="temperature (K)", ylabel="⟨u²⟩ along one axis (Å²)", xlim=(0, None), ylim=(0, None))
    axis.legend(**ABOVE, ncols=4)
    return figure


@styled
def grueneisen(tree: Mapping[str, Any]) -> Figure | None:
    """Mode Grüneisen parameters over frequency."""
    if not tree:
        return None
    f, gamma = np.ravel(tree["frequencies"]), np.ravel(tree["gamma"])
    keep = gamma != 0
    if not keep.any():
        return None
    figure, axis = new_figure()
    step = max(1, int(keep.sum()) // MAX_DOTS)
    axis.plot(f[keep][::step], gamma[keep][::step], ".", color=BLUE, ms=2.8, alpha=0.6, mew=0)
    axis.axhline(0, color=GREY, lw=0.8)
    axis.set(xlabel="frequency (THz)", ylabel="Grüneisen parameter", xlim=(0, None))
    return figure


@styled
def quasi_harmonic(tree: Mapping[str, Any]) -> Figure | None:
    """Volume and volumetric expansion over temperature."""
    if not tree:
        return None
    figure, axis = new_figure()
    axis.plot(tree["temperatures"], 1e6 * np.asarray(tree["expansion"]), color=BLUE, lw=1.6)
    axis.set(xlabel="temperature (K)", xlim=(0, None))
    axis.set_ylabel("volumetric expansion (10⁻⁶/K)", color=BLUE)
    right = axis.twinx()
    right.plot(tree["temperatures"], tree["volume"], color=RED, lw=1.6)
    right.set_ylabel("volume (Å³)", color=RED)
    right.grid(visible=False)
    return figure
