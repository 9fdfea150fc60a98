"""Energy, forces, stress, heat flux and the driving force of HNEMD of any potential, by automatic differentiation.

Heat flux: definition of Langer et al., PRB 108, L100302 (2023), in the edge-power form
`J_pot = -sum_edges r_ij P_ij`; extensive, eV Å/fs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import check_toolchain, double_precision
from jaxmd_thermal._routes import BLOCK, Wanted, cast, term_derivatives
from jaxmd_thermal.errors import InputError, UnstableError, UnsupportedError
from jaxmd_thermal.neighbors import NeighborList, allocate
from jaxmd_thermal.potentials.base import Potential, is_long_range, neighbor_demands, reference_energies, terms_of
from jaxmd_thermal.sites import check_sites
from jaxmd_thermal.system import System
from jaxmd_thermal.units import AMU_A2_FS2

QUANTITIES = (
    "energy",
    "energies",
    "forces",
    "stress",
    "heat_flux",
    "heat_flux_potential",
    "heat_flux_convective",
    "edge_power",
    "atomic_power",
    "driving_force",
    "driving_virial",
)
"""What `calculate` returns."""

NEEDS_VELOCITIES = frozenset(
    (
        "heat_flux",
        "heat_flux_potential",
        "heat_flux_convective",
        "edge_power",
        "atomic_power",
        "driving_force",
        "driving_virial",
    )
)


def calculate(
    potential: Potential,
    positions,
    cell,
    numbers,
    neighbors: NeighborList,
    quantities=("energy", "forces"),
    *,
    velocities=None,
    masses=None,
    field=None,
    dtype=jnp.float64,
    block: int = BLOCK,
) -> dict[str, Any]:
    """Properties of one structure; pure, jit-able, differentiable in all array arguments.

    Args:
      potential: pytree with `atomic_energies(graph)`.
      positions, cell, numbers: (atoms, 3) Å, (3, 3) Å, (atoms,).
      neighbors: a list that is not outdated. If `neighbors.status` is set the values are meaningless.
      quantities: names out of `QUANTITIES`.
      velocities, masses: (atoms, 3) Å/fs and (atoms,) amu, for fluxes.
      field: (3,) 1/Å, the driving field of HNEMD, for the driving force.
      dtype: precision in which the potential is evaluated; edges are formed in the precision of the positions.
      block: rows that are evaluated at a time (pair and row-local potentials).

    Returns:
      energy (eV, with reference energies), energies (atoms,), forces (atoms, 3) eV/Å, stress (3, 3) eV/Å^3 (ASE sign;
      NaN where a direction is not periodic), heat_flux and its parts (3,) eV Å/fs (without the constants of the
      species), edge_power (atoms, K) eV/fs = P_ij, atomic_power (atoms,) eV/fs = d e_i/dt, driving_force (atoms, 3)
      eV/Å with zero sum: `e_i F_e + d(J_pot . F_e)/dv_i` less a drift in proportion to mass, so that
      `sum F_i . v_i = J . F_e` for zero total momentum (Evans 1982; Fan et al., PRB 99, 064308 (2019)), driving_virial
      (atoms, 3) its part d(J_pot . F_e)/dv_i, so that `sum_i driving_virial_i . v_i = J_pot . F_e`.
    """
    wanted = frozenset(quantities)
    unknown = wanted - set(QUANTITIES)
    if unknown:
        raise InputError(f"unknown quantities {sorted(unknown)}; known are {', '.join(QUANTITIES)}")
    flux = bool(wanted & {"heat_flux", "heat_flux_potential"})
    if wanted & NEEDS_VELOCITIES:
        if velocities is None or masses is None:
            raise InputError(f"{sorted(wanted & NEEDS_VELOCITIES)} need velocities (Å/fs) and masses: give both")
        refuse_long_range(potential)
    drive = bool(wanted & {"driving_force", "driving_virial"})
    if drive and field is None:
        raise InputError("the driving force needs a field, a 3-vector in 1/Å: give `field`")
    powers = bool(wanted & {"edge_power", "atomic_power"})
    forces = bool(wanted & {"forces", "atomic_power"})
    energies = bool(wanted & {"energy", "energies", "heat_flux", "heat_flux_convective", "driving_force"})

    parts = [
        term_derivatives(
            cast(term, dtype),
            (positions, cell, numbers, neighbors),
            velocities,
            dtype,
            block,
            Wanted(energies, forces, "stress" in wanted, flux, powers, field if drive else None),
        )
        for term in terms_of(potential)
    ]
    total: dict[str, Any] = jax.tree.map(lambda *x: sum(x), *parts)

    out: dict[str, Any] = {}
    if energies:
        out["energies"] = total["energies"] + reference_energies(potential, numbers)
        out["energy"] = jnp.sum(out["energies"])
    if forces:
        out["forces"] = total["forces"]
    if "stress" in wanted:
        volume = jnp.abs(jnp.linalg.det(cell))
        out["stress"] = total["virial"] / volume if all(neighbors.plan.pbc) else jnp.full((3, 3), jnp.nan)
    if flux:
        out["heat_flux_potential"] = total["flux"]
    if wanted & {"heat_flux", "heat_flux_convective"}:
        out["heat_flux_convective"] = (total["energies"] + kinetic_energies(velocities, masses)) @ velocities
    if "heat_flux" in wanted:
        out["heat_flux"] = out["heat_flux_potential"] + out["heat_flux_convective"]
    if powers:
        out["edge_power"] = total["powers"]
        if "atomic_power" in wanted:
            # What atom i receives through its own edges, less what it hands on through the edges that look at it.
            handed_on = jnp.zeros_like(out["edge_power"], shape=numbers.shape)
            handed_on = handed_on.at[neighbors.owners[neighbors.index]].add(out["edge_power"])
            out["atomic_power"] = jnp.sum(out["edge_power"], axis=-1) - handed_on
    if "driving_virial" in wanted:
        out["driving_virial"] = total["drive"]
    if "driving_force" in wanted:
        energy = total["energies"] + kinetic_energies(velocities, masses)
        push = energy[:, None] * field + total["drive"]
        # In proportion to mass: subtracting the plain mean would do work as soon as masses differ.
        out["driving_force"] = push - masses[:, None] / jnp.sum(masses) * jnp.sum(push, axis=0)
    return {name: out[name] for name in wanted}


def kinetic_energies(velocities, masses):
    """(atoms,) eV."""
    return 0.5 * AMU_A2_FS2 * masses * jnp.sum(velocities**2, axis=-1)


def refuse_long_range(potential: Potential) -> None:
    """Raises UnsupportedError for a potential whose energy does not travel along edges."""
    for term in terms_of(potential):
        if is_long_range(term):
            raise UnsupportedError(
                f"{type(term).__name__} has long-range (k-space or charge equilibration) terms; they are not messages "
                "along edges, and the edge-power heat flux would be wrong: use a potential without them"
            )


def required_cutoff(potential: Potential) -> float:
    """Å that a neighbour list must reach to serve the potential."""
    return max(term.cutoff for term in terms_of(potential))


@partial(jax.jit, static_argnames=("quantities", "dtype"))
def _evaluate(potential, positions, cell, numbers, neighbors, velocities, masses, field, *, quantities, dtype):
    return calculate(
        potential,
        positions,
        cell,
        numbers,
        neighbors,
        quantities,
        velocities=velocities,
        masses=masses,
        field=field,
        dtype=jnp.dtype(dtype),
    )


def evaluate(
    potential: Potential, atoms, quantities=("energy", "forces"), velocities=None, dtype="float64", field=None
):
    """Properties of one structure, as NumPy arrays; computed in float64 whatever the user's `jax_enable_x64`.

    Args:
      potential: a potential (see `load_potential`).
      atoms: ASE `Atoms`, a `System`, or the path of a structure file.
      quantities: a name or names out of `derivatives.QUANTITIES`; a heat flux needs velocities.
      velocities: (atoms, 3) Å/fs. Those that an ASE object carries are not used unless they are given here
        (`jaxmd_thermal.io.ase.velocities_of(atoms)` converts them).
      dtype: "float64", or "float32" to evaluate the potential in single precision.
      field: (3,) 1/Å, for "driving_force".

    Returns:
      dict of arrays in the units of `derivatives.calculate`.

    Raises:
      InputError: unknown quantity, element or dtype, missing or non-finite velocities, atoms that overlap.
      UnstableError: a property is not finite.
      UnsupportedError: a heat flux of a potential with long-range terms.
    """
    quantities = (quantities,) if isinstance(quantities, str) else tuple(quantities)
    system = System.from_atoms(atoms)
    check_dtype(dtype)
    check_potential(potential, system)
    if velocities is not None:
        velocities = np.asarray(velocities, float)
        if velocities.shape != np.shape(system.positions) or not np.all(np.isfinite(velocities)):
            raise InputError(
                f"velocities have the shape {velocities.shape} (finite: {bool(np.all(np.isfinite(velocities)))}); "
                f"they must be finite and of the shape {np.shape(system.positions)}, in Å/fs"
            )
    if "stress" in quantities and not all(system.pbc):
        raise InputError(f"stress needs a cell that is periodic in three directions, not {system.pbc}: leave it out")
    with double_precision():
        check_toolchain()
        neighbors = allocate(system, required_cutoff(potential), **neighbor_demands(potential, moving=False))
        check_sites(system, neighbors, potential)
        out = _evaluate(
            potential,
            system.positions,
            system.cell,
            system.numbers,
            neighbors,
            velocities,
            None if velocities is None else system.masses,
            None if field is None else np.asarray(field, float),
            quantities=quantities,
            dtype=dtype,
        )
        return finite({name: np.asarray(value) for name, value in out.items()})


def finite(found: dict[str, Any]) -> dict[str, Any]:
    """The properties of a structure, if they are numbers.

    Raises:
      UnstableError: names those that are not finite.
    """
    bad = [name for name, value in found.items() if not np.all(np.isfinite(value))]
    if bad:
        raise UnstableError(
            f"the potential gives {', '.join(sorted(bad))} that are not finite for this structure: are atoms too close, "
            "or outside of what the potential knows?"
        )
    return found


@partial(jax.jit, static_argnames="dtype")
def _hessian_columns(potential, positions, cell, numbers, neighbors, columns, *, dtype):
    def forces(x):
        return calculate(potential, x, cell, numbers, neighbors, ("forces",), dtype=jnp.dtype(dtype))["forces"]

    def one(column):
        direction = jnp.zeros(positions.size).at[column].set(1.0).reshape(positions.shape)
        return -jax.jvp(forces, (positions,), (direction,))[1]

    return jax.lax.map(one, columns)


def hessian_columns(potential: Potential, atoms, columns, dtype="float64"):
    """Columns of the Hessian: each is minus the change of all forces when one atom, with its images, moves along one axis.

    One Hessian-vector product (forward over reverse) a column, one after the other: memory is that of a few forces.

    Args:
      potential, atoms, dtype: as for `evaluate`.
      columns: 3 * atom + axis, whole numbers.

    Returns: (n_columns, n_atoms, 3) eV/Å^2.

    Raises:
      InputError: a column out of range, and as `evaluate`.
    """
    system = System.from_atoms(atoms)
    check_dtype(dtype)
    check_potential(potential, system)
    columns = np.atleast_1d(
        np.asarray(columns if np.isscalar(columns) or isinstance(columns, np.ndarray) else list(columns))
    )
    if columns.ndim != 1:
        raise InputError(f"columns have the shape {columns.shape}; a list of whole numbers 3 * atom + axis is needed")
    if columns.size and (columns.dtype.kind not in "iu" or columns.min() < 0 or columns.max() >= 3 * system.n_atoms):
        raise InputError(
            f"columns are {columns.tolist()[:8]}...; each must be a whole number 3 * atom + axis between 0 and "
            f"{3 * system.n_atoms - 1}"
        )
    if not columns.size:
        return np.zeros((0, system.n_atoms, 3))
    with double_precision():
        check_toolchain()
        neighbors = allocate(system, required_cutoff(potential), **neighbor_demands(potential, moving=False))
        check_sites(system, neighbors, potential)
        where = (system.positions, system.cell, system.numbers, neighbors)
        found = _hessian_columns(potential, *where, columns.astype(np.int32), dtype=dtype)
        return finite({"Hessian columns": np.asarray(found)})["Hessian columns"]


def check_dtype(dtype) -> None:
    """Raises InputError for a precision other than "float32" and "float64"."""
    if dtype not in ("float32", "float64"):
        raise InputError(f"dtype is {dtype!r}; it must be 'float64' or 'float32'")


def check_potential(potential, system: System) -> None:
    """Refuse what is not a potential, and elements that it does not know.

    Raises:
      InputError: names the missing attribute, or the unknown elements.
    """
    for name in ("atomic_energies", "cutoff"):
        if not hasattr(potential, name):
            raise InputError(
                f"{type(potential).__name__} has no `{name}`; a potential has `cutoff`, `interaction_steps` and "
                "`atomic_energies(graph)`: see jaxmd_thermal.potentials"
            )
    if jax.tree_util.all_leaves([potential]):
        raise InputError(
            f"{type(potential).__name__} is not a pytree; decorate the class with jax.tree_util.register_dataclass "
            "and a frozen dataclass, so that its parameters can be passed to compiled code"
        )
    for term in terms_of(potential):
        if hasattr(term, "check_species"):
            term.check_species(system.numbers)
