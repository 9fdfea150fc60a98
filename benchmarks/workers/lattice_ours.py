"""This project: conductivities from force constants, from a potential, and their gradient."""

from __future__ import annotations

import resource

from benchmarks.workers.protocol import cpu_seconds, pin, serve, timed

pin()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from ase.build import bulk  # noqa: E402

from jaxmd_thermal import (  # noqa: E402
    ForceConstants,
    force_constants,
    load_potential,
    relax,
    thermal_conductivity,
)
from jaxmd_thermal._backend import double_precision  # noqa: E402
from jaxmd_thermal.lattice.conductivity import kappa_function  # noqa: E402
from jaxmd_thermal.lattice.sensitivity import differentiable_force_constants  # noqa: E402

run: dict = {"parts": {}}


def setup(state: str, task: str, mesh: int = 0, sigma: float | None = None, weights: str = "",
          crystal: dict | None = None, **_) -> dict:  # fmt: skip
    """`task` is "conductivity" (of the force constants in the folder `state`), "value", "gradient" or "compound"."""
    if task == "conductivity":
        fc = ForceConstants.from_phono3py(state)
        run["work"] = lambda: thermal_conductivity(fc, (mesh,) * 3)
    elif task == "compound":
        assert crystal is not None
        run["work"] = lambda: _compound(weights, crystal)
    else:
        run["work"] = _gradient(task == "gradient", mesh, sigma)
    return {}


def _gradient(slope: bool, mesh: int, sigma: float | None):
    potential = load_potential("sw-silicon")
    atoms = relax(potential, "silicon", "converged")
    fc = force_constants(potential, atoms, (2, 2, 2), (2, 2, 2))
    constants = differentiable_force_constants(potential, atoms, (2, 2, 2), (2, 2, 2))
    kappa = kappa_function(fc, (mesh,) * 3, sigma=sigma)

    def mean(p):
        return jnp.trace(kappa(*constants(p))[0]) / 3

    function = jax.value_and_grad(mean) if slope else mean

    def work():
        with double_precision():
            return jax.block_until_ready(function(potential))

    return work


def _compound(weights: str, crystal: dict):
    atoms = bulk("NaCl", "rocksalt", a=crystal["a"], cubic=True)
    parts, before = {}, cpu_seconds()

    def done(name: str) -> None:
        nonlocal before
        parts[name], before = round(cpu_seconds() - before, 1), cpu_seconds()

    potential = load_potential(weights)
    atoms = relax(potential, atoms, "leaderboard")
    done("relaxation")
    supercells = ((crystal["supercell"],) * 3, (crystal["fc3_supercell"],) * 3)
    fc = force_constants(potential, atoms, *supercells)
    done("force constants")
    result = thermal_conductivity(fc, (crystal["mesh"],) * 3)
    done("phonon-phonon")
    run["parts"] = parts
    return result


def advance(steps: int) -> dict:
    def work():
        for _ in range(steps):
            run["result"] = run["work"]()

    return timed(work)


def result() -> dict:
    """Mean three-phonon half width, THz, which both programs define alike, and CPU seconds of the parts."""
    x = run["result"]
    gamma = x.gamma_normal[0] + x.gamma_umklapp[0]
    return {"linewidth": float(np.average(gamma.mean(axis=1), weights=x.weights)), "parts": run["parts"]}


def memory() -> dict:
    return {"peak_kB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


if __name__ == "__main__":
    serve({"setup": setup, "advance": advance, "result": result, "memory": memory})
