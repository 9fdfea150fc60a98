"""Potentials: pytrees with `atomic_energies(graph)`.

Networks are imported at first use: Flax and e3nn-jax would double the start-up time of runs that do not need them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxmd_thermal.potentials.base import PairPotential as PairPotential
from jaxmd_thermal.potentials.base import Potential as Potential
from jaxmd_thermal.potentials.base import SumPotential as SumPotential
from jaxmd_thermal.potentials.lennard_jones import LennardJones as LennardJones
from jaxmd_thermal.potentials.stillinger_weber import StillingerWeber as StillingerWeber

if TYPE_CHECKING:
    from jaxmd_thermal.potentials.nequix import Nequix as Nequix
    from jaxmd_thermal.potentials.network import EquivariantNetwork as EquivariantNetwork
    from jaxmd_thermal.potentials.so3krates import So3krates as So3krates

_NETWORKS = {"EquivariantNetwork": "network", "Nequix": "nequix", "So3krates": "so3krates"}

__all__ = [
    "EquivariantNetwork",
    "LennardJones",
    "Nequix",
    "PairPotential",
    "Potential",
    "So3krates",
    "StillingerWeber",
    "SumPotential",
]


def __getattr__(name: str) -> Any:
    if name in _NETWORKS:
        return getattr(importlib.import_module(f"jaxmd_thermal.potentials.{_NETWORKS[name]}"), name)
    raise AttributeError(f"jaxmd_thermal.potentials has no '{name}'; it has {', '.join(__all__)}")
