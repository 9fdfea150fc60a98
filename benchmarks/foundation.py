"""Foundation potentials: against the reference implementation of Nequix, and the cost of the heat flux."""

from __future__ import annotations

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


def unfolded_atoms(state: dict[str, np.ndarray], reach: float) -> int:
    """Atoms and images within `reach` Å of any atom of an orthogonal cell: what an unfolded heat flux must evaluate."""
    positions, lengths = state["positions"], np.diag(state["cell"])
    steps = [np.arange(-n, n + 1) for n in np.ceil(reach / lengths).astype(int)]
    count = 0
    for shift in np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3) * lengths:
        for block in np.array_split(positions + shift, max(1, len(positions) // 64)):
            distances = np.linalg.norm(block[:, None] - positions[None], axis=-1)
            count += int((distances.min(axis=1) <= reach).sum())
    return count


def unfolding(bench: Bench) -> None:
    """Atoms that the heat flux of nequix-mp-1 would need by unfolding the cell: four layers of 6 Å reach 24 Å."""
    for n in bench.foundation_sizes:
        needed = unfolded_atoms(crystals.silicon(n), 24.0)
        bench.report.add(
            f"{MODEL}: atoms in the unfolded cell", n, "float64", needed, "atoms", peer="the cell", against=needed / n
        )


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
