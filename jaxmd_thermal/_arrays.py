"""Array kernels of the inner loops, written so that XLA compiles them well; no physics."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def take(values, index):
    """`values[index]` for an index that is known to be valid: no clamping, no wrapping of negative numbers."""
    return jnp.asarray(values).at[index].get(mode="promise_in_bounds")


def buffer_length(needed: float) -> int:
    """`needed` rounded up to whole vectors: XLA on CPU does not vectorise elementwise loops over odd lengths (measured: four
    times as slow)."""
    return 64 * math.ceil(needed / 64)


UNROLLED_SLOTS = 512
LANES = 8
WIDTH = 16


@jax.custom_jvp
def slot_sum(weights, there, here):
    """(rows, K), (rows, K, 3), (rows, 3) -> (rows, 3): the sum over slots of weight times (there - here).

    On CPU it is written as explicit additions, slot by slot: XLA would otherwise materialise edges and products (measured:
    50 against 110 ns an atom). The order of additions does not depend on K, so empty slots change no bit of the result.
    """
    n_slots = weights.shape[1]
    if n_slots == 0 or n_slots > UNROLLED_SLOTS or jax.default_backend() != "cpu":
        return jnp.einsum("nk,nkx->nx", weights, (there - here[:, None]).astype(weights.dtype))
    lanes = []
    for k in range(n_slots):
        term = weights[:, k, None] * (there[:, k] - here).astype(weights.dtype)
        if k < LANES:
            lanes.append(term)
        else:
            lanes[k % LANES] = lanes[k % LANES] + term
    while len(lanes) > 1:
        lanes = [a + b for a, b in zip(lanes[::2], lanes[1::2], strict=False)] + ([lanes[-1]] if len(lanes) % 2 else [])
    return lanes[0]


@slot_sum.defjvp
def _slot_sum_jvp(primals, tangents):
    (weights, there, here), (d_weights, d_there, d_here) = primals, tangents
    edges = (there - here[:, None]).astype(weights.dtype)
    d_edges = (d_there - d_here[:, None]).astype(weights.dtype)
    change = jnp.einsum("nk,nkx->nx", d_weights, edges) + jnp.einsum("nk,nkx->nx", weights, d_edges)
    return slot_sum(weights, there, here), change


def row_sum(values):
    """(rows, K) -> (rows,): the sum over slots, in an order that does not depend on K; vectorised along the slots."""
    n_slots = values.shape[1]
    short = -n_slots % WIDTH
    values = jnp.pad(values, ((0, 0), (0, short)))
    total = values[:, :WIDTH]
    for k in range(WIDTH, n_slots + short, WIDTH):
        total = total + values[:, k : k + WIDTH]
    return jnp.sum(total, axis=1)


def map_blocks(function, n: int, block: int):
    """Stack `function(start)` (a pytree with `block` leading rows) over blocks that cover `n` rows.

    The last block overlaps its predecessor instead of being padded, so nothing is copied to make `n` divisible.
    """
    block = min(block, n)
    count = -(-n // block)
    starts = jnp.minimum(jnp.arange(count, dtype=jnp.int32) * block, n - block)
    stacked = jax.lax.map(function, starts)
    rest = n - (count - 1) * block

    def join(x):
        head = x[:-1].reshape(-1, *x.shape[2:])
        return jnp.concatenate([head, x[-1, block - rest :]]) if rest < block else x.reshape(-1, *x.shape[2:])

    return jax.tree.map(join, stacked)
