"""This project: a foundation potential; energy and forces, those with the heat flux, or a Hessian-vector product."""

from __future__ import annotations

import resource

from benchmarks.workers.protocol import pin, serve, timed

pin()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from jaxmd_thermal import load_potential  # noqa: E402
from jaxmd_thermal._backend import check_toolchain, double_precision  # noqa: E402
from jaxmd_thermal.derivatives import calculate, required_cutoff  # noqa: E402
from jaxmd_thermal.neighbors import allocate  # noqa: E402
from jaxmd_thermal.potentials.base import neighbor_demands  # noqa: E402
from jaxmd_thermal.system import System  # noqa: E402

run: dict = {}


def setup(state: str, precision: str, task: str, weights: str, **_) -> dict:
    """`task` is "forces", "flux" or "product"; `weights` a name or a path."""
    check_toolchain()
    given = np.load(state)
    structure = (given[name] for name in ("positions", "cell", "numbers", "masses"))
    system = System(*structure, (True, True, True))
    potential = load_potential(weights)
    neighbors = allocate(system, required_cutoff(potential), **neighbor_demands(potential, moving=False))

    def wanted(potential, positions, neighbors, velocities, quantities):
        return calculate(
            potential, positions, system.cell, system.numbers, neighbors, quantities,
            velocities=velocities, masses=system.masses, dtype=jnp.dtype(precision),
        )  # fmt: skip

    def forces(potential, positions, neighbors, velocities):
        return wanted(potential, positions, neighbors, velocities, ("energy", "forces"))

    def flux(potential, positions, neighbors, velocities):
        return wanted(potential, positions, neighbors, velocities, ("energy", "forces", "heat_flux"))

    def product(potential, positions, neighbors, direction):
        def of(x):
            return wanted(potential, x, neighbors, None, ("forces",))["forces"]

        return -jax.jvp(of, (positions,), (direction,))[1]

    along = given["direction"] if task == "product" else given["velocities"]
    run.update(
        evaluate=jax.jit({"forces": forces, "flux": flux, "product": product}[task]),
        arguments=jax.device_put((potential, system.positions, neighbors, along)),
    )
    return {"slots": neighbors.plan.slots}


def forces(path: str) -> dict:
    """Stores what is timed: forces, or the product."""
    out = run["evaluate"](*run["arguments"])
    np.save(path, np.asarray(out["forces"] if isinstance(out, dict) else out))
    return {}


def advance(steps: int) -> dict:
    """`steps` evaluations."""

    def work():
        for _ in range(steps):
            jax.block_until_ready(run["evaluate"](*run["arguments"]))

    return timed(work)


def memory() -> dict:
    """Peak of the process so far, kB."""
    return {"peak_kB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def in_double(function):
    def wrapped(**arguments):
        with double_precision():
            return function(**arguments)

    return wrapped


if __name__ == "__main__":
    actions = {"setup": setup, "advance": advance, "forces": forces, "memory": memory}
    serve({name: in_double(f) for name, f in actions.items()})
