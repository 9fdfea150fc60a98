"""Networks prepared for training: started from the statistics of the data, evaluated in other blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.potentials._learned import LearnedPotential
from jaxmd_thermal.training.statistics import Statistics


def with_statistics(potential: Any, found: Statistics) -> Any:
    """A network whose constant energies are the shifts, and whose unit of energy is the RMS force times 1 Å.

    Raises:
      InputError: a potential that is no network, or an element that it does not know.
    """
    if not isinstance(potential, LearnedPotential):
        raise InputError(f"{type(potential).__name__} has no scale and no constant energies to set: give a network")
    unknown = set(found.shifts) - set(potential.species)
    if unknown:
        raise InputError(f"the data hold the elements {sorted(unknown)}, which the network does not know")
    changes: dict[str, Any] = {
        "references": np.array([found.shifts.get(z, float(e)) for z, e in zip(potential.species, potential.references)])
    }
    if found.force_rms:
        changes["scale"] = np.asarray(found.force_rms, np.float64)
    return replace(potential, **changes)


def with_block(potential: Any, block: int | None) -> Any:
    """A network that evaluates `block` receivers at a time and recomputes them in the reverse pass; None: all at once.

    The fastest block keeps its edges in the cache: few receivers on a CPU (measured, gradient of a Hessian column with the
    published weights: 4 receivers take 0.9 of the time of 8). Potentials without blocks are returned as they are.
    """
    network = getattr(potential, "network", None)
    if network is None or not hasattr(network, "block"):
        return potential
    return replace(potential, network=network.clone(block=block))
