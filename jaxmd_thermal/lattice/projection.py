"""Symmetry of force constants in the compact layout: space group, permutation and translation, as linear maps.

Each map is an orthogonal projection (of the full tensor), and they commute, so applying each once satisfies all of them to
rounding. Everything is linear in the force constants. On the host; the projections also take arrays of JAX.

Compact layout: the first index runs over the primitive cell's atoms, the others over the supercell's (phonopy).
"""

from __future__ import annotations

import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice.crystal import Images
from jaxmd_thermal.lattice.symmetry import Operations


def distinct_atoms(operations: Operations, images: Images) -> list[int]:
    """Supercell rows of the symmetry-distinct atoms; each stands in the primitive cell."""
    found: list[int] = []
    seen: set[int] = set()
    for row in images.primitive_rows.tolist():
        if row not in seen:
            found.append(row)
            seen |= set(operations.permutations[:, row].tolist())
    return found


def pair_orbits(operations: Operations, atom: int) -> list[int]:
    """One supercell atom out of every set that the site symmetry of `atom` makes equivalent."""
    site = operations.permutations[operations.permutations[:, atom] == atom]
    found: list[int] = []
    seen: set[int] = set()
    for other in range(site.shape[1]):
        if other not in seen:
            found.append(other)
            seen |= set(site[:, other].tolist())
    return found


def fc2_from_rows(rows: dict[int, np.ndarray], operations: Operations, images: Images) -> np.ndarray:
    """Compact fc2 of the rows of symmetry-distinct atoms, averaged over all operations (site symmetry included).

    Args:
      rows: supercell atom -> (supercell atoms, 3, 3) second derivatives, first Cartesian index that of the atom.
    """
    out = np.zeros((len(images.primitive_rows), len(images.primitive_of), 3, 3))
    for place, target in enumerate(images.primitive_rows):
        count = 0
        for atom, row in rows.items():
            for g in np.flatnonzero(operations.permutations[:, atom] == target):
                r = operations.rotations[g]
                out[place, operations.permutations[g]] += np.einsum("ax,by,nxy->nab", r, r, row)
                count += 1
        if not count:
            raise InputError(f"no row of second derivatives is equivalent to supercell atom {target}: add it to `rows`")
        out[place] /= count
    return out


def project_fc2(fc2, images: Images, to_primitive: np.ndarray):
    """Permutation symmetry and the acoustic sum rule, both exactly. Linear; NumPy or JAX arrays.

    Args:
      fc2: (primitive atoms, supercell atoms, 3, 3).
      to_primitive: `Operations.to_primitive`.
    """
    of, rows = images.primitive_of, images.primitive_rows
    # Phi(j, i) of a pair (i, j): move j to the primitive cell.
    turned = fc2[of[None, :], to_primitive[:, rows].T]
    fc2 = 0.5 * (fc2 + turned.swapaxes(-1, -2))
    mean = fc2.mean(axis=1)  # over the second atom
    columns = mean[of]  # of every supercell atom
    return fc2 - mean[:, None] - columns[None].swapaxes(-1, -2) + columns.mean(axis=0)


def fc3_from_rows(
    rows: dict[tuple[int, int], np.ndarray], operations: Operations, images: Images
) -> tuple[np.ndarray, np.ndarray]:
    """Compact fc3 of third derivatives of symmetry-distinct pairs, averaged over all operations.

    Args:
      rows: (atom, other) -> (supercell atoms, 3, 3, 3); the first two Cartesian indices are those of the pair.

    Returns: fc3, zero for pairs that none of `rows` is equivalent to, and which pairs are known (primitive, supercell atoms).
    """
    n_super = len(images.primitive_of)
    out = np.zeros((len(images.primitive_rows), n_super, n_super, 3, 3, 3))
    known = np.zeros(out.shape[:2], bool)
    for place, target in enumerate(images.primitive_rows):
        count = np.zeros(n_super)
        for (atom, other), row in rows.items():
            for g in np.flatnonzero(operations.permutations[:, atom] == target):
                r, p = operations.rotations[g], operations.permutations[g]
                out[place, p[other], p] += np.einsum("ax,by,cz,nxyz->nabc", r, r, r, row, optimize=True)
                count[p[other]] += 1
        known[place] = count > 0
        out[place] /= np.maximum(count, 1)[:, None, None, None, None]
    return out, known


def _over_permutations(fc3, images: Images, to_primitive: np.ndarray):
    """Mean over the six permutations of the atoms with their Cartesian indices; linear."""
    of, rows = images.primitive_of, images.primitive_rows
    fc3 = 0.5 * (fc3 + fc3.transpose(0, 2, 1, 3, 5, 4))
    # Phi(j, i, k) and Phi(k, i, j), each with its first atom moved to the primitive cell.
    first = to_primitive[:, rows].T  # (primitive, j): where atom i goes
    turned = fc3[of[None, :, None], first[:, :, None], to_primitive[None, :, :]].transpose(0, 1, 2, 4, 3, 5)
    return (fc3 + turned + turned.transpose(0, 2, 1, 3, 5, 4)) / 3.0


def project_fc3(fc3, images: Images, to_primitive: np.ndarray, known=None):
    """All six permutations and the sum rule over each index, exactly. Linear.

    Args:
      fc3: (primitive atoms, supercell atoms, supercell atoms, 3, 3, 3).
      known: (primitive atoms, supercell atoms) pairs of the first two atoms that fc3 was computed for, None: all. Elements with
        another order of the same atoms among them are taken from there, the rest is zero but for the sum rule.
    """
    of = images.primitive_of
    if known is None:
        fc3 = _over_permutations(fc3, images, to_primitive)
    else:
        there = known[:, :, None, None, None, None] + np.zeros((1, 1, fc3.shape[2], 1, 1, 1))
        share = _over_permutations(there, images, to_primitive)
        fc3 = _over_permutations(fc3 * there, images, to_primitive) / (share + (share == 0))
    # Mean over the first atom of every pair (j, k): by permutation the mean over the second atom of (j, ., k).
    over_second = fc3.mean(axis=1)  # (primitive, k, a, b, c)
    over_first = over_second[of[:, None], to_primitive].transpose(0, 1, 3, 2, 4)  # (j, k, a of the mean, b, c)
    over_first = over_first - over_first.mean(axis=0, keepdims=True)
    over_first = over_first - over_first.mean(axis=1, keepdims=True)
    fc3 = fc3 - fc3.mean(axis=1, keepdims=True)
    fc3 = fc3 - fc3.mean(axis=2, keepdims=True)
    return fc3 - over_first[None]


def sum_rule_error(fc) -> float:
    """Largest sum over the second atom, eV/Å^2 (fc2) or eV/Å^3 (fc3)."""
    return float(np.max(np.abs(np.sum(np.asarray(fc), axis=1))))


def permutation_error(fc2, images: Images, to_primitive: np.ndarray) -> float:
    """Largest difference between Phi(i, j) and the transpose of Phi(j, i), eV/Å^2."""
    turned = fc2[images.primitive_of[None, :], to_primitive[:, images.primitive_rows].T]
    return float(np.max(np.abs(fc2 - turned.swapaxes(-1, -2))))


def rotation_error(fc2, operations: Operations, images: Images) -> float:
    """Largest change of fc2 under the space group's operations, eV/Å^2."""
    place = {int(row): k for k, row in enumerate(images.primitive_rows)}
    worst = 0.0
    for k, row in enumerate(images.primitive_rows):
        for g, target in enumerate(operations.permutations[:, row]):
            if int(target) in place:
                r = operations.rotations[g]
                moved = np.einsum("ax,by,nxy->nab", r, r, fc2[k])
                worst = max(worst, float(np.max(np.abs(moved - fc2[place[int(target)], operations.permutations[g]]))))
    return worst
