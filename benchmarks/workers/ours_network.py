"""This project: energy and forces of a message-passing network, without and with the heat flux."""

from __future__ import annotations

from benchmarks.workers.protocol import pin, serve, timed

pin()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import argon  # noqa: E402
from jaxmd_thermal._backend import check_toolchain, double_precision  # noqa: E402
from jaxmd_thermal.derivatives import calculate  # noqa: E402
from jaxmd_thermal.neighbors import allocate  # noqa: E402
from jaxmd_thermal.potentials import EquivariantNetwork  # noqa: E402
from jaxmd_thermal.system import System  # noqa: E402

CUTOFF = 5.5
"""Å: 18 neighbours in argon, as many as a network sees at 5 Å in a denser solid."""

run: dict = {}


def setup(state: str, precision: str, layers: int, flux: bool, **_) -> dict:
    check_toolchain()
    given = np.load(state)
    n = len(given["positions"])
    system = System(
        positions=given["positions"],
        cell=np.eye(3) * float(given["side"]),
        numbers=np.full(n, 18, np.int32),
        masses=np.full(n, argon.MASS),
        pbc=(True, True, True),
    )
    potential = EquivariantNetwork.create(jax.random.key(0), (18,), CUTOFF, layers)
    neighbors = allocate(system, CUTOFF, skin=0.5)
    quantities = ("energy", "forces") + (("heat_flux",) if flux else ())

    @jax.jit
    def evaluate(potential, positions, cell, numbers, neighbors, velocities, masses):
        return calculate(
            potential,
            positions,
            cell,
            numbers,
            neighbors,
            quantities,
            velocities=velocities,
            masses=masses,
            dtype=jnp.dtype(precision),
        )

    arguments = jax.device_put(
        (potential, system.positions, system.cell, system.numbers, neighbors, given["velocities"], system.masses)
    )
    run.update(evaluate=evaluate, arguments=arguments)
    return {"slots": neighbors.plan.slots}


def advance(steps: int) -> dict:
    """`steps` evaluations."""

    def work():
        for _ in range(steps):
            jax.block_until_ready(run["evaluate"](*run["arguments"]))

    return timed(work)


def in_double(function):
    def wrapped(**arguments):
        with double_precision():
            return function(**arguments)

    return wrapped


if __name__ == "__main__":
    serve({name: in_double(f) for name, f in {"setup": setup, "advance": advance}.items()})
