"""The result of a conductivity calculation: value, error, verdict, provenance; it plots and saves itself."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmd_thermal.errors import OutputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_FRAMES = 64
"""Shortest series that is analysed, in frames."""
TARGET_ERROR = 0.15
"""Relative standard error up to which a result counts as converged."""
MIN_LENGTH = 20.0
"""Shortest acceptable series, in correlation times."""


@dataclass(frozen=True)
class Verdict:
    """Whether the number can be used as it is, and the reason in one sentence."""

    converged: bool
    text: str


def judge(
    value: float,
    stderr: float,
    length: float,
    memory: float,
    doubts: Sequence[str],
    *,
    sound: str,
    where: str = "",
    remedy: str = "",
    target: float = TARGET_ERROR,
    runtime: float | None = None,
) -> Verdict:
    """Converged if the value is positive, its error small, nothing in doubt and each replica long; else what would cure it.

    Args:
      value, stderr: W/(m K).
      length, memory: fs of one replica and of its correlation.
      doubts: sentences about what contradicts the value, each of which keeps it from being converged.
      sound: what the text of a converged result adds; `remedy`: what one with doubts adds if it is long enough.
      where: along what the value is, if it is not one third of the trace (`directions.named`).
      target: relative error up to which a result is converged.
      runtime: s that it took; the text then tells what a sufficient length would.
    """
    ratio = stderr / value if value > 0 else np.inf
    factor = max((ratio / target) ** 2, MIN_LENGTH * memory / length)
    reasons = list(doubts)
    if length < MIN_LENGTH * memory:
        reasons.append(
            f"a replica is {length / memory:.3g} correlation times long ({length:.3g} fs), {MIN_LENGTH:g} are needed"
        )
    size = f"sigma/kappa = {100 * ratio:.0f} %" if value > 0 else f"kappa = {value:.3g} W/(m K) is not positive"
    size += f" ({where})" * bool(where)
    if ratio <= target and not reasons:
        return Verdict(True, f"converged: {size}; {sound}")
    text = f"not converged: {size}"
    if factor > 1.0 and np.isfinite(factor):
        text += f"; about {factor:.0f}x longer needed" if factor >= 1.95 else f"; about {factor:.1f}x longer needed"
        if runtime:
            text += f", about {_duration(factor * runtime)} here"
    elif doubts and remedy:
        text += f"; {remedy}"
    return Verdict(False, "; ".join([text, *reasons]))


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


@dataclass(frozen=True)
class ConductivityResult:
    """A thermal conductivity in W/(m K), with what is needed to judge and repeat it.

    `kappa` and `stderr` are (3, 3), NaN where nothing was measured. `isotropic` is the mean over the unit vectors of
    `details["directions"]`: one third of the trace where these are x, y and z, as they are without that entry. A slab or
    wire has its periodic directions there, a driven run those of its forces; the verdict then names them.
    `temperature` (K) was asked for, `mean_temperature` is what the runs had. `volume` (Å^3) and `n_atoms` are those of
    the simulated cell. `details` holds the estimators, their parameters and, under "traces", arrays for plots.
    """

    method: str
    temperature: float
    kappa: np.ndarray
    stderr: np.ndarray | None
    isotropic: float
    isotropic_stderr: float | None
    verdict: Verdict
    volume: float
    n_atoms: int | None = None
    mean_temperature: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The entry of results.json; plain Python values, what is not finite is None, traces are left out."""
        details = {k: v for k, v in self.details.items() if k != "traces"}
        return to_json(
            {
                "method": self.method,
                "temperature_K": self.temperature,
                "thermal_conductivity_W_mK": {
                    "tensor": self.kappa,
                    "tensor_stderr": self.stderr,
                    "isotropic": self.isotropic,
                    "stderr": self.isotropic_stderr,
                },
                "verdict": {"converged": self.verdict.converged, "text": self.verdict.text},
                "details": {"mean_temperature_K": self.mean_temperature, **details},
            }
        )

    def save(self, path: str | Path) -> Path:
        """Write results.json (into `path`, if that is not a .json file itself) and return where it lies.

        Atomic: a reader sees the old file or the new one. Raises `OutputError` if it cannot be written.
        """
        document = results_document([self], self.n_atoms, self.volume, self.settings, self.versions, self.seed)
        return write_json(document, path)

    def plot(self) -> Figure:
        """Autocorrelation (if there is one) and running conductivity with the estimates and their bands.

        Reads `details["traces"]`: `time_fs` with any of `autocorrelation`, `running`, `filtered`, all of one length,
        the last two in W/(m K); of a driven run `running_frames` and `running_kappa`, one curve a force. The figure
        belongs to nobody's window; save it with `.savefig`.
        """
        from matplotlib.figure import Figure

        traces, labels = self.details.get("traces", {}), ["running integral"]
        if "running_kappa" in self.details:
            time = self.details["timestep_fs"] * np.asarray(self.details["running_frames"])
            traces = {"time_fs": time, "running": np.transpose(self.details["running_kappa"])}
            labels = [
                f"running mean at {force} 1/Å" for force in np.asarray(self.details["driving_force_per_A"]).tolist()
            ]
        figure = Figure(figsize=(7.0, 5.6), layout="constrained")
        both = "autocorrelation" in traces
        axes = list(np.atleast_1d(figure.subplots(2 if both else 1, 1, sharex=both)))
        time = np.asarray(traces.get("time_fs", [0.0, 1.0])) / 1000.0
        if both:
            axes[0].plot(time, traces["autocorrelation"], lw=1.0)
            axes[0].axhline(0.0, color="0.6", lw=0.6)
            axes[0].set_ylabel("autocorrelation / C(0)")
        axis = axes[-1]
        if "running" in traces:
            grey = {"color": "0.6"} if len(labels) == 1 else {}
            axis.plot(time, traces["running"], lw=1.2, label=labels, **grey)
        if "filtered" in traces:
            axis.plot(time, traces["filtered"], color="C0", lw=1.2, label="filtered")
        for name, color in (("cepstral", "C3"), ("filtered", "C0")):
            estimate = self.details.get("estimators", {}).get(name)
            if estimate and math.isfinite(estimate["value"]):
                value, error = estimate["value"], estimate["stderr"]
                axis.axhspan(value - error, value + error, color=color, alpha=0.15, lw=0)
                axis.axhline(value, color=color, lw=1.0, ls="--", label=f"{name} {value:.4g} ± {error:.2g}")
        label = f"result {self.isotropic:.4g}"
        if self.isotropic_stderr is not None:
            label += f" ± {self.isotropic_stderr:.2g}"
            if not self.details.get("estimators"):  # no band of an estimator stands for it
                low, high = self.isotropic - self.isotropic_stderr, self.isotropic + self.isotropic_stderr
                axis.axhspan(low, high, color="0.2", alpha=0.15, lw=0)
            axis.errorbar([time[-1]], [self.isotropic], [self.isotropic_stderr], fmt="ks", ms=4, capsize=3, label=label)
        else:
            axis.plot([time[-1]], [self.isotropic], "ks", ms=4, label=label)
        cutoff = self.details.get("cutoff_time_fs")
        if cutoff:
            axis.axvline(cutoff / 1000.0, color="0.6", lw=0.8, ls=":")
        axis.set_xlabel("time (ps)")
        axis.set_ylabel("thermal conductivity (W/(m K))")
        axis.legend(frameon=False, fontsize=8)
        mark = "" if self.verdict.converged else "  (not converged)"
        axes[0].set_title(f"{self.method}, {self.temperature:g} K{mark}", fontsize=10)
        return figure


def results_document(
    results: Sequence[ConductivityResult],
    n_atoms: int | None,
    volume: float | None,
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    seed: int | None,
) -> dict[str, Any]:
    """The whole of results.json: one entry a temperature and method, and what they have in common."""
    return to_json(
        {
            "results": [r.as_dict() for r in results],
            "n_atoms": n_atoms,
            "volume_A3": volume,
            "settings": settings,
            "versions": versions,
            "seed": seed,
        }
    )


def to_json(value: Any) -> Any:
    """Plain Python values for JSON: arrays become lists, NaN and infinities None, unknown objects their text."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Enum):
        return to_json(value.value)
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(v) for v in value]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
        return to_json(np.asarray(value).tolist())
    return str(value)


def write_json(document: Mapping[str, Any], path: str | Path) -> Path:
    """Write a document atomically; `path` is a .json file or a folder that gets `results.json`."""
    path = Path(path)
    if path.suffix != ".json":
        path = path / "results.json"
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(to_json(document), file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        try:
            partial.unlink(missing_ok=True)
        except OSError:
            pass  # the folder itself is not writable; the message below says so
        message = f"{path} could not be written ({error}). Free some space or choose another folder."
        raise OutputError(message) from error
    return path
