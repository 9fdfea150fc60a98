"""Eigenvectors of dynamical matrices with a derivative that survives degeneracy."""

from __future__ import annotations

import jax
import jax.numpy as jnp

DEGENERATE = 1e-6
"""Eigenvalues closer than this share of the largest one are taken as degenerate in derivatives."""


@jax.custom_jvp
def eigh(matrix):
    """Eigenvalues (..., b), ascending, and eigenvectors (..., b, b), columns, of Hermitian matrices.

    The derivative leaves out the mixing of modes whose eigenvalues differ by less than 1e-6 of the largest. That is exact
    for outputs which do not depend on the choice of eigenvectors inside a degenerate block, under changes that keep the
    symmetry which makes them degenerate; JAX's own rule gives finite, wrong numbers there.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


@eigh.defjvp
def _eigh_jvp(primals, tangents):
    (matrix,), (change,) = primals, tangents
    values, vectors = eigh(matrix)
    change = 0.5 * (change + jnp.swapaxes(change.conj(), -1, -2))
    inner = jnp.swapaxes(vectors.conj(), -1, -2) @ change @ vectors
    gap = values[..., None, :] - values[..., :, None]
    largest = jnp.max(jnp.abs(values), -1)[..., None, None]
    apart = jnp.abs(gap) > DEGENERATE * largest
    mixing = jnp.where(apart, 1 / jnp.where(apart, gap, 1.0), 0.0)
    d_values = jnp.real(jnp.diagonal(inner, axis1=-2, axis2=-1))
    return (values, vectors), (d_values, vectors @ (mixing * inner))
