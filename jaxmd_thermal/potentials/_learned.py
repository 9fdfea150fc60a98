"""What learned potentials share: species as indices, random parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal.errors import InputError


def kinds_of(species: tuple[int, ...], numbers):
    """Positions of atomic numbers in the list of species; all of them must be there."""
    table = np.zeros(max(species) + 1, np.int32)
    table[list(species)] = np.arange(len(species))
    return jnp.asarray(table)[numbers]


def standard_normal(key, shapes):
    """Arrays of these shapes, all cut from one draw: a draw for each would compile for seconds."""
    leaves, structure = jax.tree.flatten(shapes)
    ends = np.cumsum([x.size for x in leaves])
    numbers = np.asarray(jax.random.normal(key, (int(ends[-1]),), np.float64))
    pieces = [n.reshape(x.shape) for n, x in zip(np.split(numbers, ends[:-1]), leaves, strict=True)]
    return jax.tree.unflatten(structure, pieces)


def atomic_number(element) -> int:
    """Of a chemical symbol or an atomic number; raises InputError for anything else."""
    from ase.data import atomic_numbers, chemical_symbols

    if isinstance(element, str) and element in atomic_numbers:
        return int(atomic_numbers[element])
    if isinstance(element, int | np.integer) and 0 < element < len(chemical_symbols):
        return int(element)
    raise InputError(f"{element!r} is no chemical element: give a symbol or an atomic number")
