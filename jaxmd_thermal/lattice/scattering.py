"""Three-phonon linewidths on a grid: sums over triplets of |V|^2, occupations and delta functions."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxmd_thermal._arrays import buffer_length, take
from jaxmd_thermal.errors import CapacityError
from jaxmd_thermal.lattice import strength
from jaxmd_thermal.lattice.grid import Grid, Triplets
from jaxmd_thermal.lattice.occupation import inverse_sinh, occupation
from jaxmd_thermal.lattice.strength import CUTOFF, KEPT_BYTES, LINEWIDTH_UNIT
from jaxmd_thermal.lattice.tetrahedron import gaussian, point_weight, vertex_table

TILE = 128
"""Triplets of one q that are worked on together."""

GROUP = 8
"""Tiles whose active band triples share one buffer; they are taken from all over the grid, so that buffers fill evenly."""

PER_TRIPLET = 0.06
"""First guess of the share of (b, b', b'', delta function) that is active; a wrong guess is repaired."""

TABLE_BYTES = 1 << 30
"""Memory for one table of half transforms; with more points the triplets are worked on in chunks of q''."""

ACTIVE = "active band triples and their weights"
"""Name of what a gradient had better keep of the tetrahedra."""


class Modes(NamedTuple):
    """Phonons of a list of q-points: `qpoints` (n, 3) fractional, `frequencies` (n, bands) THz (negative: imaginary),
    `eigenvectors` (n, 3P, bands), columns, smooth phase convention exp(i q.(r - r'))."""

    qpoints: Any
    frequencies: Any
    eigenvectors: Any


class Work(NamedTuple):
    """Triplets in chunks of q'', groups and tiles (host). Leading axis: chunks.

    `thirds` (c, u) points q'' of the chunk's table; `first` (c, g, GROUP) row of `points`; `second` and `third`
    (c, g, GROUP, TILE), the latter into `thirds`; `weights` the same, zero for padding; `normal` the same; `points`
    (k,) are the q. `plus` and `minus` (n, v): the points round each one that the tetrahedra touch; `corners` (24, 3).
    `grid_points`: N of the sum over q'.
    """

    thirds: np.ndarray
    first: np.ndarray
    second: np.ndarray
    third: np.ndarray
    weights: np.ndarray
    normal: np.ndarray
    points: np.ndarray
    plus: np.ndarray
    minus: np.ndarray
    corners: np.ndarray
    grid_points: int


def plan(grid: Grid, triplets: Triplets, bytes_per_point: int, memory: int = TABLE_BYTES) -> Work:
    """Sort triplets into tiles of equal q, and into chunks whose table of half transforms fits into `memory` bytes."""
    vertices, corners = vertex_table(grid.tetrahedra)
    around = grid.addresses[:, None]
    return arrange(
        triplets, grid.index(around + vertices), grid.index(around - vertices), corners,
        max(1, int(memory // bytes_per_point)),
    )  # fmt: skip


def arrange(triplets: Triplets, plus, minus, corners, points_per_chunk: int) -> Work:
    """`plan` for given neighbours of the points, (n, v), which need not be those of a grid without repeated points."""
    n_points = len(plus)
    n_chunks = -(-n_points // points_per_chunk)
    size = -(-n_points // n_chunks)
    row = np.repeat(np.arange(len(triplets.first)), np.diff(triplets.offsets))
    chunk = triplets.points[:, 2] // size
    tiles: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(n_chunks)]
    for c in range(n_chunks):
        members = np.flatnonzero(chunk == c)
        bounds = np.searchsorted(row[members], np.arange(len(triplets.first) + 1))
        for k in range(len(triplets.first)):
            mine = members[bounds[k] : bounds[k + 1]]
            tiles[c] += [(k, mine[b : b + TILE]) for b in range(0, len(mine), TILE)]
    n_groups = max(1, max(-(-len(t) // GROUP) for t in tiles))
    shape = (n_chunks, n_groups * GROUP, TILE)
    first = np.zeros(shape[:2], np.int32)
    second, third = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weights, normal = np.zeros(shape), np.zeros(shape, bool)
    for c, mine in enumerate(tiles):
        for at, (k, rows) in enumerate(mine):
            place = (at % n_groups) * GROUP + at // n_groups
            first[c, place] = k
            second[c, place], third[c, place] = triplets.points[rows[0], 1], triplets.points[rows[0], 2] - c * size
            second[c, place, : len(rows)] = triplets.points[rows, 1]
            third[c, place, : len(rows)] = triplets.points[rows, 2] - c * size
            weights[c, place, : len(rows)] = triplets.weights[rows]
            normal[c, place, : len(rows)] = triplets.normal[rows]
        for place in range(n_groups * GROUP):  # empty tiles repeat a valid triplet with no weight
            if not weights[c, place].any() and mine:
                first[c, place] = first[c, 0]
                second[c, place], third[c, place] = second[c, 0], third[c, 0]
    thirds = np.minimum(np.arange(n_chunks)[:, None] * size + np.arange(size), n_points - 1).astype(np.int32)
    grouped = (n_chunks, n_groups, GROUP)
    return Work(
        thirds, first.reshape(grouped), *(a.reshape(*grouped, TILE) for a in (second, third, weights, normal)),
        np.asarray(triplets.first, np.int32), np.asarray(plus, np.int32), np.asarray(minus, np.int32), corners,
        int(triplets.weights[: triplets.offsets[1]].sum()),
    )  # fmt: skip


class Linewidths(NamedTuple):
    """`gamma` (2, temperatures, k, bands) THz, half widths of normal and Umklapp processes, averaged over degenerate
    modes; `needed`: band triples of the fullest buffer, to be compared with the capacity; `collisions`: the off-diagonal
    part of the collision matrix, (k, k, temperatures, bands, bands, 3, 3) THz, if it was asked for."""

    gamma: Any
    needed: Any
    collisions: Any = None


@partial(jax.jit, static_argnames=("sigma", "blocks", "capacity", "classical", "dtype"))
def linewidths(fc3, modes: Modes, paths, masses, positions, work: Work, temperatures, *, sigma=None, blocks=False,
               capacity=0, classical=False, unfolding=None, dtype="float64"):  # fmt: skip
    """Three-phonon linewidths gamma = K sum w |V|^2 {(n'+n''+1) d(f-f'-f'') + (n'-n'')[d(f+f'-f'') - d(f-f'+f'')]}.

    Equations (10) and (11) of Togo, Chaput and Tanaka, Phys. Rev. B 91, 094306 (2015); pure and differentiable.

    Args:
      fc3: (P, S, S, 3, 3, 3) eV/Å^3, first atom in the primitive cell.
      modes: phonons of all points that `work` refers to.
      paths: of fc3's supercell (`make_paths`). masses: (P,) amu. positions: (P, 3) fractional.
      temperatures: (temperatures,) K.
      sigma: THz, Gaussian of this width, or None for tetrahedra.
      blocks: average |V|^2 over degenerate modes, so that tetrahedra give the same for any choice of eigenvectors.
      capacity: length of the buffer of active band triples (tetrahedra); see `Linewidths.needed`.
      unfolding: `boltzmann.Unfolding` where the collision matrix is wanted. A triplet couples q to q' by K |V|^2 [d(f-f'-f'')
        + d(f+f'-f'') + d(f-f'+f'')]/sinh(hf''/2kT) (Chaput, Phys. Rev. Lett. 110, 265506 (2013)), and to q'' likewise.
      dtype: of |V|^2; frequencies, delta functions and sums stay in double precision.

    Returns: `Linewidths`; with `needed` > `capacity` the widths are incomplete and have to be computed again.
    """
    waves = jnp.result_type(dtype, jnp.complex64)
    fc3 = strength.grouped(fc3.astype(dtype), paths)
    inverse_root = (1 / jnp.sqrt(masses)).astype(dtype)
    f, q = modes.frequencies, modes.qpoints
    phases = strength.phase_factors(paths, q).astype(waves)
    eigenvectors = modes.eigenvectors.astype(waves)
    vectors = eigenvectors * jnp.repeat(inverse_root, 3)[:, None]
    points = jnp.asarray(work.points)
    n = occupation(f, temperatures, classical)
    constant = 0.0 if classical else 1.0
    hyperbolic = None if unfolding is None else inverse_sinh(f, temperatures, classical)
    means = strength.degenerate_mean(f)

    def tile(transforms, firsts, k, second, third, thirds):
        """|V|^2 of one tile, (TILE, bands, bands, bands)."""
        q1, q2 = second, take(thirds, third)
        first = jax.tree.map(lambda x: x[k], firsts)
        shift = jnp.exp(2j * jnp.pi * ((q[points[k]] + take(q, q1) + take(q, q2)) @ (positions - positions[0]).T))
        amplitude = strength.amplitudes(first, take(transforms, third), take(phases, q1), take(phases, q2),
                                        take(vectors, q1), take(vectors, q2), shift.astype(waves))  # fmt: skip
        values = strength.strengths(amplitude, f[points[k]], take(f, q1), take(f, q2))
        return strength.block_mean(values, means[points[k]], take(means, q1), take(means, q2)) if blocks else values

    def smeared(values, k, second, third, weights, normal, thirds):
        q1, q2 = second, take(thirds, third)
        f0, f1, f2 = f[points[k]][:, None, None], take(f, q1)[:, None, :, None], take(f, q2)[:, None, None, :]
        n1, n2 = take(n, q1)[..., None], take(n, q2)[:, :, None]  # (t, temperatures, b, c)
        decay = values * gaussian(f0 - f1 - f2, sigma)
        absorb, emit = gaussian(f0 + f1 - f2, sigma), gaussian(f0 - f1 + f2, sigma)
        merge = values * (absorb - emit)
        share = weights[:, None] * jnp.stack([normal, ~normal], -1)
        total = jnp.einsum("tabc,tTbc,tw->wTa", decay, n1 + n2 + constant, share)
        total = total + jnp.einsum("tabc,tTbc,tw->wTa", merge, n1 - n2, share)
        if hyperbolic is None:
            return total, None
        every = (decay + values * (absorb + emit)) * weights[:, None, None, None]
        to_second = jnp.einsum("tabc,tTc->tTab", every, take(hyperbolic, q2))
        to_third = jnp.einsum("tabc,tTb->tTac", every, take(hyperbolic, q1))
        return total, jnp.stack([to_second, to_third], 1)

    def group(transforms, firsts, thirds, collisions, rows):
        k, second, third, weights, normal = rows
        if sigma is not None:

            def one(row):
                return smeared(tile(transforms, firsts, *row[:3], thirds), *row, thirds)

            total, couplings = jax.lax.map(one, rows)
            needed = jnp.zeros((), jnp.int32)
        else:
            values = jax.lax.map(lambda row: tile(transforms, firsts, *row, thirds), (k, second, third))
            flat = (values.reshape(-1, *values.shape[2:]), jnp.repeat(k, TILE), second.reshape(-1),
                    take(thirds, third.reshape(-1)), weights.reshape(-1), normal.reshape(-1))  # fmt: skip
            total, needed, couplings = _active_sum(f, n, points, work, capacity, constant, hyperbolic, *flat)
        if unfolding is not None:
            partners = jnp.stack([second, take(thirds, third)], -1).reshape(-1)
            collisions = _collected(collisions, unfolding, jnp.repeat(k, 2 * TILE), partners, couplings)
        return collisions, (total, needed)

    firsts = jax.lax.map(lambda p: strength.first_phonon(fc3, phases[p], eigenvectors[p], inverse_root), points)

    kept = strength.kept_bytes(work.weights.size, f.shape[1], waves) + 12 * capacity * work.first[..., 0].size
    names = (*strength.KEPT, ACTIVE) if kept <= KEPT_BYTES else ()
    policy = jax.checkpoint_policies.save_only_these_names(*names)

    def chunk(collisions, args):
        thirds, *rows = args
        transforms = strength.half_transform(fc3, take(phases, thirds))
        step = jax.checkpoint(partial(group, transforms, firsts, thirds), policy=policy)
        collisions, (widths, needed) = jax.lax.scan(step, collisions, tuple(rows))
        widths = widths.reshape(-1, *widths.shape[2:])
        flat = jax.ops.segment_sum(widths, rows[0].reshape(-1), num_segments=len(work.points))
        return collisions, (flat, jnp.max(needed))

    parts = (work.thirds, work.first, work.second, work.third, work.weights, work.normal)
    parts = jax.tree.map(jnp.asarray, parts)
    collisions = None
    if unfolding is not None:
        k, bands = len(work.points), f.shape[1]
        collisions = jnp.zeros((k, k, len(temperatures), bands, bands, 3, 3))
    if len(work.thirds) == 1:
        collisions, (gamma, needed) = chunk(collisions, tuple(p[0] for p in parts))
    else:
        collisions, (gamma, needed) = jax.lax.scan(jax.checkpoint(chunk, policy=policy), collisions, parts)
        gamma, needed = jnp.sum(gamma, 0), jnp.max(needed)
    unit = LINEWIDTH_UNIT / work.grid_points
    gamma = jnp.einsum("kwTa,kab->wTkb", gamma, means[points])
    return Linewidths(gamma * unit, needed, None if collisions is None else collisions * unit)


def _collected(collisions, unfolding, rows, partners, couplings):
    """Add couplings (..., 2, temperatures, bands, bands) of irreducible points `rows` to grid points `partners`, flat.

    Half of a triplet's weight goes either way: it stands for (q', q'') and (q'', q'). The mean over the operations that
    keep q stands for the other triplets of its orbit.
    """
    turn = jnp.einsum("nij,njl->nil", take(unfolding.kept, rows), take(unfolding.turned, partners))
    couplings = 0.5 * couplings.reshape(len(rows), *couplings.shape[-3:])
    return collisions.at[rows, take(unfolding.star, partners)].add(
        couplings[..., None, None] * turn[:, None, None, None], mode="promise_in_bounds"
    )


def _active_sum(f, n, points, work: Work, capacity, constant, hyperbolic, values, k, q1, q2, weights, normal):
    """Sum over the (t, b, b', b'', delta function) that have a tetrahedron containing f, how many there are, and couplings
    (t, 2, temperatures, bands, bands) to q' and q'' if `hyperbolic` is given."""
    bands = f.shape[1]
    positive = jnp.maximum(f, 0.0)
    around1 = take(positive, take(work.plus, q1))  # (t, v, bands)
    around2 = take(positive, take(work.minus, q2))
    f0 = take(f, take(points, k))
    ranges = []
    fixed1, fixed2 = jax.lax.stop_gradient((around1, around2))
    for sign in (1.0, -1.0):
        both = fixed2[:, :, None, :] + sign * fixed1[:, :, :, None]
        ranges.append((jnp.min(both, 1)[:, None], jnp.max(both, 1)[:, None]))
    (low, high), (lower, upper) = ranges
    at = jax.lax.stop_gradient(f0)[:, :, None, None]
    fine = (at > CUTOFF) & (take(f, q1) > CUTOFF)[:, None, :, None] & (take(f, q2) > CUTOFF)[:, None, None, :]
    fine &= (weights > 0)[:, None, None, None]
    active = jnp.stack([(low < at) & (at < high), (lower < at) & (at < upper), (lower < -at) & (-at < upper)], -1)
    seen = jnp.cumsum((active & fine[..., None]).reshape(-1), dtype=jnp.int32)
    slot = jnp.searchsorted(seen, jnp.arange(1, capacity + 1, dtype=jnp.int32))
    there = jnp.arange(capacity) < checkpoint_name(seen[-1], ACTIVE)
    slot = checkpoint_name(jnp.minimum(slot, len(seen) - 1), ACTIVE)
    rest, kind = slot // 3, slot % 3
    rest, c = rest // bands, rest % bands
    rest, b = rest // bands, rest % bands
    t, a = rest // bands, rest % bands
    sign = jnp.where(kind == 0, 1.0, -1.0)
    v1 = around1.at[t, :, b].get(mode="promise_in_bounds")
    v2 = around2.at[t, :, c].get(mode="promise_in_bounds")
    frequency = f0.at[t, a].get(mode="promise_in_bounds") * jnp.where(kind == 2, -1.0, 1.0)
    weight = checkpoint_name(point_weight(frequency, (v2 + sign[:, None] * v1).T, work.corners), ACTIVE)
    amount = weight * values.at[t, a, b, c].get(mode="promise_in_bounds") * take(weights, t) * there
    n1 = n.at[take(q1, t), :, b].get(mode="promise_in_bounds")  # (capacity, temperatures)
    n2 = n.at[take(q2, t), :, c].get(mode="promise_in_bounds")
    kind = kind[:, None]
    factor = jnp.where(kind == 0, n1 + n2 + constant, jnp.where(kind == 1, n1 - n2, n2 - n1))
    place = ((t // TILE) * 2 + jnp.where(take(normal, t), 0, 1)) * bands + a
    total = jax.ops.segment_sum(amount[:, None] * factor, place, num_segments=GROUP * 2 * bands)
    couplings = None
    if hyperbolic is not None:

        def to(q, band, other, other_band):
            amounts = amount[:, None] * hyperbolic.at[take(other, t), :, other_band].get(mode="promise_in_bounds")
            sums = jax.ops.segment_sum(amounts, (t * bands + a) * bands + band, num_segments=len(q) * bands**2)
            return jnp.moveaxis(sums.reshape(len(q), bands, bands, -1), -1, 1)

        couplings = jnp.stack([to(q1, b, q2, c), to(q2, c, q1, b)], 1)
    return jnp.swapaxes(total.reshape(GROUP, 2, bands, -1), 2, 3), seen[-1], couplings


def first_capacity(bands: int) -> int:
    """Buffer to begin with."""
    return buffer_length(PER_TRIPLET * 3 * GROUP * TILE * bands**3)


def solved_linewidths(fc3, modes: Modes, paths, masses, positions, work: Work, temperatures, **options):
    """`linewidths`, with the buffer grown until it holds what is active. Returns: gamma, and the capacity that was enough.

    Raises:
      CapacityError: the buffer did not converge.
    """
    result, capacity = solved(fc3, modes, paths, masses, positions, work, temperatures, **options)
    return result.gamma, capacity


def solved(fc3, modes: Modes, paths, masses, positions, work: Work, temperatures, **options) -> tuple[Linewidths, int]:
    """`solved_linewidths` with all of `Linewidths`."""
    capacity = options.pop("capacity", 0) or first_capacity(modes.frequencies.shape[1])
    if options.get("sigma") is not None:
        capacity = 0
    for _ in range(4):
        result = linewidths(fc3, modes, paths, masses, positions, work, temperatures, capacity=capacity, **options)
        needed = int(result.needed)
        if needed <= capacity:
            return result, capacity
        capacity = buffer_length(1.05 * needed)
    raise CapacityError(
        f"the buffer of active band triples needs {needed} places and has {capacity}; use a coarser mesh"
    )
