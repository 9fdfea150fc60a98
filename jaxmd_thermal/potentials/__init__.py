"""Potentials: pytrees with `atomic_energies(graph)`.

The network is imported at first use: Flax and e3nn-jax would double the start-up time of runs that do not need them.
"""

from typing import TYPE_CHECKING, Any

from jaxmd_thermal.potentials.base import PairPotential as PairPotential
from jaxmd_thermal.potentials.base import Potential as Potential
from jaxmd_thermal.potentials.base import SumPotential as SumPotential
from jaxmd_thermal.potentials.lennard_jones import LennardJones as LennardJones
from jaxmd_thermal.potentials.stillinger_weber import StillingerWeber as StillingerWeber

if TYPE_CHECKING:
    from jaxmd_thermal.potentials.network import EquivariantNetwork as EquivariantNetwork

__all__ = ["EquivariantNetwork", "LennardJones", "PairPotential", "Potential", "StillingerWeber", "SumPotential"]


def __getattr__(name: str) -> Any:
    if name == "EquivariantNetwork":
        from jaxmd_thermal.potentials.network import EquivariantNetwork

        return EquivariantNetwork
    raise AttributeError(f"jaxmd_thermal.potentials has no '{name}'; it has {', '.join(__all__)}")
