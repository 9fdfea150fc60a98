"""The peer: the gradient of the `nequix` package's own loss of a phonon fine-tuning step, float32.

Its stress term is left out: it strains the positions but not the cell, and has another gradient than ours."""

from __future__ import annotations

import resource
import sys
from types import ModuleType

from benchmarks.workers.protocol import pin, serve, timed

pin()

# Its training script imports services that log to the network; the loss needs none of them.
for name in ("wandb", "wandb_osh", "wandb_osh.hooks"):
    sys.modules[name] = ModuleType(name)
sys.modules["wandb_osh.hooks"].TriggerWandbSyncHook = object  # type: ignore[attr-defined]

import ase  # noqa: E402
import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jraph  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from nequix.data import atomic_numbers_to_indices, dict_to_graphstuple, preprocess_graph  # noqa: E402
from nequix.model import load_model  # noqa: E402
from nequix.pft.data import add_hessian_col_to_graph  # noqa: E402
from nequix.pft.train import loss  # noqa: E402

run: dict = {}


def setup(state: str, weights: str, **_) -> dict:
    given = np.load(state)
    model, config = load_model(weights)
    atoms = ase.Atoms(given["numbers"], given["positions"], cell=given["cell"], pbc=True)
    graph = preprocess_graph(atoms, atomic_numbers_to_indices(config["atomic_numbers"]), config["cutoff"], False)
    graph |= {"forces": given["forces"].astype(np.float32), "energy": np.zeros(1, np.float32),
              "stress": np.zeros((3, 3), np.float32)}  # fmt: skip
    n, edges = len(atoms), len(graph["senders"])
    column = int(given["columns"][0])
    hessian = np.zeros((3 * n, 3 * n), np.float32)
    hessian[:, column] = given["hessian"][0].ravel()
    whole = add_hessian_col_to_graph(dict_to_graphstuple(graph), hessian, column)
    padded = jax.device_put(jraph.pad_with_graphs(whole, n + 1, edges + 1, 2))
    function = eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))
    run["step"] = lambda: function(model, padded, 0.0, 20.0, 0.0, 100.0)
    return {"edges": edges}


def advance(steps: int) -> dict:
    """`steps` gradients."""

    def work():
        for _ in range(steps):
            run["last"] = jax.block_until_ready(run["step"]())

    return timed(work)


def result() -> dict:
    """Loss, and norm of its gradient by the weights."""
    (value, _), gradient = run["last"]
    gradient, _ = eqx.partition(gradient, eqx.is_inexact_array)
    return {"loss": float(value), "gradient_norm": float(optax.tree.norm(gradient))}


def memory() -> dict:
    """Peak of the process so far, kB."""
    return {"peak_kB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


if __name__ == "__main__":
    serve({"setup": setup, "advance": advance, "result": result, "memory": memory})
