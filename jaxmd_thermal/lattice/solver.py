"""Force constants out of the forces of displaced cells: linear maps, with the crystal's symmetry built in.

Every operation g of the space group turns a displaced cell into another one that need not be computed. All of them together
overdetermine the derivative along three directions, and the least-squares solution is one weight vector for each pair of
displacement and operation. So the maps are sums of rotated and permuted forces; the host works out the weights once, and
what runs on the device is linear, and differentiable by transposition. Then follow the projections of `projection.py`.

Displacements are phonopy's and phono3py's: one atom for second order; for third order one atom, and a second one in the cell
that the first left behind. Without the projections the result is that of their solvers (tested).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice.projection import project_fc2, project_fc3
from jaxmd_thermal.lattice.symmetry import Operations


class Terms(NamedTuple):
    """One term for each pair of a displaced cell and an operation that is used.

    Attributes:
      source: (terms,) which cell (or which first displacement).
      target: (terms,) row of the result.
      weights: (terms, 3) solution along x, y, z for a unit of what the cell contributes.
      rotations: (terms, 3, 3) Cartesian.
      origins: (terms, atoms) the atom that the operation brings to each site.
    """

    source: Any
    target: Any
    weights: Any
    rotations: Any
    origins: Any


class SecondOrder(NamedTuple):
    """Cells of second order, and how their forces become fc2.

    Attributes:
      moves: (cells, atoms, 3) Å, displacements.
      terms: cells to rows of the primitive cell.
      images, to_primitive: for the projection (`project_fc2`).
    """

    moves: Any
    terms: Terms
    images: Any
    to_primitive: Any


class ThirdOrder(NamedTuple):
    """Cells of third order, and how their forces become fc3.

    Attributes:
      moves: (cells, atoms, 3) Å; first the cells with one displaced atom, then those with two.
      base: (pair cells,) the cell with only the first displacement, which each of the others starts from.
      inner: pair cells to second derivatives with one atom displaced, (first displacements * atoms) rows.
      outer: first displacements to rows of the primitive cell.
      images, to_primitive, known: for the projection (`project_fc3`); `known` is None without a cutoff.
    """

    moves: Any
    base: Any
    inner: Terms
    outer: Terms
    images: Any
    to_primitive: Any
    known: Any


def _terms(entries, operations: Operations, rows_of, n_rows: int) -> Terms:
    """Terms of displacements `entries`: (source, atom, vector, allowed operations, rows), weights by least squares.

    `rows_of(source, atom)`: the row of the result for an atom, or -1 where it is not wanted.
    """
    source, target, vectors, used = [], [], [], []
    for which, atom, vector, allowed in entries:
        for g in allowed:
            row = rows_of(which, operations.permutations[g, atom])
            if row >= 0:
                source.append(which)
                target.append(row)
                used.append(g)
                vectors.append(operations.rotations[g] @ vector)
    source_, target_, used_ = (np.array(x, np.int32) for x in (source, target, used))
    weights = np.zeros((len(source_), 3))
    vectors_ = np.array(vectors).reshape(-1, 3)
    for row in range(n_rows):
        mine = np.flatnonzero(target_ == row)
        if len(mine):
            if np.linalg.matrix_rank(vectors_[mine], tol=1e-6 * np.abs(vectors_[mine]).max()) < 3:
                raise InputError(
                    f"the displacements leave a direction of row {row} undetermined: were they generated for this crystal?"
                )
            weights[mine] = np.linalg.pinv(vectors_[mine]).T
    origins = np.argsort(operations.permutations, axis=1)[used_]
    return Terms(source_, target_, weights, operations.rotations[used_], origins.astype(np.int32))


def second_order(displacements, operations: Operations, images) -> SecondOrder:
    """Plan for displacements of single atoms.

    Args:
      displacements: list of (atom, (3,) Å).
      operations, images: of the supercell.
    """
    n = len(images.primitive_of)
    place = {int(row): k for k, row in enumerate(images.primitive_rows)}
    everything = range(len(operations.rotations))
    entries = [(k, atom, np.asarray(u, float), everything) for k, (atom, u) in enumerate(displacements)]
    terms = _terms(entries, operations, lambda _, atom: place.get(int(atom), -1), len(place))
    _check_covered(terms, len(place))
    moves = np.zeros((len(displacements), n, 3))
    for k, (atom, u) in enumerate(displacements):
        moves[k, atom] = u
    return SecondOrder(moves, terms, images, operations.to_primitive(images))


def third_order(displacements, operations: Operations, images) -> ThirdOrder:
    """Plan for displacements of pairs of atoms.

    Args:
      displacements: list of (atom, (3,) Å, [(second atom, (3,) Å), ...]); atoms that are missing among the second ones,
        with all that are equivalent to them, count as too far away.
      operations, images: of the supercell.
    """
    n = len(images.primitive_of)
    place = {int(row): k for k, row in enumerate(images.primitive_rows)}
    inner, outer, base, moves = [], [], [], []
    for d, (atom, u, _) in enumerate(displacements):
        outer.append((d, atom, np.asarray(u, float), range(len(operations.rotations))))
        moves.append([(atom, u)])
    owner = []
    for d, (atom, u, seconds) in enumerate(displacements):
        still = np.linalg.norm(operations.rotations @ u - u, axis=-1) < 1e-5
        kept = np.flatnonzero((operations.permutations[:, atom] == atom) & still)
        for other, v in seconds:
            inner.append((len(base), other, np.asarray(v, float), kept))
            base.append(d)
            owner.append(d)
            moves.append([(atom, u), (other, v)])
    table = np.zeros((len(moves), n, 3))
    for k, parts in enumerate(moves):
        for atom, u in parts:
            table[k, atom] += u
    inner_terms = _terms(inner, operations, lambda which, atom: owner[which] * n + int(atom), len(displacements) * n)
    outer_terms = _terms(outer, operations, lambda _, atom: place.get(int(atom), -1), len(place))
    _check_covered(outer_terms, len(place))
    reached = np.zeros((len(displacements), n), bool)
    reached.reshape(-1)[inner_terms.target] = True
    known = np.zeros((len(place), n), bool)
    np.logical_or.at(known, outer_terms.target, np.take_along_axis(reached[outer_terms.source], outer_terms.origins, 1))
    return ThirdOrder(table, np.array(base, np.int32), inner_terms, outer_terms, images,
                      operations.to_primitive(images), None if known.all() else known)  # fmt: skip


def _check_covered(terms: Terms, n_rows: int) -> None:
    """Every row is reached, and by displacements of both signs: only then do forces of even order cancel."""
    for row in range(n_rows):
        mine = terms.weights[terms.target == row]
        if not len(mine):
            raise InputError(f"no displaced atom is equivalent to atom {row} of the primitive cell: add displacements")
        if np.abs(mine.sum(axis=0)).max() > 1e-6 * np.abs(mine).max():
            raise InputError(
                f"atom {row} of the primitive cell is displaced in one direction but not against it: generate the "
                "displacements with both signs"
            )


def _rotated_sum(terms: Terms, values, n_rows: int):
    """Sum over terms of weights x (rotated, permuted values): values (cells, atoms, 3) -> (rows, atoms, 3, 3)."""

    def add(total, term):
        source, target, weights, rotation, origins = term
        moved = values[source][origins] @ rotation.T
        return total.at[target].add(weights[None, :, None] * moved[:, None, :]), None

    start = jnp.zeros((n_rows, values.shape[1], 3, 3), values.dtype)
    return jax.lax.scan(add, start, terms)[0]


def rows_of_fc2(forces, plan: SecondOrder):
    """fc2 of `solve_fc2` before its projection: what phonopy's solver gives."""
    return -_rotated_sum(plan.terms, forces, len(plan.images.primitive_rows))


@jax.jit
def solve_fc2(forces, plan: SecondOrder):
    """fc2 (primitive atoms, supercell atoms, 3, 3) eV/Å^2 of the forces (cells, atoms, 3) eV/Å; linear, pure."""
    return project_fc2(rows_of_fc2(forces, plan), plan.images, plan.to_primitive)


def rows_of_fc3(forces, plan: ThirdOrder):
    """fc3 of `solve_fc3` before its projection: what phono3py's solver gives."""
    n = forces.shape[1]
    firsts = len(plan.moves) - len(plan.base)
    change = forces[firsts:] - forces[plan.base]
    second = -_rotated_sum(plan.inner, change, firsts * n).reshape(firsts, n, n, 3, 3)

    def add(total, term):
        source, target, weights, rotation, origins = term
        moved = jnp.einsum("bx,cy,jkxy->jkbc", rotation, rotation, second[source][origins][:, origins])
        return total.at[target].add(weights[:, None, None] * moved[:, :, None]), None

    start = jnp.zeros((len(plan.images.primitive_rows), n, n, 3, 3, 3), forces.dtype)
    return jax.lax.scan(add, start, plan.outer)[0]


@jax.jit
def solve_fc3(forces, plan: ThirdOrder):
    """fc3 (primitive atoms, supercell atoms, supercell atoms, 3, 3, 3) eV/Å^3 of the forces (cells, atoms, 3); linear, pure."""
    return project_fc3(rows_of_fc3(forces, plan), plan.images, plan.to_primitive, plan.known)
