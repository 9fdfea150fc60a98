"""Tensor products by matrix products beside cuEquivariance's kernels, on an accelerator.

    python -m benchmarks.kernels --atoms 512 4096

Wall time of energy and forces, and of those with the heat flux, interleaved in one process; results are compared. Where there is
no GPU it says so and times nothing: cuEquivariance has no kernels there.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import crystals
from benchmarks.foundation import FORCE_TOLERANCE, MODEL, weights_of
from benchmarks.harness import relative_error
from jaxmd_thermal import load_potential
from jaxmd_thermal._backend import check_toolchain, double_precision
from jaxmd_thermal.derivatives import calculate, required_cutoff
from jaxmd_thermal.neighbors import allocate
from jaxmd_thermal.potentials.tensor_product import SWITCH
from jaxmd_thermal.system import System

METHODS = ("matmul", "cuequivariance")


def compared(n: int, precision: str, quantities: tuple[str, ...], rounds: int) -> str:
    """A line with the two median times and their ratio."""
    state = crystals.silicon(n)
    system = System(state["positions"], state["cell"], state["numbers"], state["masses"])
    potential = load_potential(weights_of(MODEL))
    neighbors = allocate(system, required_cutoff(potential), skin=0.0, margin=1.0)

    def function(potential, positions, neighbors, velocities):
        return calculate(
            potential, positions, system.cell, system.numbers, neighbors, quantities,
            velocities=velocities, masses=system.masses, dtype=jnp.dtype(precision),
        )  # fmt: skip

    arguments = jax.device_put((potential, jnp.asarray(system.positions), neighbors, jnp.asarray(state["velocities"])))
    compiled, results = {}, {}
    for method in METHODS:
        os.environ[SWITCH] = method
        jax.clear_caches()  # JAX remembers what it traced before the switch
        compiled[method] = jax.jit(function).lower(*arguments).compile()
        results[method] = np.asarray(compiled[method](*arguments)["forces"])
    error = relative_error(results["cuequivariance"], results["matmul"])
    if error > FORCE_TOLERANCE[precision]:
        raise RuntimeError(f"forces differ by {error:.1e}: there is nothing to compare")
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(rounds):
        for method in METHODS:
            start = time.perf_counter()
            jax.block_until_ready(compiled[method](*arguments))
            times[method].append(time.perf_counter() - start)
    ours, theirs = (1e3 * float(np.median(times[method])) for method in METHODS)
    ratios = np.array(times["cuequivariance"]) / np.array(times["matmul"])
    return (
        f"{n} atoms, {precision}, {' + '.join(quantities)}: matmul {ours:.4g} ms, cuequivariance {theirs:.4g} ms, "
        f"ratio {np.median(ratios):.2f} [{ratios.min():.2f} to {ratios.max():.2f}], forces differ by {error:.0e}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--atoms", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--precision", nargs="+", choices=sorted(FORCE_TOLERANCE), default=["float32"])
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    check_toolchain()
    if jax.default_backend() != "gpu":
        print(f"JAX runs on {jax.default_backend()} here: cuEquivariance's kernels need a GPU, nothing was timed")
        return 1
    print(f"{MODEL} on {jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)
    with double_precision():
        for n in options.atoms:
            for precision in options.precision:
                for quantities in (("energy", "forces"), ("energy", "forces", "heat_flux")):
                    print(compared(n, precision, quantities, options.rounds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
