"""This project: the compiled chunk that every run consists of, without the driver's bookkeeping between chunks."""

from __future__ import annotations

from benchmarks.workers.protocol import pin, serve, timed

pin()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import argon  # noqa: E402
from jaxmd_thermal._backend import check_toolchain, double_precision  # noqa: E402
from jaxmd_thermal.derivatives import required_cutoff  # noqa: E402
from jaxmd_thermal.dynamics.driver import start_stage  # noqa: E402
from jaxmd_thermal.dynamics.loop import Simulation, compiled_chunk, one_step, run_chunk  # noqa: E402
from jaxmd_thermal.dynamics.nve import NVE  # noqa: E402
from jaxmd_thermal.dynamics.stages import spatial_order  # noqa: E402
from jaxmd_thermal.dynamics.state import MDState  # noqa: E402
from jaxmd_thermal.neighbors import allocate, build, make_plan  # noqa: E402
from jaxmd_thermal.potentials import LennardJones  # noqa: E402
from jaxmd_thermal.system import System  # noqa: E402

run: dict = {}


def setup(state: str, precision: str, steps: int, flux_every: int = 0, replicas: int = 1, **_) -> dict:
    """`flux_every`: steps between heat fluxes, 0 for none; `replicas`: copies advanced together."""
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
    order = spatial_order(system)
    system = system.replace(positions=system.positions[order])

    def copies(x):
        return np.broadcast_to(x, (replicas, *np.shape(x))).copy()

    potential = LennardJones(argon.EPSILON, argon.SIGMA, argon.CUTOFF)
    many = system.replace(positions=copies(system.positions), cell=copies(system.cell))
    plan = make_plan(system, required_cutoff(potential), argon.SKIN)
    neighbors = allocate(many, plan.cutoff, plan.skin, plan=plan)
    sample_every = flux_every or steps
    if steps % sample_every:
        raise ValueError(f"{steps} steps are no multiple of {sample_every}")
    simulation = Simulation(
        potential=jax.tree.map(jnp.asarray, potential),
        ensemble=jax.tree.map(jnp.asarray, NVE()),
        numbers=jnp.asarray(system.numbers),
        timestep=jnp.asarray(argon.TIMESTEP),
        field=None,
        max_temperature=jnp.asarray(jnp.inf),
        dtype=precision,
        sample_every=sample_every,
        quantities=("heat_flux",) if flux_every else (),
    )
    md = MDState(
        positions=jnp.asarray(many.positions),
        velocities=jnp.asarray(copies(given["velocities"][order])),
        cell=jnp.asarray(many.cell),
        forces=jnp.zeros((replicas, n, 3)),
        masses=jnp.asarray(copies(system.masses)),
        thermostat=None,
        key=jax.vmap(jax.random.key)(jnp.arange(replicas)),
        step=jnp.zeros(replicas, jnp.int64),
        energy=jnp.zeros(replicas),
    )
    carry = start_stage(simulation, md, neighbors)
    run.update(simulation=simulation, carry=carry, order=order, frames=steps // sample_every, steps=steps)
    return {"jax": jax.__version__, "slots": carry.neighbors.plan.slots}


def forces(path: str) -> dict:
    out = np.empty(run["carry"].md.forces.shape[1:])
    out[run["order"]] = np.asarray(run["carry"].md.forces[0])
    np.save(path, out)
    return {}


def chunk(carry):
    frames = run["frames"]
    return run_chunk(run["simulation"], (), carry, jnp.asarray(frames, jnp.int32), frames=frames)[0]


def advance(steps: int) -> dict:
    if steps % run["steps"]:
        raise ValueError(f"{steps} steps are no multiple of the compiled {run['steps']}")

    def work():
        for _ in range(steps // run["steps"]):
            run["carry"] = jax.block_until_ready(chunk(run["carry"]))

    out = timed(work)
    status = int(np.bitwise_or.reduce(np.asarray(run["carry"].status | run["carry"].neighbors.status)))
    if status:
        raise RuntimeError(f"status {status} after {steps} steps: the timing is void")
    return out


def temperature() -> dict:
    v = np.asarray(run["carry"].md.velocities[0])
    kinetic = 0.5 * argon.MASS * argon.AMU_A2_FS2 * np.sum(v**2)
    return {"temperature": 2.0 * kinetic / (3 * (len(v) - 1) * argon.BOLTZMANN)}


def memory() -> dict:
    """Bytes of temporaries of the compiled list build, of one step with forces, and of a whole chunk (both inside)."""
    carry, simulation = run["carry"], run["simulation"]
    md, neighbors = jax.tree.map(lambda x: x[0], (carry.md, carry.neighbors))

    def temporaries(function, *arguments, **static) -> int:
        program = function if hasattr(function, "lower") else jax.jit(function)
        return int(program.lower(*arguments, **static).compile().memory_analysis().temp_size_in_bytes)

    frames = run["frames"]
    return {
        "build": temporaries(lambda x, h: build(x, h, neighbors.plan), md.positions, md.cell),
        "step": temporaries(lambda s, m, nb: one_step(s, m, nb, None), simulation, md, neighbors),
        "chunk": temporaries(
            compiled_chunk(), simulation, (), carry, jnp.asarray(frames, jnp.int32), frames=frames, mesh=None
        ),
    }


def in_double(function):
    def wrapped(**arguments):
        with double_precision():
            return function(**arguments)

    return wrapped


if __name__ == "__main__":
    handlers = {"setup": setup, "forces": forces, "advance": advance, "temperature": temperature, "memory": memory}
    serve({name: in_double(f) for name, f in handlers.items()})
