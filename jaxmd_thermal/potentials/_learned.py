"""What learned potentials share: a Flax network with its parameters, species as indices, constant energies."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.potentials.base import Potential


class LearnedPotential(Potential):
    """Base of potentials made of a Flax network; subclasses are frozen dataclasses with these and their own fields.

    Attributes:
      params: Flax parameters, NumPy float64 (leaves; cast to the precision of the run).
      references: (species,) eV, constant energies of the elements (leaf). In the energy, not in the heat flux.
      network: the architecture (static); it has `layers`, and `declare`, which touches every parameter.
      species: atomic numbers that it knows.
    """

    params: Any
    references: Any
    network: Any
    species: tuple[int, ...]
    costly_edges = True

    @property
    def interaction_steps(self) -> int:  # type: ignore[override]
        return self.network.layers

    def applied(self, *arguments):
        """What the network returns for these arguments."""
        return self.network.apply({"params": jax.tree.map(jnp.asarray, self.params)}, *arguments)

    def kinds(self, numbers):
        """Positions of atomic numbers in the list of species."""
        return kinds_of(self.species, numbers)

    def reference_energies(self, numbers):
        return jnp.asarray(self.references)[self.kinds(numbers)]


def kinds_of(species: tuple[int, ...], numbers):
    """Positions of atomic numbers in the list of species; all of them must be there."""
    table = np.zeros(max(species) + 1, np.int32)
    table[list(species)] = np.arange(len(species))
    return jnp.asarray(table)[numbers]


def elements_of(species) -> tuple[int, ...]:
    """Atomic numbers of one or several elements, in their order. Raises InputError: unknown, none, or one twice."""
    numbers = tuple(atomic_number(s) for s in ([species] if isinstance(species, int | str) else species))
    if not numbers or len(set(numbers)) != len(numbers):
        raise InputError(f"species is {species!r}; give at least one element, and each only once")
    return numbers


def atomic_number(element) -> int:
    """Of a chemical symbol or an atomic number; raises InputError for anything else."""
    from ase.data import atomic_numbers, chemical_symbols

    if isinstance(element, str) and element in atomic_numbers:
        return int(atomic_numbers[element])
    if isinstance(element, int | np.integer) and 0 < element < len(chemical_symbols):
        return int(element)
    raise InputError(f"{element!r} is no chemical element: give a symbol or an atomic number")


def constant_energies(references, numbers: tuple[int, ...]) -> np.ndarray:
    """(species,) eV from {element: eV}, zero where nothing is given. Raises InputError: an element that is not there."""
    known = {atomic_number(s): float(e) for s, e in (references or {}).items()}
    if not set(known) <= set(numbers):
        raise InputError(f"references name the elements {sorted(set(known) - set(numbers))} that are not in {numbers}")
    return np.array([known.get(n, 0.0) for n in numbers])


def check_cutoff(cutoff: float) -> float:
    """The cutoff in Å, if it can be one."""
    if not (np.isfinite(cutoff) and cutoff > 0):
        raise InputError(f"the cutoff is {cutoff} Å; it must be positive and finite")
    return float(cutoff)


def check_sizes(limits: dict[str, tuple[Any, float, float]]) -> None:
    """Raises InputError where one of {name: (value, low, high)} lies outside of its range."""
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise InputError(f"{name} is {value}; it must lie between {low} and {high}")


def parameter_shapes(network) -> dict[str, Any]:
    """Tree of the parameters of a network, as shapes."""
    with double_precision():
        return jax.eval_shape(lambda: network.init(jax.random.key(0), method="declare"))[
            "params"
        ]  # the backend stays down


def random_parameters(key, network) -> dict[str, Any]:
    """Standard normals for all parameters, NumPy float64: the same numbers whatever the user's `jax_enable_x64`.

    All are cut from one draw; a draw for each would compile for seconds. `key` is a JAX random key or an integer seed.
    """
    leaves, structure = jax.tree.flatten(parameter_shapes(network))
    ends = np.cumsum([x.size for x in leaves])
    with double_precision():
        key = jax.random.key(key) if isinstance(key, int | np.integer) else key
        numbers = np.asarray(jax.random.normal(key, (int(ends[-1]),), np.float64))
    pieces = [n.reshape(x.shape) for n, x in zip(np.split(numbers, ends[:-1]), leaves, strict=True)]
    return jax.tree.unflatten(structure, pieces)
