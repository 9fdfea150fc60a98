"""Foundation potentials: against the reference implementation of Nequix, and the cost of the heat flux."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import crystals
from benchmarks.harness import Workers, ratio, relative_error, round_robin, spread

if TYPE_CHECKING:
    from benchmarks.cases import Bench

REFERENCE = "nequix package"
MODEL = "nequix-mp-1"
FORCE_TOLERANCE = {"float64": 1e-10, "float32": 2e-4}
"""Relative to the largest; the reference rounds nothing in float64, and both sum in another order in float32."""


def weights_of(name: str) -> str:
    """Path of published weights on this machine. Raises InputError with the remedy where they are missing."""
    from jaxmd_thermal.io.registry import checked, model_named

    model = model_named(name)
    folder = checked(model)
    return str(folder / model.files[0].name if len(model.files) == 1 else folder)


def nequix(bench: Bench) -> None:
    """Energy and forces, and a Hessian-vector product, of nequix-mp-1 beside its reference implementation."""
    weights = weights_of(MODEL)
    for n in bench.foundation_sizes:
        path = bench.saved(f"silicon-{n}", lambda n=n: crystals.silicon(n))
        for precision in ("float32", "float64"):
            for product in (False, True)[: 1 + (n == 64)]:
                _beside_reference(bench, n, precision, product, path, weights)


def _beside_reference(bench: Bench, n: int, precision: str, product: bool, path, weights: str) -> None:
    what = "Hessian-vector product" if product else "energy and forces"
    count = max(1, round(bench.scale * 256 / n))
    with Workers() as workers:
        peer = workers.start(
            f"nequix-{precision}-{n}", "nequix_reference", peer=True, core=bench.core,
            precision=precision, product=product, weights=weights,
        )  # fmt: skip
        ours = workers.start(
            f"ours-{precision}-{n}", "ours_foundation", core=bench.core,
            precision=precision, task="product" if product else "forces", weights=weights,
        )  # fmt: skip
        peer.setup(path), ours.setup(path)
        work = {"peer": (peer, count, float(count)), "ours": (ours, count, float(count))}
        timings = round_robin(work, bench.rounds)
        error = relative_error(ours.forces(bench.folder), peer.forces(bench.folder))
        if not error <= FORCE_TOLERANCE[precision]:
            raise RuntimeError(f"{what} N={n} {precision} differ by {error:.1e}: there is nothing to compare")
        peaks = {name: worker.ask("memory")["peak_kB"] / 1e6 for name, (worker, _, _) in work.items()}
    r = ratio(timings["peer"], timings["ours"])
    bench.report.add(
        f"nequix: {what}, speedup", n, precision, timings["ours"].median * 1e3, "CPU ms/evaluation",
        peer=REFERENCE, against=float(np.median(r)), goal=">=3" if product else ">=4",
        extra=f"ratio {spread(r)}, peer {timings['peer'].median * 1e3:.4g} ms, results differ by {error:.0e}",
    )  # fmt: skip
    bench.report.add(
        f"nequix: {what}, compilation", n, precision, timings["ours"].warm_up, "CPU s",
        peer=REFERENCE, against=timings["ours"].warm_up / max(timings["peer"].warm_up, 1e-3), goal="<=1.5",
        extra=f"peer {timings['peer'].warm_up:.1f} s",
    )  # fmt: skip
    if not product:
        bench.report.add(
            f"nequix: {what}, peak memory of the process", n, precision, peaks["ours"], "GB",
            peer=REFERENCE, against=peaks["ours"] / peaks["peer"], goal="<=0.25" if n >= 512 else None,
            extra=f"peer {peaks['peer']:.2f} GB",
        )  # fmt: skip


def unfolded(state: dict[str, np.ndarray], reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the atoms of an orthogonal cell and of the images within `reach` Å of any of them, and the atom that each is.

    What an unfolded heat flux must evaluate; the cell comes first.
    """
    positions, lengths = state["positions"], np.diag(state["cell"])
    steps = [np.arange(-n, n + 1) for n in np.ceil(reach / lengths).astype(int)]
    shifts = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    found, owners = [], []
    for shift in shifts[np.argsort(np.abs(shifts).sum(axis=1), kind="stable")] * lengths:
        for block in np.array_split(np.arange(len(positions)), max(1, len(positions) // 64)):
            images = positions[block] + shift
            near = np.linalg.norm(images[:, None] - positions[None], axis=-1).min(axis=1) <= reach
            found.append(images[near])
            owners.append(block[near])
    return np.concatenate(found), np.concatenate(owners)


def unfolding(bench: Bench) -> None:
    """Atoms that the heat flux would need by unfolding the cell, and for the smallest cells its time over ours."""
    from jaxmd_thermal import load_potential

    cells = {(MODEL, n): crystals.silicon(n) for n in bench.foundation_sizes}
    cells["so3krates-snse", 256] = crystals.tin_selenide((2, 4, 4))
    for (name, n), state in cells.items():
        potential = load_potential(weights_of(name))
        positions, owners = unfolded(state, potential.interaction_steps * potential.cutoff)
        bench.report.add(
            f"{name}: atoms in the unfolded cell",
            n,
            "float64",
            len(owners),
            "atoms",
            peer="the cell",
            against=len(owners) / n,
        )
        if name == MODEL and n != bench.foundation_sizes[0]:
            continue
        _time_of_unfolding(bench, name, potential, state, positions, owners)


def _time_of_unfolding(bench: Bench, name: str, potential, state, positions, owners) -> None:
    from jaxmd_thermal import evaluate
    from jaxmd_thermal.check import _unfolded_flux
    from jaxmd_thermal.system import System

    n, velocities = len(state["positions"]), state["velocities"]
    cell = System(state["positions"], state["cell"], state["numbers"], state["masses"])
    cluster = System(positions, np.eye(3), state["numbers"][owners], state["masses"][owners], (False,) * 3)
    work = {
        "ours": lambda: evaluate(potential, cell, "heat_flux_potential", velocities=velocities)["heat_flux_potential"],
        "unfolded": lambda: _unfolded_flux(potential, cluster, velocities[owners], n)[0],
    }
    fluxes, seconds = {}, {}
    for _ in range(2):  # the first time compiles
        for key, function in work.items():
            start = time.process_time()
            fluxes[key] = function()
            seconds[key] = time.process_time() - start
    error = relative_error(fluxes["ours"], fluxes["unfolded"])
    if error > FORCE_TOLERANCE["float64"]:
        raise RuntimeError(f"{name}: the flux differs from that of the unfolded cell by {error:.1e}")
    bench.report.add(
        f"{name}: heat flux by unfolding over ours", n, "float64", seconds["unfolded"], "CPU s", peer="ours, list included",
        against=seconds["unfolded"] / seconds["ours"], extra=f"ours {seconds['ours']:.3g} s, fluxes differ by {error:.0e}",
    )  # fmt: skip


def foundation_flux(bench: Bench) -> None:
    """(energy + forces + heat flux) / (energy + forces) of the foundation potentials."""
    states = {
        MODEL: bench.saved("silicon-216", lambda: crystals.silicon(216)),
        "so3krates-snse": bench.saved("tin-selenide", lambda: crystals.tin_selenide((2, 4, 4))),
    }
    for name, path in states.items():
        weights = weights_of(name)
        n = len(np.load(path)["positions"])
        for precision in ("float32", "float64"):
            with Workers() as workers:
                work = {}
                for task in ("forces", "flux"):
                    worker = workers.start(
                        f"{name}-{task}-{precision}", "ours_foundation", core=bench.core,
                        precision=precision, task=task, weights=weights,
                    )  # fmt: skip
                    worker.setup(path)
                    work[task] = (worker, 1, 1.0)
                timings = round_robin(work, bench.rounds)
            r = ratio(timings["flux"], timings["forces"])
            bench.report.add(
                f"{name}: heat flux at every evaluation", n, precision, timings["flux"].median * 1e3, "CPU ms/evaluation",
                peer="energy and forces", against=float(np.median(r)), goal="<=1.5", extra=f"ratio {spread(r)}",
            )  # fmt: skip
