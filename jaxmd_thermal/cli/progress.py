"""What the terminal shows while a run computes, and the table at its end."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def announce(text: str) -> None:
    """One line on standard output."""
    print(text, flush=True)


@contextmanager
def reporter() -> Iterator[Callable[[Any], None]]:
    """A callback for `progress=`: a bar in a terminal, a line every tenth of a stage elsewhere (log files)."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"),
        console=Console(stderr=True),
    ) as bar:  # fmt: skip
        yield _Bar(bar)


class _Display:
    """What both displays say: the state, and behind the first chunk of a program how long it was compiled."""

    def __init__(self):
        self.compiled = compile_seconds()

    def line(self, progress: Any) -> str:
        if progress.compiling:
            return "compiling (once)"
        took = compile_seconds() - self.compiled
        self.compiled += took
        return state_line(progress) + (f", compiled in {duration(took)}" if took >= 1.0 else "")


class _Bar(_Display):
    def __init__(self, bar: Any):
        super().__init__()
        self.bar = bar
        self.tasks: dict[str, Any] = {}

    def __call__(self, progress: Any) -> None:
        if progress.stage not in self.tasks:
            self.tasks[progress.stage] = self.bar.add_task(progress.stage, total=progress.steps, state="")
        self.bar.update(
            self.tasks[progress.stage], completed=min(progress.step, progress.steps), state=self.line(progress)
        )


class _Lines(_Display):
    def __init__(self):
        super().__init__()
        self.shown: dict[str, int] = {}

    def __call__(self, progress: Any) -> None:
        tenth = 10 * progress.step // max(progress.steps, 1)
        if progress.compiling or tenth > self.shown.get(progress.stage, -1):
            self.shown[progress.stage] = tenth
            step = min(progress.step, progress.steps)
            print(
                f"{progress.stage}: step {step} of {progress.steps}, {self.line(progress)}",
                file=sys.stderr,
                flush=True,
            )


class Stages:
    """The steps of a calculation without time steps: each is shown while it runs, with its time and that of compilation.

    `with stages(name) as advance`: `advance(done, total)` shows how far it is.

    Attributes:
      of: what is calculated, in front of each line; with it (several calculations at once) only finished steps are shown.
      took: {stage: {"seconds", "cpu_seconds", "compile_seconds"}} of what has been computed.
    """

    def __init__(self, of: str = ""):
        self.of = of
        self.took: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, name: str, detail: str = "") -> Iterator[Callable[[int, int], None]]:
        title = (f"{self.of}, " if self.of else "") + name.replace("_", " ") + (f": {detail}" if detail else "")
        start, used, compiled = time.perf_counter(), time.process_time(), compile_seconds()
        with self._shown(title) as advance:
            yield advance
        seconds, compiling = time.perf_counter() - start, compile_seconds() - compiled
        self.took[name] = {
            "seconds": round(seconds, 3), "cpu_seconds": round(time.process_time() - used, 3),
            "compile_seconds": round(compiling, 3),
        }  # fmt: skip
        of_it = f", {duration(compiling)} of it compiling (once)" if compiling >= 1.0 else ""
        print(f"{title}: {duration(seconds)}{of_it}", file=sys.stderr, flush=True)

    @contextmanager
    def _shown(self, title: str) -> Iterator[Callable[[int, int], None]]:
        if self.of or not sys.stderr.isatty():
            if not self.of:
                print(f"{title} ...", file=sys.stderr, flush=True)
            yield _Quarters(title)
            return
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None, state="")
            yield lambda done, total: bar.update(task, state=f"{done} of {total}")


class _Quarters:
    """Lines for log files: a quarter, a half, three quarters of the evaluations."""

    def __init__(self, title: str):
        self.title, self.last = title.split(":")[0], (0, 0)

    def __call__(self, done: int, total: int) -> None:
        now = (total, 4 * done // max(total, 1))
        if now[1] and now != self.last:
            print(f"{self.title}: {done} of {total}", file=sys.stderr, flush=True)
        self.last = now


_compiled = [0.0]


def compile_seconds() -> float:
    """Seconds that this process has spent compiling (or loading compiled programs) since the first call."""
    import jax

    if not _compiled[1:]:  # the listener is registered once
        _compiled.append(0.0)

        def listen(event: str, duration_secs: float, **_: Any) -> None:
            if event == "/jax/core/compile/backend_compile_duration":
                _compiled[0] += duration_secs

        jax.monitoring.register_event_duration_secs_listener(listen)
    return _compiled[0]


def state_line(progress: Any) -> str:
    """`1.2 ns/day, 50.1 K, drift 0.03 µeV/atom, 2 min left`."""
    parts = [
        f"{progress.ns_per_day:.3g} ns/day" if math.isfinite(progress.ns_per_day) else "",
        f"{progress.temperature:.1f} K" if math.isfinite(progress.temperature) else "",
        f"drift {1e6 * progress.drift:.2g} µeV/atom" if math.isfinite(progress.drift) else "",
        f"{duration(progress.eta_s)} left" if math.isfinite(progress.eta_s) else "",
    ]
    return ", ".join(p for p in parts if p)


def duration(seconds: float) -> str:
    """`45 s`, `3.2 min`, `5.1 h`, `2.3 d`."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def summary(results: list[Any]) -> None:
    """A table of conductivities with errors and verdicts on standard output."""
    from rich.console import Console
    from rich.table import Table

    from jaxmd_thermal.report.data import with_error

    table = Table(box=None, pad_edge=False)
    for title in ("method", "atoms", "T (K)", "kappa (W/(m K))", "verdict"):
        table.add_column(title, overflow="fold")
    for r in results:
        color = "green" if r.verdict.converged else "yellow"
        table.add_row(
            r.method, str(r.n_atoms or ""), f"{r.temperature:g}", with_error(r.isotropic, r.isotropic_stderr),
            f"[{color}]{r.verdict.text}[/]",
        )  # fmt: skip
    Console(highlight=False).print(table)
