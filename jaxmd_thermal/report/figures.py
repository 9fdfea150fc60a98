"""Figures of the report: each function returns a matplotlib figure, or None when there is nothing to draw."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from jaxmd_thermal.report.data import Series, conductivity, number, with_error

BLUE, RED, GREEN, GREY, INK = "#1f5fa8", "#c2452d", "#2d8659", "#8a929c", "#1d2733"
MAX_POINTS = 1200
ABOVE: Any = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, searchable, sharp at any size
    "font.family": "DejaVu Sans",  # comes with matplotlib: the layout is the same everywhere
    "font.size": 10,
    "axes.edgecolor": "#b4bac2",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ebee",
    "grid.linewidth": 0.8,
    "xtick.color": "#5b6570",
    "ytick.color": "#5b6570",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
}


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element that scales with the page, with ids of its own and no date inside."""
    buffer = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Shown in the reader's own font, which is never wider than the one that the layout was made for.
    text = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'", r"font: \1Helvetica, Arial, 'DejaVu Sans', sans-serif", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    # Several figures share one page: every id, and every reference to it, gets the figure's name.
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%" role="img"', text, count=1)


def styled(draw: Callable[..., Figure | None]) -> Callable[..., Figure | None]:
    """Decorator: the function draws in the style of the report."""

    @functools.wraps(draw)
    def inside(*args: Any, **kwargs: Any) -> Figure | None:
        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return inside


def new_figure(width: float = 6.4, height: float = 3.4, **kwargs: Any) -> tuple[Figure, Any]:
    """A figure of a size in inches, and its axes."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(**kwargs)


def thin(x: np.ndarray, y: np.ndarray, points: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Fewer points with the same envelope: of every block the smallest and the largest value, so that spikes stay."""
    if len(x) <= points:
        return x, y
    size = -(-2 * len(x) // points)
    padded = np.append(y, np.full(-len(y) % size, y[-1]))  # the last block is filled with its last value
    cut = padded.reshape(-1, size)
    where = np.sort(np.stack([cut.argmin(1), cut.argmax(1)], 1), axis=1) + size * np.arange(len(cut))[:, None]
    where = np.unique(np.minimum(where, len(x) - 1))
    return x[where], y[where]


def time_axis(fs: np.ndarray, longest: float | None = None) -> tuple[np.ndarray, str]:
    """Times in a unit that gives readable numbers up to `longest` (fs; default: the last)."""
    if longest is None:
        longest = float(np.max(fs)) if len(fs) else 0.0
    if longest >= 2e6:
        return fs / 1e6, "ns"
    return (fs / 1e3, "ps") if longest >= 2e3 else (fs, "fs")


@styled
def temperature(series: Sequence[Series], target: float | None) -> Figure | None:
    """Temperature of every replica, with its mean."""
    series = [s for s in series if "temperature" in s.values and "time" in s.values]
    if not series:
        return None
    figure, axis = new_figure()
    longest = max(float(s.values["time"][-1]) for s in series)  # one unit for all
    for s, color in zip(series, (BLUE, RED, GREEN, INK)):
        time, unit = time_axis(s.values["time"], longest)
        for column in s.values["temperature"].T:
            axis.plot(*thin(time, column, 600), color=color, lw=0.5, alpha=0.35)
        mean = s.values["temperature"].mean(1)
        label = f"{s.label} mean {mean.mean():.2f} K".strip()
        axis.plot(*thin(time, _running_mean(mean, max(1, len(mean) // 60))), color=color, lw=1.8, label=label)
        axis.set_xlabel(f"time ({unit})")
    if target is not None:
        axis.axhline(target, color=INK, lw=0.9, ls=(0, (4, 3)), label=f"asked for {target:g} K")
    axis.set_ylabel("temperature (K)")
    axis.legend(**ABOVE, ncols=3)
    return figure


@styled
def energy_drift(series: Sequence[Series]) -> Figure | None:
    """Change of the conserved energy per atom, all replicas."""
    series = [s for s in series if "conserved_energy" in s.values and "time" in s.values and s.n_atoms]
    # A driving force does work, which the thermostat's invariant does not count.
    series = [s for s in series if s.attributes.get("settings", {}).get("command") != "hnemd"]
    if not series:
        return None
    figure, axis = new_figure()
    longest = max(float(s.values["time"][-1]) for s in series)  # one unit for all
    for s, color in zip(series, (BLUE, RED, GREEN, INK)):
        time, unit = time_axis(s.values["time"], longest)
        energy = s.values["conserved_energy"]
        change = (energy - energy[0]) / (s.n_atoms or 1) * 1e6
        for i, column in enumerate(change.T):
            label = f"{s.label} largest {np.abs(change).max():.2g} µeV/atom".strip() if i == 0 else None
            axis.plot(*thin(time, column, 800), color=color, lw=0.8, alpha=0.7, label=label)
        axis.set_xlabel(f"time ({unit})")
    axis.set_ylabel("change of conserved\nenergy (µeV/atom)")
    axis.legend(**ABOVE, ncols=2)
    return figure


@styled
def autocorrelation(traces: Mapping[str, Any], details: Mapping[str, Any]) -> Figure | None:
    """Normalised autocorrelation of the heat flux."""
    if "autocorrelation" not in traces or "time_fs" not in traces:
        return None
    figure, axis = new_figure()
    time, unit = time_axis(np.asarray(traces["time_fs"]))
    axis.plot(*thin(time, np.asarray(traces["autocorrelation"])), color=BLUE, lw=1.3)
    axis.axhline(0, color=GREY, lw=0.8)
    _mark_cutoff(axis, details, np.asarray(traces["time_fs"]), time)
    axis.set(xlabel=f"time ({unit})", ylabel="autocorrelation / C(0)")
    return figure


@styled
def running_conductivity(traces: Mapping[str, Any], entry: Mapping[str, Any], title: str = "integral") -> Figure | None:
    """Running conductivity with the estimate that is reported and its band."""
    if "running" not in traces or "time_fs" not in traces:
        return None
    details = entry.get("details") or {}
    figure, axis = new_figure()
    time, unit = time_axis(np.asarray(traces["time_fs"]))
    running = np.asarray(traces["running"])
    forces = np.asarray(traces.get("driving_force", ()), float)
    for i, column in enumerate(running.reshape(len(running), -1).T):
        label = f"running {title}" + (f" at {forces[i]:g}/Å" if forces.size > 1 else "")
        color = (GREY, BLUE, GREEN, INK)[i % 4]
        axis.plot(*thin(time, column), color=color, lw=2.4 if i == 0 else 1.4, alpha=0.7, label=label)
    if traces.get("running_stderr") is not None:
        error = np.asarray(traces["running_stderr"])
        axis.fill_between(time, running - error, running + error, color=GREY, alpha=0.25, lw=0)
    if "filtered" in traces:
        axis.plot(*thin(time, np.asarray(traces["filtered"])), color=BLUE, lw=1.6, label="noise-filtered")
    value, error = conductivity(entry)
    if value is not None:
        kind = details.get("estimator", "result")
        axis.axhline(value, color=RED, lw=1.4, label=f"{kind} {with_error(value, error)}")
        if error is not None:
            axis.axhspan(value - error, value + error, color=RED, alpha=0.14, lw=0)
    _mark_cutoff(axis, details, np.asarray(traces["time_fs"]), time)
    if entry.get("method") == "hnemd" and len(running) > 20 and value is not None:
        # The first few averages scatter far beyond what matters.
        shown = np.concatenate(
            [running[len(running) // 10 :].ravel(), [value - 4 * (error or 0), value + 4 * (error or 0), 0.0]]
        )
        axis.set_ylim(shown.min() - 0.05 * np.ptp(shown), shown.max() + 0.08 * np.ptp(shown))
    axis.set(xlabel=f"time ({unit})", ylabel="κ (W/(m K))")
    axis.legend(loc="lower right")
    return figure


@styled
def cell_size(details: Mapping[str, Any]) -> Figure | None:
    """Conductivity against the number of atoms, where cells of several sizes were run."""
    rows = [r for r in details.get("sizes") or [] if number(r.get("isotropic")) is not None]
    if len(rows) < 2:
        return None
    figure, axis = new_figure()
    errors = [number(r.get("stderr")) or 0.0 for r in rows]
    axis.errorbar(
        [r["n_atoms"] for r in rows], [r["isotropic"] for r in rows], errors, fmt="o", color=BLUE, ms=6, capsize=4
    )
    for r in rows:
        axis.annotate("×".join(map(str, r["supercell"])), (r["n_atoms"], r["isotropic"]), xytext=(8, 4),
                      textcoords="offset points", fontsize=9, color="#5b6570")  # fmt: skip
    axis.set(xlabel="atoms", ylabel="κ (W/(m K))", xlim=(0, 1.15 * max(r["n_atoms"] for r in rows)))
    return figure


def _mark_cutoff(axis: Any, details: Mapping[str, Any], fs: np.ndarray, shown: np.ndarray) -> None:
    cutoff = number(details.get("cutoff_time_fs"))
    if cutoff is not None and len(fs) > 1 and fs[-1] > fs[0] and cutoff <= fs[-1]:
        at = shown[0] + (cutoff - fs[0]) / (fs[-1] - fs[0]) * (shown[-1] - shown[0])
        axis.axvline(at, color=GREY, lw=1.0, ls=":")
        axis.annotate("cutoff", (at, 1.0), xycoords=("data", "axes fraction"), fontsize=8, color="#5b6570", ha="left",
                      va="top", xytext=(3, 0), textcoords="offset points")  # fmt: skip


@styled
def power_spectrum(traces: Mapping[str, Any]) -> Figure | None:
    """Power spectrum of the heat flux; its value at zero frequency is the conductivity."""
    if "power" not in traces or "frequency_THz" not in traces:
        return None
    frequency, power = np.asarray(traces["frequency_THz"]), np.asarray(traces["power"])
    keep = power > 0
    if keep.sum() < 2:
        return None
    figure, axis = new_figure()
    # The crystal's vibrations end somewhere; the empty decades above would squeeze them into the corner.
    total = np.cumsum(power * np.gradient(frequency))
    end = 1.3 * frequency[min(int(np.searchsorted(total, 0.998 * total[-1])), len(frequency) - 1)]
    keep &= frequency <= max(end, frequency[min(20, len(frequency) - 1)])
    axis.semilogy(*thin(frequency[keep], power[keep]), color=BLUE, lw=1.2)
    axis.set(xlabel="frequency (THz)", ylabel="power of the heat flux\n((eV Å/fs)² fs)")
    return figure


@styled
def estimators(entry: Mapping[str, Any]) -> Figure | None:
    """All estimates on one axis: what is reported must not hide that they differ."""
    details = entry.get("details") or {}
    rows = [
        (name.replace("_aic", " (plain AIC)").replace("_", " "), number(e.get("value")), number(e.get("stderr")))
        for name, e in (details.get("estimators") or {}).items()
        if isinstance(e, Mapping)
    ]
    reduced = details.get("reduced_flux") or {}
    if number(reduced.get("isotropic")) is not None:
        rows.append(("reduced flux", number(reduced["isotropic"]), number(reduced.get("stderr"))))
    replicas = ((details.get("spread") or {}).get("replica_values")) or []
    rows = [r for r in rows if r[1] is not None]
    value, error = conductivity(entry)
    if value is None or len(rows) < 2:
        return None
    figure, axis = new_figure(6.4, 0.42 * (len(rows) + 1 + bool(len(replicas))) + 0.75)
    labels = ["reported", *(r[0] for r in rows)]
    for y, (_, v, e) in enumerate([("", value, error), *rows]):
        axis.errorbar([v], [-y], xerr=[[e or 0.0]] * 2, fmt="s" if y == 0 else "o", color=RED if y == 0 else BLUE,
                      ms=6, capsize=4, lw=1.6)  # fmt: skip
    if len(replicas):
        labels.append("each replica")
        axis.plot(replicas, np.full(len(replicas), -(len(labels) - 1.0)), "|", color=GREY, ms=11, mew=1.6)
    if error is not None:
        axis.axvspan(value - error, value + error, color=RED, alpha=0.1, lw=0)
    axis.set_yticks([-float(i) for i in range(len(labels))], labels)
    axis.set_ylim(-len(labels) + 0.4, 0.6)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("κ (W/(m K))")
    return figure


@styled
def linear_regime(traces: Mapping[str, Any]) -> Figure | None:
    """Conductivity against the driving force: constant where the response is linear."""
    force = np.asarray(traces.get("driving_force", ()), float)
    kappa = np.asarray(traces.get("kappa_of_force", ()), float)
    if force.size < 2 or force.size != kappa.size:
        return None
    error = np.asarray(traces.get("kappa_of_force_stderr", np.zeros_like(kappa)), float)
    figure, axis = new_figure()
    order = np.argsort(force)
    axis.errorbar(force[order], kappa[order], error[order], fmt="o", color=BLUE, ms=5, capsize=4)
    axis.set(xlabel="driving force (1/Å)", ylabel="κ (W/(m K))", xlim=(0, None))
    return figure


@styled
def spectral_conductivity(traces: Mapping[str, Any]) -> Figure | None:
    """Spectral conductivity κ(ω) and its integral."""
    frequency = np.asarray(traces.get("spectral_frequency_THz", ()), float)
    kappa = np.asarray(traces.get("spectral_kappa", ()), float)
    if frequency.size < 2 or frequency.size != kappa.size:
        return None
    # Beyond the highest vibration there is nothing; samples reach much further.
    last = int(np.flatnonzero(np.abs(kappa) > 0.01 * np.abs(kappa).max())[-1]) if np.any(kappa) else len(kappa) - 1
    end = max(8, int(1.3 * last) + 1)
    frequency, kappa = frequency[:end], kappa[:end]
    figure, axis = new_figure()
    axis.fill_between(*thin(frequency, kappa), color=BLUE, alpha=0.25, lw=0)
    axis.plot(*thin(frequency, kappa), color=BLUE, lw=1.3)
    axis.axhline(0, color=GREY, lw=0.8)
    axis.set(xlabel="frequency (THz)", ylabel="κ(ν) (W/(m K) / THz)", xlim=(0, None))
    total = np.concatenate([[0.0], np.cumsum(0.5 * (kappa[1:] + kappa[:-1]) * np.diff(frequency))])
    right = axis.twinx()
    right.plot(*thin(frequency, total), color=RED, lw=1.3, ls=(0, (4, 2)))
    right.set_ylabel("cumulated κ (W/(m K))", color=RED)
    right.grid(visible=False)
    return figure


@styled
def structure(atoms: Any) -> Figure | None:
    """The simulated cell in a slightly turned parallel projection; near atoms are drawn last and darkest."""
    if atoms is None or len(atoms) == 0:
        return None
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors
    from matplotlib.collections import EllipseCollection, LineCollection

    turn, tilt = np.radians(-20.0), np.radians(16.0)
    about_y = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    view = (about_x @ about_y).T
    wrapped = atoms.copy()
    wrapped.wrap(eps=1e-3)
    points = wrapped.positions @ view
    order = np.argsort(points[:, 2])[-4000:]  # enough to see; a page of 100 000 circles helps nobody
    points, numbers = points[order], wrapped.numbers[order]
    depth = (points[:, 2] - points[:, 2].min()) / max(np.ptp(points[:, 2]), 1e-9)
    colors = 1.0 - (0.35 + 0.65 * depth)[:, None] * (1.0 - 0.92 * jmol_colors[numbers])
    sizes = 1.5 * covalent_radii[numbers]
    figure, axis = new_figure(4.2, 4.0)
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    edges = [(a, b) for a in range(8) for b in range(a) if np.abs(corners[a] - corners[b]).sum() == 1]
    box = corners @ atoms.cell.array @ view
    if any(atoms.pbc):
        lines = [[box[a, :2], box[b, :2]] for a, b in edges]
        axis.add_collection(LineCollection(lines, colors="#5b6570", linewidths=1.0))
    axis.add_collection(
        EllipseCollection(sizes, sizes, np.zeros_like(sizes), units="xy", offsets=points[:, :2],
                          offset_transform=axis.transData, facecolors=colors, edgecolors="#3a434d", linewidths=0.35)
    )  # fmt: skip
    shown = np.concatenate([points[:, :2], box[:, :2]]) if any(atoms.pbc) else points[:, :2]
    margin = sizes.max()
    axis.set(xlim=(shown[:, 0].min() - margin, shown[:, 0].max() + margin))
    axis.set(ylim=(shown[:, 1].min() - margin, shown[:, 1].max() + margin))
    axis.set_aspect("equal")
    axis.axis("off")
    return figure


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    if window <= 1 or len(values) < 2 * window:
        return values
    total = np.cumsum(np.concatenate([np.full(window // 2, values[:window].mean()), values,
                                      np.full(window - window // 2, values[-window:].mean())]))  # fmt: skip
    return (total[window:] - total[:-window]) / window
