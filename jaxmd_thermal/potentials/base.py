"""The protocol of a potential, and sums of potentials.

A potential is a pytree: arrays are leaves (trainable, passed to compiled code as arguments, never baked in), cutoff,
depth and architecture are static. All that an author writes is `atomic_energies(graph)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.graph import Graph


class Potential:
    """Base class of potentials. Subclasses are frozen dataclasses registered as pytrees.

    Attributes:
      cutoff: Å; edges longer than this must not contribute.
      interaction_steps: message-passing steps; the energy of an atom depends on atoms up to this many cutoffs away.
      row_local: the energy of an atom depends only on its own edges and on species, so rows can be evaluated in
        blocks, one by one. Everything that passes messages must leave this False.
      long_range: has terms that are not messages along edges (k-space, charge equilibration). The heat flux refuses it.
      costly_edges: an edge costs far more than finding it (networks): neighbour lists are then kept tight.
      species: atomic numbers that it knows, or None for any.
    """

    cutoff: float
    interaction_steps: int = 1
    row_local: bool = False
    long_range: bool = False
    costly_edges: bool = False
    species: tuple[int, ...] | None = None

    def atomic_energies(self, graph: Graph) -> Any:
        """(atoms,) eV, without constant reference energies."""
        raise NotImplementedError

    def reference_energies(self, numbers) -> Any:
        """(atoms,) eV, constants of the species that are part of the energy but not of the heat flux."""
        return jnp.zeros(numbers.shape[0])

    @property
    def terms(self) -> tuple[Potential, ...]:
        return (self,)

    def __add__(self, other: Potential) -> SumPotential:
        return SumPotential((*self.terms, *terms_of(other)))

    def check_species(self, numbers) -> None:
        """Raises InputError naming the elements that the potential does not know."""
        if self.species is None:
            return
        unknown = sorted(set(np.asarray(numbers).tolist()) - set(self.species))
        if unknown:
            raise InputError(
                f"{type(self).__name__} does not know {_symbols(unknown)}; it knows {_symbols(self.species)}: "
                "choose another potential, or change the structure"
            )


def _symbols(numbers) -> str:
    from ase.data import chemical_symbols

    return ", ".join(chemical_symbols[n] if 0 <= n < len(chemical_symbols) else f"Z = {n}" for n in numbers)


def terms_of(potential) -> tuple:
    """The terms of a sum, or the potential itself. Works for any object with the protocol's methods."""
    return getattr(potential, "terms", (potential,))


def is_row_local(potential) -> bool:
    """Whether rows can be evaluated in blocks (`Potential.row_local`)."""
    return getattr(potential, "row_local", False)


def neighbor_demands(potential, *, moving: bool) -> dict[str, float | None]:
    """Skin in Å and margin of the slots (`neighbors.allocate`) that suit the cost of the potential.

    A pair costs little, so lists are wide and rarely rebuilt. A network pays for every slot as for a neighbour, hundreds of
    times what a rebuild costs: its lists are tight.
    """
    if not any(getattr(term, "costly_edges", False) for term in terms_of(potential)):
        return {"skin": 1.0 if moving else 0.0, "margin": None}
    return {"skin": 0.3, "margin": 1.12} if moving else {"skin": 0.0, "margin": 1.0}


def is_long_range(potential) -> bool:
    """Whether there are terms that are not messages along edges (`Potential.long_range`)."""
    return getattr(potential, "long_range", False)


def reference_energies(potential, numbers):
    """(atoms,) eV, the constants of all terms."""
    constants = [t.reference_energies(numbers) for t in terms_of(potential) if hasattr(t, "reference_energies")]
    return sum(constants, start=jnp.zeros(numbers.shape[0]))


class PairPotential(Potential):
    """Potentials `U_i = 1/2 sum_j phi(r_ij)`; forces and flux then need no adjoint of a gather (derivatives.py)."""

    row_local = True

    def pair_energy(self, distances_squared, graph: Graph) -> Any:
        """phi in eV at (atoms, K) squared distances in Å^2; the engine masks what lies beyond the cutoff.

        Elementwise in the distances. `graph` gives the species (`numbers`, `neighbor_numbers`) where they matter.
        """
        raise NotImplementedError

    def pair_slope(self, distances_squared, graph: Graph) -> Any:
        """2 dphi/d(r^2) in eV/Å^2, zero beyond the cutoff. A closed form may be faster than this derivative."""
        ones = jnp.ones_like(distances_squared)
        slope = jax.jvp(lambda x: self.pair_energy(x, graph), (distances_squared,), (ones,))[1]
        return jnp.where(distances_squared < self.cutoff**2, 2.0 * slope, 0.0)

    def atomic_energies(self, graph: Graph) -> Any:
        phi = self.pair_energy(graph.distances_squared, graph)
        return 0.5 * jnp.sum(jnp.where(graph.mask, phi, 0.0), axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SumPotential(Potential):
    """`p + q`: energies add, and each term keeps its own fast path and its own cutoff."""

    parts: tuple[Any, ...]

    @property
    def terms(self):
        return self.parts

    @property
    def cutoff(self):  # type: ignore[override]
        return max(p.cutoff for p in self.parts)

    @property
    def interaction_steps(self):  # type: ignore[override]
        return max(p.interaction_steps for p in self.parts)

    @property
    def row_local(self):  # type: ignore[override]
        return all(p.row_local for p in self.parts)

    @property
    def long_range(self):  # type: ignore[override]
        return any(p.long_range for p in self.parts)

    @property
    def species(self):  # type: ignore[override]
        known = [set(p.species) for p in self.parts if p.species is not None]
        return tuple(sorted(set.intersection(*known))) if known else None

    def atomic_energies(self, graph: Graph):
        return sum(p.atomic_energies(graph.within(p.cutoff)) for p in self.parts)

    def reference_energies(self, numbers):
        return sum(p.reference_energies(numbers) for p in self.parts)
