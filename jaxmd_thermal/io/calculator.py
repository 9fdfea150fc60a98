"""ASE: our potentials as calculators, and calculators of others as references.

What repeats is kept: the neighbour list as long as it is valid, one compiled program for all structures of one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from ase import Atoms
from ase.calculators import calculator as ase_calculator
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress

from jaxmd_thermal._backend import check_toolchain, double_precision
from jaxmd_thermal.derivatives import QUANTITIES, calculate, check_dtype, check_potential, finite, required_cutoff
from jaxmd_thermal.errors import InputError, UnsupportedError
from jaxmd_thermal.io.ase import atoms_from, velocities_of
from jaxmd_thermal.io.models import load_potential
from jaxmd_thermal.neighbors import allocate, outdated
from jaxmd_thermal.potentials.base import neighbor_demands
from jaxmd_thermal.sites import check_sites
from jaxmd_thermal.system import System

FLUXES = ("heat_flux", "heat_flux_potential", "heat_flux_convective")
"""Results that depend on velocities."""


class PropertyNotImplementedError(UnsupportedError, ase_calculator.PropertyNotImplementedError):
    """A property that this structure or calculator does not have; ASE's code and ours know it by their own names."""


@partial(jax.jit, static_argnames=("quantities", "dtype"))
def _compute(potential, positions, cell, numbers, neighbors, velocities, masses, *, quantities, dtype):
    return calculate(
        potential, positions, cell, numbers, neighbors, quantities, velocities=velocities, masses=masses, dtype=dtype
    )


_outdated = jax.jit(outdated)


class Calculator(ase_calculator.Calculator):
    """ASE calculator of a potential.

    Results, in ASE's units and conventions: `energy`, `free_energy` (eV, the same), `energies` (atoms,) eV, `forces`
    (atoms, 3) eV/Å, `stress` (6,) eV/Å^3 in Voigt order (xx, yy, zz, yz, xz, xy), positive in tension, only for cells that
    are periodic in three directions. On request (`calc.get_property("heat_flux", atoms)`) `heat_flux`,
    `heat_flux_potential` and `heat_flux_convective` (3,) eV Å/fs (fs, not ASE's unit of time), extensive, for the
    velocities of the atoms; they are computed again when velocities or masses change, the other results are not.

    Args:
      potential: a potential, or whatever `load_potential` takes ("nequix-mp-1", a path).
      dtype: "float64", or "float32" to evaluate the potential in single precision.
      skin: Å added to the cutoff of the neighbour list, which is rebuilt when an atom has moved half of it. More skin
        means fewer rebuilds, but more neighbours to look at in every call; None: what suits the cost of the potential.

    Raises:
      InputError: an unknown potential or dtype, a negative skin; later, elements that the potential does not know, two
        atoms on one site, or a flux without velocities.
      UnstableError: the energy or a force is not finite.
      PropertyNotImplementedError: the stress of a slab, wire or cluster.
      UnsupportedError: the heat flux of a potential with long-range terms.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", *FLUXES]  # noqa: RUF012 (of ASE)
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012

    def __init__(self, potential: Any, dtype: str = "float64", skin: float | None = None):
        super().__init__()
        check_dtype(dtype)
        if skin is not None and not (np.isfinite(skin) and skin >= 0):
            raise InputError(f"the skin is {skin} Å; it must be zero or positive and finite")
        self.potential = load_potential(potential)
        self.dtype, self._demands = dtype, neighbor_demands(self.potential, moving=True)
        if skin is not None:
            self._demands["skin"] = float(skin)
        self._on_device: Any = None
        self._neighbors: Any = None
        self._list_of: tuple[Any, Any] | None = None  # substance and atomic numbers that the list belongs to
        self._moved_with: Any = None

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """A result by its name, computed if it is not there yet."""
        if atoms is not None:
            self._forget_fluxes(atoms)
        return super().get_property(name, atoms, allow_calculation)

    def calculation_required(self, atoms: Atoms, properties: Sequence[str]) -> bool:
        """Whether `properties` of `atoms` are not there yet."""
        self._forget_fluxes(atoms)
        return super().calculation_required(atoms, properties)

    def _forget_fluxes(self, atoms: Atoms) -> None:
        """Drop fluxes of other velocities. ASE does not watch momenta, and energy and forces do not depend on them."""
        if self._moved_with is None:
            return
        if not all(np.array_equal(a, b) for a, b in zip(self._moved_with, _motion(atoms), strict=True)):
            for name in FLUXES:
                self.results.pop(name, None)

    def export_properties(self) -> Properties:
        """The results that ASE has definitions for."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(ase_calculator.all_changes),
    ) -> None:
        """Fill `results`: everything but fluxes in one go, fluxes if they are among `properties`."""
        super().calculate(atoms, list(properties), list(system_changes))
        if system_changes:  # before anything can fail: no result of another structure may stay
            self.results = {}
        atoms = self.atoms
        assert atoms is not None, "atoms were never given"
        periodic = bool(all(atoms.pbc))
        if "stress" in properties and not periodic:
            raise PropertyNotImplementedError(
                f"stress needs a cell that is periodic in three directions, not {atoms.pbc.tolist()}: leave it out, or set "
                "atoms.pbc"
            )
        fluxes = bool(set(properties) & set(FLUXES))
        quantities: tuple[str, ...] = ()
        if not fluxes or set(properties) - set(FLUXES) - self.results.keys():
            # One program for all of them: an optimiser asks one by one, and the stress is nearly free beside forces.
            quantities = ("energy", "energies", "forces", *(["stress"] if periodic else []))
        velocities = velocities_of(atoms) if fluxes else None
        if fluxes:
            if velocities is None:
                raise InputError(
                    "a heat flux needs velocities, and these atoms have none: set them with atoms.set_velocities (ASE's "
                    "units) or ase.md.velocitydistribution"
                )
            if not np.all(np.isfinite(velocities)):
                raise InputError("the velocities are not finite: a heat flux needs finite ones; set them anew")
            quantities += FLUXES
        found = self._evaluate(atoms, quantities, velocities)
        if fluxes:
            self._moved_with = _motion(atoms)
        if "stress" in found:
            found["stress"] = full_3x3_to_voigt_6_stress(found["stress"])
        if "energy" in found:
            found["energy"] = found["free_energy"] = float(found["energy"])
        self.results.update(found)

    def _evaluate(self, atoms: Atoms, quantities: tuple[str, ...], velocities: Any) -> dict[str, Any]:
        system = System.from_atoms(atoms)
        with double_precision():
            self._prepare(system)
            out = _compute(
                self._on_device,
                system.positions,
                system.cell,
                system.numbers,
                self._neighbors,
                velocities,
                None if velocities is None else system.masses,
                quantities=quantities,
                dtype=self.dtype,
            )
            out = {name: np.array(value) for name, value in out.items()}
        return finite(out)

    def _prepare(self, system: System) -> None:
        """A potential on the device and a neighbour list that holds for this structure."""
        if self._on_device is None:
            check_toolchain()
            self._on_device = jax.device_put(self.potential)
        numbers = np.array(system.numbers)
        kind = (tuple(np.sort(numbers).tolist()), system.pbc)
        before = self._list_of
        if before is None or not np.array_equal(before[1], numbers):
            check_potential(self.potential, system)
        elif before[0] == kind and not bool(_outdated(self._neighbors, system.positions, system.cell)):
            return
        # The same capacities as long as the substance is the same: what is compiled serves on, what does not fit grows.
        capacities: dict[str, Any] = (
            {"plan": self._neighbors.plan} if before is not None and before[0] == kind else self._demands
        )
        self._list_of = None
        self._neighbors = allocate(system, required_cutoff(self.potential), **capacities)
        check_sites(system, self._neighbors, self.potential)
        self._list_of = (kind, numbers)


def _motion(atoms: Atoms) -> tuple[Any, Any]:
    """What a flux depends on besides positions: momenta (zero if there are none) and masses."""
    return atoms.get_momenta(), atoms.get_masses()


def evaluate_with(
    calculator: Any, atoms: Any, quantities: str | Sequence[str] = ("energy", "forces")
) -> dict[str, Any]:
    """Properties of one structure by any ASE calculator, in the form of `evaluate`.

    Args:
      calculator: an ASE calculator; the atoms' own calculator and results are not touched.
      atoms: ASE `Atoms`, a `System`, or the path of a structure file.
      quantities: out of "energy", "energies", "forces", "stress", and of the heat fluxes where the calculator has them.

    Returns:
      dict of arrays: energy () eV (the one that belongs to the forces, ASE's free energy, where the calculator tells it),
      energies (atoms,) eV, forces (atoms, 3) eV/Å, stress (3, 3) eV/Å^3 (ASE sign), heat fluxes (3,) eV Å/fs.

    Raises:
      InputError: an unknown quantity.
      UnsupportedError: the calculator does not have the quantity.
    """
    quantities = (quantities,) if isinstance(quantities, str) else tuple(quantities)
    unknown = sorted(set(quantities) - set(QUANTITIES))
    if unknown:
        raise InputError(f"unknown quantities {unknown}; known are {', '.join(QUANTITIES)}")
    atoms = atoms_from(atoms)
    able = list(getattr(calculator, "implemented_properties", []))
    out = {}
    for quantity in quantities:
        name = "free_energy" if quantity == "energy" and "free_energy" in able else quantity
        try:
            if able and name not in able:
                raise ase_calculator.PropertyNotImplementedError(name)
            value = np.array(calculator.get_property(name, atoms), float)
        except ase_calculator.PropertyNotImplementedError as error:
            raise PropertyNotImplementedError(
                f"the calculator {type(calculator).__name__} gives no '{quantity}' for this structure; it has "
                f"{', '.join(able) or 'nothing that it tells'}: leave it out, or choose another calculator"
            ) from error
        out[quantity] = _matrix(value) if quantity == "stress" and value.shape == (6,) else value
    return out


def _matrix(voigt: Any) -> np.ndarray:
    """(3, 3) of (xx, yy, zz, yz, xz, xy)."""
    xx, yy, zz, yz, xz, xy = voigt
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
