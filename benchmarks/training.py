"""Training: a phonon fine-tuning step beside a force-training step on the same cell, and beside upstream's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks import crystals
from benchmarks.foundation import MODEL, REFERENCE, weights_of
from benchmarks.harness import Workers, ratio, round_robin, spread

if TYPE_CHECKING:
    from benchmarks.cases import Bench

TOLERANCE = 1e-3
"""Relative, of the loss and the norm of its gradient: float32, summed in another order."""


def labelled_silicon(atoms: int) -> dict[str, np.ndarray]:
    """Rattled silicon with forces and one column of the Hessian; their values do not matter for the cost."""
    state = crystals.silicon(atoms)
    rng = np.random.default_rng(0)
    n = len(state["numbers"])
    state["positions"] = state["positions"] + 0.02 * rng.standard_normal((n, 3))
    return state | {
        "forces": rng.standard_normal((n, 3)),
        "hessian": rng.standard_normal((1, n, 3)),
        "columns": np.array([5]),
    }


def training(bench: Bench) -> None:
    """Gradient by all weights of nequix-mp-1 of the loss of one structure: forces, and one column of the Hessian."""
    n = 64 if bench.scale >= 1 else 8
    weights = weights_of(MODEL)
    path = bench.saved(f"labelled-{n}", lambda: labelled_silicon(n))
    with Workers() as workers:
        work = {}
        for task in ("forces", "phonons"):
            worker = workers.start(task, "training_ours", core=bench.core, precision="float32", task=task)
            work[task] = (worker, 1, 1.0)
        peer = workers.start("peer", "training_reference", peer=True, core=bench.core)
        work["peer"] = (peer, 1, 1.0)
        for worker, _, _ in work.values():
            worker.setup(path, weights=weights)
        timings = round_robin(work, bench.rounds)
        found = {name: worker.ask("result") for name, (worker, _, _) in work.items()}
        for what in ("loss", "gradient_norm"):
            ours, theirs = found["phonons"][what], found["peer"][what]
            if not abs(ours / theirs - 1) <= TOLERANCE:
                raise RuntimeError(f"{what} is {ours} here and {theirs} there: there is nothing to compare")
        peaks = {name: worker.ask("memory")["peak_kB"] / 1e6 for name, (worker, _, _) in work.items()}
    ours = timings["phonons"]
    for name, label, other, against, goal in (
        ("forces", "phonon step over forces step", "forces step", ratio(ours, timings["forces"]), "<=3"),
        ("peer", "phonon step: speedup", f"{REFERENCE} (pft)", ratio(timings["peer"], ours), ">=1.3"),
    ):
        bench.report.add(
            f"training: {label}", n, "float32", ours.median, "CPU s", peer=other,
            against=float(np.median(against)), goal=goal if bench.scale >= 1 else None,
            extra=f"ratio {spread(against)}, other {timings[name].median:.3g} s, compilation {ours.warm_up:.0f} s "
            f"(other {timings[name].warm_up:.0f}), peak memory {peaks['phonons']:.1f} GB (other {peaks[name]:.1f})",
        )  # fmt: skip
