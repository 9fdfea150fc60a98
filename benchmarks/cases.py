"""What is measured. Each case takes a `Bench` and adds lines to its report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import argon
from benchmarks.foundation import foundation_flux, nequix, unfolding
from benchmarks.harness import Report, Timing, Worker, Workers, ratio, relative_error, round_robin, spread
from benchmarks.lattice import compound, gradient, phonon_phonon
from benchmarks.training import training

PRECISIONS = ("float64", "float32")
LAMMPS = "LAMMPS serial double"
JAX_MD = "jax-md OrderedSparse"
FORCE_TOLERANCE = {"ours float64": 1e-10, "ours float32": 1e-3, "jax-md float64": 1e-6, "jax-md float32": 1e-3}
"""Relative to the largest force. In float32 a pair within rounding of the cutoff (a lattice shell lies right there) may
be taken for in or out, which changes a force by 1e-4. jax-md keeps its cutoff and box in float32 even in float64."""

ATOM_STEPS = {"ours": 3e6, "lammps": 3e6, "jax-md": 1e6}
"""Work of one item: about one second, three for jax-md, and never fewer than MIN_STEPS, for several list builds."""
MIN_STEPS = 100


@dataclass
class Bench:
    """How a benchmark run is to be done."""

    report: Report
    core: int
    rounds: int
    sizes: tuple[int, ...]
    scale: float = 1.0
    foundation_sizes: tuple[int, ...] = (64, 216, 512)
    growth_sizes: tuple[int, ...] = (864, 4000, 19652, 97556)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="bench-")))

    def saved(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> Path:
        """File of an initial state, made once."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            np.savez(path, **make())
        return path

    def state(self, n_atoms: int) -> Path:
        return self.saved(f"argon-{n_atoms}", lambda: argon.initial_state(n_atoms))

    def steps(self, program: str, n_atoms: int) -> int:
        """Steps of one work item, a multiple of ten (fluxes are sampled every ten steps)."""
        wanted = self.scale * ATOM_STEPS[program] / n_atoms
        return max(MIN_STEPS if self.scale >= 1 else 20, round(wanted / 10) * 10)


def throughput(bench: Bench) -> None:
    """NVE without output, against LAMMPS and jax-md; forces of the first state are compared before."""
    for n in bench.sizes:
        goal = n >= 4000
        with Workers() as workers:
            work = {"lammps": _lammps(bench, workers, n)}
            for precision in PRECISIONS:
                work[f"ours {precision}"] = _ours(bench, workers, n, precision)
                work[f"jax-md {precision}"] = _jax_md(bench, workers, n, precision)
            reference = work["lammps"][0].forces(bench.folder)
            for name, tolerance in FORCE_TOLERANCE.items():
                error = relative_error(work[name][0].forces(bench.folder), reference)
                print(f"forces N={n} {name} against LAMMPS: relative difference {error:.1e} (allowed {tolerance:.0e})")
                if not error <= tolerance:
                    raise RuntimeError(f"{name} computes other forces than LAMMPS: there is nothing to compare")
            timings = round_robin(work, bench.rounds, warm_up=2)
            print(f"temperatures N={n}: " + ", ".join(f"{k} {_temperature(w[0]):.1f} K" for k, w in work.items()))
        _compile_times(bench, n, timings)
        lammps = timings["lammps"]
        bench.report.add("NVE: LAMMPS", n, "float64", lammps.median * 1e6, "us/atom-step", extra=str(lammps))
        for precision, limit in (("float64", "<=2.5"), ("float32", "<=1.5")):
            ours, jax_md = timings[f"ours {precision}"], timings[f"jax-md {precision}"]
            r = ratio(ours, lammps)
            bench.report.add(
                "NVE", n, precision, ours.median * 1e6, "us/atom-step",
                peer=LAMMPS, against=float(np.median(r)), goal=limit if goal else None,
                extra=f"{ours}, ratio {spread(r)}",
            )  # fmt: skip
            r = ratio(jax_md, ours)
            bench.report.add(
                "NVE: speedup", n, precision, jax_md.median * 1e6, "us/atom-step of the peer",
                peer=JAX_MD, against=float(np.median(r)), goal=">=5" if goal else None,
                extra=f"{jax_md}, ratio {spread(r)}",
            )  # fmt: skip


def flux(bench: Bench) -> None:
    """Cost of the heat flux every 10 steps and at every step, relative to the same program without it."""
    for n in bench.sizes:
        goals = {10: "<=1.25", 1: "<=2.2"} if n >= 4000 else {10: None, 1: None}
        with Workers() as workers:
            work = {}
            for every in (0, 10, 1):
                work[f"lammps {every}"] = _lammps(bench, workers, n, flux_every=every)
                for precision in PRECISIONS:
                    work[f"{precision} {every}"] = _ours(bench, workers, n, precision, flux_every=every)
            timings = round_robin(work, bench.rounds, warm_up=2)
        for every in (10, 1):
            label = "every step" if every == 1 else f"every {every} steps"
            for program in ("lammps", *PRECISIONS):
                ours = program != "lammps"
                t = timings[f"{program} {every}"]
                r = ratio(t, timings[f"{program} 0"])
                bench.report.add(
                    f"heat flux {label}" if ours else f"heat flux {label}: LAMMPS",
                    n, program if ours else "float64", t.median * 1e6, "us/atom-step",
                    peer="the same without flux", against=float(np.median(r)), goal=goals[every] if ours else None,
                    extra=f"{t}, ratio {spread(r)}",
                )  # fmt: skip


def replicas(bench: Bench) -> None:
    """Four replicas in one program, per replica, against one."""
    for n in bench.sizes:
        if n > 4000:
            continue
        with Workers() as workers:
            work = {}
            for precision in PRECISIONS:
                for count in (1, 4):
                    work[f"{precision} {count}"] = _ours(bench, workers, n, precision, replicas=count)
            timings = round_robin(work, bench.rounds, warm_up=2)
        for precision in PRECISIONS:
            four = timings[f"{precision} 4"]
            r = ratio(four, timings[f"{precision} 1"])
            bench.report.add(
                "4 replicas, each", n, precision, four.median * 1e6, "us/atom-step",
                peer="one replica", against=float(np.median(r)), goal="<=1.1" if n >= 4000 else None,
                extra=f"{four}, ratio {spread(r)}",
            )  # fmt: skip


def memory(bench: Bench) -> None:
    """Temporaries of the compiled programs, as XLA reports them."""
    for n in bench.sizes:
        for precision in PRECISIONS:
            with Workers() as workers:
                worker, _, _ = _ours(bench, workers, n, precision)
                used = {name: size / n for name, size in worker.ask("memory").items()}
            bench.report.add(
                "temporaries, build and step", n, precision, (used["build"] + used["step"]) / 1e3, "kB/atom",
                goal="<=5" if n >= 4000 else None,
                extra=", ".join(f"{name} {size:.0f} B/atom" for name, size in used.items()),
            )  # fmt: skip


def growth(bench: Bench) -> None:
    """Exponent of the cost of a step over the number of atoms."""
    for precision in PRECISIONS:
        with Workers() as workers:
            work = {str(n): _ours(bench, workers, n, precision) for n in bench.growth_sizes}
            timings = round_robin(work, bench.rounds)
        per_step = np.array([timings[str(n)].rounds * n for n in bench.growth_sizes])
        log_n = np.log(bench.growth_sizes)
        exponents = np.array([np.polyfit(log_n, np.log(column), 1)[0] for column in per_step.T])
        costs = ", ".join(f"{n}: {timings[str(n)].median * 1e6:.3g}" for n in bench.growth_sizes)
        bench.report.add(
            "growth of cost with atoms", max(bench.growth_sizes), precision, float(np.median(exponents)), "exponent",
            goal="1.0+-0.1", extra=f"{spread(exponents)}; us/atom-step at {costs}",
        )  # fmt: skip


def network(bench: Bench) -> None:
    """(energy + forces + heat flux) / (energy + forces) of networks of 1, 3 and 5 layers."""
    n = 256
    evaluations = {1: 20, 3: 10, 5: 5} if bench.scale >= 1 else {1: 4, 3: 2, 5: 1}
    for precision in reversed(PRECISIONS):
        with Workers() as workers:
            work = {}
            for layers, count in evaluations.items():
                for with_flux in (False, True):
                    name = f"{layers} {with_flux}"
                    worker = workers.start(
                        name, "ours_network", core=bench.core, precision=precision, layers=layers, flux=with_flux
                    )
                    worker.setup(bench.state(n))
                    work[name] = (worker, count, float(count))
            timings = round_robin(work, bench.rounds)
        for layers in evaluations:
            t = timings[f"{layers} True"]
            r = ratio(t, timings[f"{layers} False"])
            bench.report.add(
                f"network of {layers} layer{'s' * (layers > 1)}, heat flux at every evaluation",
                n, precision, t.median * 1e3, "ms/evaluation",
                peer="energy and forces", against=float(np.median(r)), goal="<=1.5",
                extra=f"ratio {spread(r)}, compilation {t.warm_up:.0f} s",
            )  # fmt: skip


CASES: dict[str, Callable[[Bench], None]] = {
    "throughput": throughput,
    "flux": flux,
    "replicas": replicas,
    "memory": memory,
    "growth": growth,
    "network": network,
    "nequix": nequix,
    "foundation-flux": foundation_flux,
    "unfolding": unfolding,
    "phonon-phonon": phonon_phonon,
    "gradient": gradient,
    "compound": compound,
    "training": training,
}


def _ours(bench: Bench, workers: Workers, n: int, precision: str, flux_every: int = 0, replicas: int = 1):
    steps = bench.steps("ours", n * replicas)
    worker = workers.start(
        f"ours-{precision}-{flux_every}-{replicas}-{n}", "ours_lj", core=bench.core,
        precision=precision, flux_every=flux_every, replicas=replicas,
    )  # fmt: skip
    worker.setup(bench.state(n), steps=steps)
    return worker, steps, float(n * steps * replicas)


def _lammps(bench: Bench, workers: Workers, n: int, flux_every: int = 0):
    steps = bench.steps("lammps", n)
    worker = workers.start(f"lammps-{flux_every}-{n}", "lammps_lj", peer=True, core=bench.core, flux_every=flux_every)
    worker.setup(bench.state(n))
    return worker, steps, float(n * steps)


def _jax_md(bench: Bench, workers: Workers, n: int, precision: str):
    steps = bench.steps("jax-md", n)
    worker = workers.start(f"jax-md-{precision}-{n}", "jaxmd_lj", peer=True, core=bench.core, precision=precision)
    worker.setup(bench.state(n), steps=steps)
    return worker, steps, float(n * steps)


def _temperature(worker: Worker) -> float:
    return worker.ask("temperature")["temperature"]


def _compile_times(bench: Bench, n: int, timings: dict[str, Timing]) -> None:
    """Reported apart: the measured rounds hold none of it."""
    for precision in PRECISIONS:
        ours, peer = timings[f"ours {precision}"].warm_up, timings[f"jax-md {precision}"].warm_up
        bench.report.add(
            "NVE: compilation", n, precision, ours, "CPU s",
            peer=JAX_MD, against=ours / max(peer, 1e-3), extra=f"jax-md {peer:.1f} s",
        )  # fmt: skip
