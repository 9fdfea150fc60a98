"""Molecular dynamics in JAX that ends in thermal conductivities with error bars.

Importing does nothing: no device is touched and JAX itself is not imported. The public names are resolved at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "System",
    "load_potential",
    "save_potential",
    "potentials",
    "Calculator",
    "evaluate",
    "hessian_columns",
    "check_heat_flux",
    "simulate",
    "green_kubo",
    "green_kubo_from_flux",
    "hnemd",
    "force_constants",
    "ForceConstants",
    "phonons",
    "relax",
    "grueneisen",
    "thermal_expansion",
    "quasi_harmonic",
    "thermal_conductivity",
    "srme",
    "sre",
    "phonon_errors",
    "evaluate_phonons",
    "fit",
    "__version__",
]

if TYPE_CHECKING:  # for editors and type checkers only
    from . import potentials as potentials
    from .derivatives import evaluate as evaluate
    from .derivatives import hessian_columns as hessian_columns
    from .io.calculator import Calculator as Calculator
    from .io.exported import save_potential as save_potential
    from .io.models import load_potential as load_potential
    from .system import System as System

# Public name -> module that defines it; None: the name is the module.
_HOMES: dict[str, str | None] = {
    "System": "system",
    "load_potential": "io.models",
    "save_potential": "io.exported",
    "Calculator": "io.calculator",
    "potentials": None,
    "evaluate": "derivatives",
    "hessian_columns": "derivatives",
    "check_heat_flux": "check",
    "simulate": "dynamics.run",
    "green_kubo": "transport.green_kubo_run",
    "green_kubo_from_flux": "transport.green_kubo",
    "hnemd": "transport.hnemd",
    "force_constants": "lattice.force_constants",
    "ForceConstants": "lattice.force_constants",
    "phonons": "lattice.phonons",
    "relax": "lattice.relax",
    "grueneisen": "lattice.grueneisen",
    "thermal_expansion": "lattice.expansion",
    "quasi_harmonic": "lattice.quasi_harmonic",
    "thermal_conductivity": "lattice.conductivity",
    "srme": "lattice.metrics",
    "sre": "lattice.metrics",
    "phonon_errors": "training.evaluation",
    "evaluate_phonons": "training.evaluation",
    "fit": "training.fit",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        from .errors import nearest

        raise AttributeError(f"jaxmd_thermal has no public name '{name}'{nearest(name, _HOMES)}")
    home = _HOMES[name]
    if home is None:
        return import_module(f".{name}", __name__)
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
