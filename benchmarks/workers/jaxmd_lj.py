"""jax-md: OrderedSparse neighbour list, its own NVE and its own update test, all steps in one compiled loop."""

from __future__ import annotations

import os

from benchmarks.workers.protocol import pin, serve, timed

pin()
os.environ["JAX_ENABLE_X64"] = "1" if os.environ.get("BENCH_PRECISION") == "float64" else "0"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import argon  # noqa: E402

CAPACITY_MULTIPLIER = 1.25

run: dict = {}


def setup(state: str, precision: str, steps: int, **_) -> dict:
    from jax_md import partition, quantity, simulate, smap, space

    if jax.config.jax_enable_x64 != (precision == "float64"):
        raise RuntimeError("BENCH_PRECISION and the requested precision differ")
    given = np.load(state)
    dtype = jnp.dtype(precision)
    box = jnp.asarray(given["side"], dtype)
    displacement, shift = space.periodic(box)

    def pair_energy(r, sigma, epsilon, **_):
        # Plain truncation: the switch of jax_md.energy would be another model.
        inside = (r > 0) & (r < argon.CUTOFF)
        s6 = (sigma / jnp.where(inside, r, 1.0)) ** 6
        return jnp.where(inside, 4.0 * epsilon * (s6 * s6 - s6), 0.0)

    energy = smap.pair_neighbor_list(
        pair_energy,
        space.canonicalize_displacement_or_metric(displacement),
        sigma=jnp.asarray(argon.SIGMA, dtype),
        epsilon=jnp.asarray(argon.EPSILON, dtype),
    )
    neighbor_fn = partition.neighbor_list(
        displacement,
        box,
        argon.CUTOFF,
        dr_threshold=argon.SKIN,
        capacity_multiplier=CAPACITY_MULTIPLIER,
        format=partition.OrderedSparse,
    )
    positions = jnp.asarray(given["positions"], dtype)
    neighbors = neighbor_fn.allocate(positions)
    force = jax.jit(quantity.force(energy))
    init, apply = simulate.nve(energy, shift, argon.TIMESTEP)
    # Mass in eV fs^2/Å^2, so that time is in fs.
    mass = argon.MASS * argon.AMU_A2_FS2
    md = init(jax.random.PRNGKey(0), positions, 0.0, mass=mass, neighbor=neighbors)
    md = md.set(momentum=mass * jnp.asarray(given["velocities"], dtype))

    def one(_, carry):
        md, neighbors = carry
        md = apply(md, neighbor=neighbors)
        return md, neighbors.update(md.position)

    @jax.jit
    def many(carry):
        return jax.lax.fori_loop(0, steps, one, carry)

    run.update(carry=(md, neighbors), many=many, force=force, steps=steps, mass=mass)
    return {"jax": jax.__version__}


def forces(path: str) -> dict:
    md, neighbors = run["carry"]
    np.save(path, np.asarray(run["force"](md.position, neighbor=neighbors), np.float64))
    return {}


def advance(steps: int) -> dict:
    if steps % run["steps"]:
        raise ValueError(f"{steps} steps are no multiple of the compiled {run['steps']}")

    def work():
        for _ in range(steps // run["steps"]):
            run["carry"] = jax.block_until_ready(run["many"](run["carry"]))

    out = timed(work)
    if bool(run["carry"][1].did_buffer_overflow):
        raise RuntimeError("the neighbour list of jax-md overflowed: the timing is void")
    return out


def temperature() -> dict:
    momentum = np.asarray(run["carry"][0].momentum, np.float64)
    kinetic = 0.5 * np.sum(momentum**2) / run["mass"]
    return {"temperature": 2.0 * kinetic / (3 * (len(momentum) - 1) * argon.BOLTZMANN)}


if __name__ == "__main__":
    serve({"setup": setup, "forces": forces, "advance": advance, "temperature": temperature})
