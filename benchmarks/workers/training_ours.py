"""This project: the gradient of a training step by all weights."""

from __future__ import annotations

import resource

from benchmarks.workers.protocol import pin, serve, timed

pin()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from jaxmd_thermal import load_potential  # noqa: E402
from jaxmd_thermal._backend import double_precision  # noqa: E402
from jaxmd_thermal.training.batches import Batches  # noqa: E402
from jaxmd_thermal.training.data import Frame  # noqa: E402
from jaxmd_thermal.training.losses import Forces, HessianColumns, factors_of  # noqa: E402
from jaxmd_thermal.training.optimizers import Partition, adamw  # noqa: E402
from jaxmd_thermal.training.steps import Program  # noqa: E402

run: dict = {}


def setup(state: str, precision: str, task: str, weights: str, **_) -> dict:
    """`task` is "forces" (a loss of forces alone) or "phonons" (and a column of the Hessian)."""
    given = np.load(state)
    phonons = task == "phonons"
    frame = Frame(
        given["numbers"], given["positions"], given["cell"], forces=given["forces"],
        columns=given["columns"] if phonons else None, hessian=given["hessian"] if phonons else None,
    )  # fmt: skip
    losses = (Forces(20.0, "norm"), *((HessianColumns(100.0),) if phonons else ()))
    potential = load_potential(weights)
    with double_precision():
        batches = Batches([frame], potential.cutoff)
        parts = batches.parts(batches.steps(0)[0][0], 0, 1)
        partition = Partition.of(potential)
        values, others = partition.split(potential, precision)
        program = Program(partition, others, adamw(), precision, 0.999, jax.devices()[:1])
        start, factors = program.start(values), factors_of(losses, parts, 0)
    run["step"] = lambda: program.gradients(start, parts, losses, factors)
    return {}


def advance(steps: int) -> dict:
    """`steps` gradients."""

    def work():
        with double_precision():
            for _ in range(steps):
                run["last"] = jax.block_until_ready(run["step"]())

    return timed(work)


def result() -> dict:
    """Loss, and norm of its gradient by the weights."""
    last = run["last"]
    return {"loss": float(last.loss), "gradient_norm": float(optax.tree.norm(last.gradient))}


def memory() -> dict:
    """Peak of the process so far, kB."""
    return {"peak_kB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


if __name__ == "__main__":
    serve({"setup": setup, "advance": advance, "result": result, "memory": memory})
