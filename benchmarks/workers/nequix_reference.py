"""The peer: the `nequix` package, JAX backend without kernels; energy and forces, or a Hessian-vector product."""

from __future__ import annotations

import resource

from benchmarks.workers.protocol import pin, serve, timed

pin()

import ase  # noqa: E402
import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from nequix.data import atomic_numbers_to_indices, preprocess_graph  # noqa: E402
from nequix.model import load_model  # noqa: E402

run: dict = {}


def setup(state: str, precision: str, product: bool, weights: str, **_) -> dict:
    given = np.load(state)
    model, config = load_model(weights)  # refuses its own files once 64-bit types are on
    jax.config.update("jax_enable_x64", True)
    dtype = jnp.dtype(precision)
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    model = eqx.combine(jax.tree.map(lambda x: x.astype(dtype), arrays), rest)
    atoms = ase.Atoms(given["numbers"], given["positions"], cell=given["cell"], pbc=True)
    graph = preprocess_graph(atoms, atomic_numbers_to_indices(config["atomic_numbers"]), config["cutoff"], False)
    offsets = jnp.asarray(np.asarray(graph["shifts"]) @ given["cell"], dtype)
    senders, receivers = jnp.asarray(graph["senders"]), jnp.asarray(graph["receivers"])
    species = jnp.asarray(graph["species"])

    def energy(model, positions):
        vectors = positions[senders] - positions[receivers] + offsets
        return jnp.sum(model.node_energies(vectors, species, senders, receivers))

    def forces(model, positions):
        value, gradient = jax.value_and_grad(energy, 1)(model, positions)
        return value, -gradient

    def hessian_product(model, positions, direction):
        return jax.jvp(lambda x: jax.grad(energy, 1)(model, x), (positions,), (direction,))[1]

    arguments = [model, jnp.asarray(given["positions"], dtype)]
    if product:
        arguments.append(jnp.asarray(given["direction"], dtype))
    run.update(evaluate=eqx.filter_jit(hessian_product if product else forces), arguments=arguments, product=product)
    return {"edges": int(senders.size)}


def forces(path: str) -> dict:
    """Stores what is timed: forces, or the product."""
    out = run["evaluate"](*run["arguments"])
    np.save(path, np.asarray(out if run["product"] else out[1]))
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


if __name__ == "__main__":
    serve({"setup": setup, "advance": advance, "forces": forces, "memory": memory})
