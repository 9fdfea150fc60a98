"""Lattice dynamics: phonon-phonon interaction and whole compounds beside phono3py, and the cost of the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.foundation import MODEL, REFERENCE, weights_of
from benchmarks.harness import Workers, ratio, round_robin, spread

if TYPE_CHECKING:
    from benchmarks.cases import Bench

PHONO3PY = "phono3py, Rust kernel"
TOLERANCE = 1e-2
"""Relative, of the mean linewidth. With tetrahedra it depends on the choice of eigenvectors among degenerate modes (a few per
mille), and a relaxation that stops short of the minimum on the optimiser's path."""

ROCKSALT = {"a": 5.69, "numbers": [11, 17]}
"""Sodium chloride, close to the minimum of the potential."""


def phonon_phonon(bench: Bench) -> None:
    """Conductivity of silicon (Stillinger-Weber) from given force constants beside phono3py."""
    from jaxmd_thermal import force_constants, load_potential, relax

    folder = bench.folder / "silicon"
    if not folder.exists():
        silicon = load_potential("sw-silicon")
        force_constants(silicon, relax(silicon, "silicon"), (2, 2, 2), (2, 2, 2)).save(folder)
    mesh = max(5, round(19 * bench.scale ** (1 / 3)))
    with Workers() as workers:
        ours = workers.start("ours", "lattice_ours", core=bench.core, precision="float64", task="conductivity")
        peer = workers.start("phono3py", "lattice_reference", peer=True, core=bench.core, task="conductivity")
        for worker in (ours, peer):
            worker.setup(folder, mesh=mesh)
        timings = round_robin({"ours": (ours, 1, 1.0), "peer": (peer, 1, 1.0)}, min(3, bench.rounds))
        found = {w.name: w.ask("result") for w in (ours, peer)}
        _same(found["ours"]["linewidth"], found["phono3py"]["linewidth"])
        peaks = {w.name: w.ask("memory")["peak_kB"] / 1e6 for w in (ours, peer)}
    r = ratio(timings["peer"], timings["ours"])
    bench.report.add(
        f"conductivity of silicon, {mesh}^3, tetrahedra: speedup", 2, "float64", timings["ours"].median, "CPU s",
        peer=PHONO3PY, against=float(np.median(r)), goal=">=2.5" if mesh == 19 else None,
        extra=f"ratio {spread(r)}, peer {timings['peer'].median:.4g} s, compilation {timings['ours'].warm_up:.0f} s, "
        f"peak memory {peaks['ours']:.1f} GB (peer {peaks['phono3py']:.1f})",
    )  # fmt: skip


def gradient(bench: Bench) -> None:
    """Gradient of kappa by all parameters of Stillinger-Weber silicon, relaxed cell included, over the value."""
    mesh = max(4, round(11 * bench.scale ** (1 / 3)))
    for name, sigma in (("Gaussian", 0.3), ("tetrahedra", None)):
        with Workers() as workers:
            work = {}
            for task in ("value", "gradient"):
                worker = workers.start(task, "lattice_ours", core=bench.core, precision="float64", task=task)
                worker.setup(bench.folder, mesh=mesh, sigma=sigma)
                work[task] = (worker, 1, 1.0)
            timings = round_robin(work, bench.rounds)
        r = ratio(timings["gradient"], timings["value"])
        bench.report.add(
            f"gradient of kappa by the parameters, {name}", 64, "float64", timings["gradient"].median, "CPU s",
            peer="the value", against=float(np.median(r)), goal="<=3", extra=f"ratio {spread(r)}",
        )  # fmt: skip


def compound(bench: Bench) -> None:
    """One compound from structure to conductivity (NaCl, nequix-mp-1): relaxation, force constants, 19^3; programs once
    cold, then with what the process has compiled."""
    weights = weights_of(MODEL)
    crystal = ROCKSALT | {"supercell": 4, "fc3_supercell": 2, "mesh": 19}
    if bench.scale < 1:
        crystal |= {"supercell": 2, "fc3_supercell": 1, "mesh": 5}
    with Workers() as workers:
        ours = workers.start("ours", "lattice_ours", core=bench.core, precision="float64", task="compound")
        peer = workers.start("peer", "lattice_reference", peer=True, core=bench.core, task="compound")
        for worker in (ours, peer):
            worker.setup(bench.folder, weights=weights, crystal=crystal)
        timings = round_robin({"ours": (ours, 1, 1.0), "peer": (peer, 1, 1.0)}, 1)
        parts = {w.name: w.ask("result") for w in (ours, peer)}
        if bench.scale >= 1:
            _same(parts["ours"]["linewidth"], parts["peer"]["linewidth"])
        peaks = {w.name: w.ask("memory")["peak_kB"] / 1e6 for w in (ours, peer)}
    r = ratio(timings["peer"], timings["ours"])
    bench.report.add(
        "whole compound, warm: speedup", 8, "float64", timings["ours"].median, "CPU s",
        peer=f"{REFERENCE} and phono3py", against=float(np.median(r)), goal=">=3" if bench.scale >= 1 else None,
        extra=f"peer {timings['peer'].median:.4g} s; parts {parts['ours']['parts']}, peer's {parts['peer']['parts']}",
    )  # fmt: skip
    cold = {name: timings[name].median + timings[name].warm_up for name in timings}
    bench.report.add(
        "whole compound, cold: speedup", 8, "float64", cold["ours"], "CPU s", peer=f"{REFERENCE} and phono3py",
        against=cold["peer"] / cold["ours"], extra=f"peer {cold['peer']:.4g} s",
    )  # fmt: skip
    bench.report.add(
        "whole compound, peak memory of the process", 8, "float64", peaks["ours"], "GB", goal="<=6",
        extra=f"peer {peaks['peer']:.2f} GB",
    )  # fmt: skip


def _same(ours: float, theirs: float) -> None:
    if not abs(ours / theirs - 1) <= TOLERANCE:
        raise RuntimeError(f"the mean linewidth is {ours} THz here and {theirs} THz there: there is nothing to compare")
