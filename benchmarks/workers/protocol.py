"""Worker side of the line protocol: one JSON request a line on stdin, one JSON answer a line on the old stdout.

Standard library only, and imported before jax: pinning must come first, because XLA sizes its thread pool by the
cores it may use.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any


def pin() -> None:
    """Stay on the core that the harness chose, with one thread."""
    core = int(os.environ["BENCH_CORE"])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def cpu_seconds() -> float:
    """CPU time of this process, all its threads and its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def timed(function: Callable[[], Any]) -> dict[str, float]:
    """CPU and wall seconds of a call that returns when its work is done."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    function()
    return {"cpu_s": cpu_seconds() - cpu, "wall_s": time.perf_counter() - wall}


def serve(handlers: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer requests {"do": name, ...arguments} until stdin closes.

    A failing request is answered with {"error": traceback}; the worker lives on.
    """
    # Programs print to stdout; the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = handlers[request.pop("do")](**request)
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
