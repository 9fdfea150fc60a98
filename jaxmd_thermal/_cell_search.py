"""The search of the neighbour list: cells, sorted runs and bit masks; no scatter, no per-atom counters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._arrays import map_blocks, take

COLUMN_BINS, RUN_BINS = 2, 8
"""Cells per reach, across and along the runs of the search."""
BLOCK = 64
FAR = 1e30


def search(frac, extended, alive, n_atoms: int, reach_frac, plan):
    """(index, largest number of neighbours, longest run), without scatters or per-atom counters.

    Atoms are sorted by cell. Cells are at least half the reach wide along the first two directions and an eighth along
    the third, which runs fastest, so what an atom can reach in one of 25 columns of cells is one contiguous run of the
    sorted array. The hits in a run are bits of a word (of several words, if runs are long), and slot k of a row is found
    by looking for the k-th set bit.
    """
    n_bins = np.array(plan.bins)
    low, width = _grid(frac, alive, reach_frac, plan)
    cell_of = jnp.clip(jnp.floor((frac - low) / width), 0, n_bins - 1).astype(jnp.int32)
    n_cells = int(np.prod(n_bins))
    flat = (cell_of[:, 0] * n_bins[1] + cell_of[:, 1]) * n_bins[2] + cell_of[:, 2]
    flat = jnp.where(alive, flat, n_cells)
    # One sort of cell and atom packed into a word is cheaper than an argsort.
    total = frac.shape[0]
    places = jnp.arange(total, dtype=jnp.int32)
    order = (jax.lax.sort((flat.astype(jnp.int64) << 32) | places) & 0xFFFFFFFF).astype(jnp.int32)
    counts = jnp.zeros(n_cells + 2, jnp.int32).at[flat + 1].add(1)
    starts = jnp.cumsum(counts, dtype=jnp.int32)  # starts[c] = first sorted place of cell c
    place_of = jnp.zeros(total, jnp.int32).at[order].set(places, unique_indices=True)

    bits = min(plan.run, 32)
    words = -(-plan.run // 32)
    # Flat, with far rows at the end, so that a slab of `bits` rows may begin anywhere.
    ordered = jnp.concatenate([take(extended, order), jnp.full((bits, 3), FAR, extended.dtype)]).ravel()
    steps = np.arange(-COLUMN_BINS, COLUMN_BINS + 1)
    columns = np.array([(dx, dy) for dx in steps for dy in steps], np.int32)

    def rows(start):
        def cut(x):
            return jax.lax.dynamic_slice_in_dim(x, start, min(BLOCK, n_atoms))

        here, cell = cut(extended[:n_atoms]), cut(cell_of[:n_atoms])
        column = cell[:, None, :2] + columns
        inside = jnp.all((column >= 0) & (column < n_bins[:2]), axis=-1)
        column = jnp.clip(column, 0, n_bins[:2] - 1)
        base = (column[..., 0] * n_bins[1] + column[..., 1]) * n_bins[2]
        z = cell[:, None, 2]
        first = take(starts, base + jnp.maximum(z - RUN_BINS, 0))
        last = take(starts, base + jnp.minimum(z + RUN_BINS, n_bins[2] - 1) + 1)
        length = jnp.where(inside, last - first, 0)
        longest = jnp.max(length, axis=1)
        if words > 1:
            offsets = np.arange(words, dtype=np.int32) * 32
            first = jnp.minimum(first[..., None] + offsets, total).reshape(first.shape[0], -1)
            length = jnp.clip(length[..., None] - offsets, 0, 32).reshape(first.shape)
        there = _slabs(ordered, first, bits)
        near = jnp.sum((there - here[:, None, None]) ** 2, axis=-1) < plan.reach**2
        bit = np.uint32(1) << np.arange(bits, dtype=np.uint32)
        hits = jax.lax.reduce(jnp.where(near, bit, np.uint32(0)), np.uint32(0), jax.lax.bitwise_or, (2,))
        full = np.uint32(0xFFFFFFFF)
        hits &= jnp.where(length >= 32, full, (np.uint32(1) << (length & 31).astype(jnp.uint32)) - np.uint32(1))
        # An atom is not its own neighbour.
        me = cut(place_of[:n_atoms])[:, None] - first
        hits = jnp.where((me >= 0) & (me < bits), hits & ~(np.uint32(1) << (me & 31).astype(jnp.uint32)), hits)
        picked, found = _nth_hits(hits, first, plan.slots)
        return picked, found, longest

    picked, found, longest = map_blocks(rows, n_atoms, BLOCK)
    index = take(order, jnp.minimum(picked, total - 1))
    own = jnp.arange(n_atoms, dtype=jnp.int32)[:, None]
    index = jnp.where(jnp.arange(plan.slots, dtype=jnp.int32) < found[:, None], index, own)
    return index, jnp.max(found), jnp.max(longest)


def _grid(frac, alive, reach_frac, plan):
    """(low, width) of the search grid in the coordinates of the frame."""
    pbc = np.array(plan.pbc)
    low = jnp.where(pbc, -reach_frac, jnp.min(jnp.where(alive[:, None], frac, jnp.inf), axis=0))
    high = jnp.where(pbc, 1.0 + reach_frac, jnp.max(jnp.where(alive[:, None], frac, -jnp.inf), axis=0))
    # 1e-9: cells of exactly the least width must not lose a pair to rounding.
    least = reach_frac / np.array([COLUMN_BINS, COLUMN_BINS, RUN_BINS]) * (1 + 1e-9)
    return low, jnp.maximum((high - low) / np.array(plan.bins), least)


def _slabs(flat, first, size: int):
    """(..., size, 3) rows first .. first + size of a flattened (n, 3) array: contiguous copies instead of a gather."""
    numbers = jax.lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(), start_index_map=(0,))
    slabs = jax.lax.gather(
        flat,
        (first.reshape(-1, 1) * 3).astype(jnp.int32),
        numbers,
        (size * 3,),
        mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    return slabs.reshape(*first.shape, size, 3)


def _nth_hits(hits, first, slots: int):
    """Sorted places of the first `slots` set bits of each row of (rows, words) bit masks, and their number."""
    n_words = hits.shape[1]
    ones = jax.lax.population_count(hits).astype(jnp.float32)
    # A product with a triangular matrix (exact: whole numbers) stays materialised, where a chain of additions would be
    # computed again for every slot.
    upper = jnp.asarray(np.triu(np.ones((n_words, n_words), np.float32)))
    ends = jnp.dot(ones, upper, precision=jax.lax.Precision.HIGHEST).astype(jnp.int32)
    slot = jnp.arange(slots, dtype=jnp.int32)[None, :]
    shape = (hits.shape[0], slots)
    word, base = jnp.broadcast_to(hits[:, :1], shape), jnp.broadcast_to(first[:, :1], shape)
    before = jnp.zeros(shape, jnp.int32)
    for c in range(1, n_words):
        past = ends[:, c - 1, None] <= slot
        word = jnp.where(past, hits[:, c, None], word)
        base = jnp.where(past, first[:, c, None], base)
        before = jnp.where(past, ends[:, c - 1, None], before)
    return base + _nth_bit(word, slot - before), ends[:, -1]


def _nth_bit(word, n):
    """Position of the n-th (from 0) set bit of 32-bit words, by halving."""
    position = jnp.zeros_like(n)
    for half in (16, 8, 4, 2, 1):
        low = word & np.uint32((1 << half) - 1)
        count = jax.lax.population_count(low).astype(jnp.int32)
        up = n >= count
        n = jnp.where(up, n - count, n)
        word = jnp.where(up, word >> np.uint32(half), low)
        position = jnp.where(up, position + half, position)
    return position
