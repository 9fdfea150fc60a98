"""Full solution of the linearised Boltzmann equation of phonons, beyond the relaxation-time approximation.

Chaput, Phys. Rev. Lett. 110, 265506 (2013); Togo, Chaput and Tanaka, Phys. Rev. B 91, 094306 (2015). With
w = sqrt(C) v, kappa = w.Omega^-1.w/(V N), where Omega has the linewidths on its diagonal. The unknown, like the velocity,
is a vector for each mode that turns with the crystal: its values on the irreducible points are all that is solved for.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal.errors import UnstableError
from jaxmd_thermal.lattice.grid import Grid
from jaxmd_thermal.lattice.occupation import heat_capacity
from jaxmd_thermal.lattice.strength import CUTOFF, degenerate_mean
from jaxmd_thermal.lattice.wigner import CONDUCTIVITY

TOLERANCE = 1e-10
"""Residual of conjugate gradients over that of zero."""

ITERATIONS = 500
"""Limit of conjugate gradients; some ten are usual."""

SMALL = 1e-8
"""Eigenvalues of the scaled collision matrix (one on the diagonal) below this are left out of the direct solution."""


class Unfolding(NamedTuple):
    """How vectors on the irreducible points give those on the whole grid, x(q') = turned(q') x(star(q')).

    `star` (n,); `kept` (k, 3, 3) projects on the vectors that the operations keeping the point leave unchanged; `turned`
    (n, 3, 3) Cartesian, this projection and then the operation that takes the irreducible point to q'.
    """

    star: Any
    turned: Any
    kept: Any


def unfold(grid: Grid, reciprocal) -> Unfolding:
    """`Unfolding` of a grid; reciprocal (3, 3), rows. Host."""
    basis = np.asarray(reciprocal, float).T
    operations = basis @ grid.operations @ np.linalg.inv(basis)
    turned = np.zeros((len(grid.addresses), 3, 3))
    kept = np.zeros((len(grid.irreducible), 3, 3))
    addresses = grid.qpoints[grid.irreducible] @ np.swapaxes(grid.operations, 1, 2) * grid.mesh
    images = grid.index(np.rint(addresses).astype(int))  # (g, k)
    for k, home in enumerate(grid.irreducible):
        kept[k] = operations[images[:, k] == home].mean(0)
        turned[images[:, k]] = operations @ kept[k]
    return Unfolding(grid.star, turned, kept)


class Solution(NamedTuple):
    """What the in-scattering adds to the relaxation-time approximation, W/(m K): `added` (3, 3) and `modes` (k, bands), star
    weights included; `residual` of the equation over its right side, and `steps` of the iteration (0: direct);
    `lowest`: smallest x.Omega.x/x.diag.x met on the way, or the smallest eigenvalue (negative: tetrahedron noise)."""

    added: Any
    modes: Any
    residual: Any
    steps: Any
    lowest: Any


def collision_matrix(collisions, gamma, frequencies, weights):
    """Symmetric matrix on (k, bands, 3), scaled to ones on the diagonal of the linewidths, and these scales (k, bands).

    Averaged over degenerate modes on both sides, and over both ways of scattering. Modes without scattering take no part.

    Args:
      collisions: (k, k, bands, bands, 3, 3) THz, `Linewidths.collisions` of one temperature.
      gamma: (k, bands) THz, all processes.
      frequencies: (k, bands) THz. weights: (k,) points of the stars.
    """
    means = degenerate_mean(frequencies)
    some = (gamma > 0) & (frequencies > CUTOFF)
    scale = jnp.where(some, 1 / jnp.sqrt(jnp.where(some, gamma, 1.0)), 0.0)
    size = 3 * gamma.size
    left = means * (scale * jnp.sqrt(weights)[:, None])[:, None]
    right = means * (scale / jnp.sqrt(weights)[:, None])[:, None]
    matrix = jnp.einsum("kKabij,kac->kKcbij", collisions, left)
    matrix = jnp.einsum("kKcbij,Kbd->kciKdj", matrix, right).reshape(size, size)
    return 0.5 * (matrix + matrix.T) + jnp.eye(size), scale


@partial(jax.jit, static_argnames=("direct", "classical"))
def solve(collisions, gamma, frequencies, velocity, weights, volume, temperature, kept, rotations, *, direct=False,
          classical=False) -> Solution:  # fmt: skip
    """Solve Omega x = sqrt(C) v at one temperature: by conjugate gradients, or directly (eigenvalues; small meshes).

    The velocities are the means over degenerate blocks: what differs from them inside a block is not fed by any other mode
    and keeps its relaxation time, so the sum with the populations of the Wigner formula does not depend on the choice of
    eigenvectors.

    Args:
      collisions, gamma, frequencies, weights: as in `collision_matrix`.
      velocity: (k, 3, bands, bands) THz Å, velocity operator.
      volume: Å^3. temperature: K. kept: of `Unfolding`. rotations: (r, 3, 3) Cartesian, the point group.
    """
    matrix, scale = collision_matrix(collisions, gamma, frequencies, weights)
    speed = jnp.real(jnp.diagonal(velocity, axis1=2, axis2=3))  # (k, 3, bands)
    speed = jnp.einsum("kib,kbc,kji->kcj", speed, degenerate_mean(frequencies), kept)
    root = jnp.sqrt(heat_capacity(frequencies, jnp.asarray(temperature)[None], classical)[:, 0])
    right = (speed * (root * scale * jnp.sqrt(weights)[:, None])[..., None]).reshape(-1)
    if direct:
        values, vectors = jnp.linalg.eigh(matrix)
        inverse = jnp.where(values > SMALL, 1 / jnp.where(values > SMALL, values, 1.0), 0.0)
        x, steps, lowest = vectors @ (inverse * (vectors.T @ right)), jnp.zeros((), jnp.int32), values[0]
    else:
        x, steps, lowest = _conjugate_gradients(matrix, right)
    size = jnp.sqrt(jnp.sum(right**2))
    residual = jnp.sqrt(jnp.sum((matrix @ x - right) ** 2)) / jnp.where(size > 0, size, 1.0)
    unit = CONDUCTIVITY / (2 * volume * jnp.sum(weights))
    right, added = right.reshape(speed.shape), (x - right).reshape(speed.shape)
    tensor = unit * jnp.einsum("kbi,kbj->ij", right, added)
    tensor = jnp.einsum("rac,rbd,cd->ab", rotations, rotations, tensor) / len(rotations)
    modes = unit * jnp.sum(weights) / 3 * jnp.sum(right * added, -1)
    return Solution(0.5 * (tensor + tensor.T), modes, residual, steps, lowest)


def _conjugate_gradients(matrix, right):
    """Solution of matrix x = right, steps, and the lowest Rayleigh quotient of the search directions."""
    goal = TOLERANCE**2 * jnp.sum(right**2)

    def unfinished(state):
        _, _, _, square, steps, lowest = state
        return (square > goal) & (steps < ITERATIONS) & (lowest > 0)

    def step(state):
        x, rest, along, square, steps, lowest = state
        image = matrix @ along
        curvature = jnp.vdot(along, image)
        length = square / curvature
        x, rest = x + length * along, rest - length * image
        new = jnp.vdot(rest, rest)
        lowest = jnp.minimum(lowest, curvature / jnp.vdot(along, along))
        return x, rest, rest + new / square * along, new, steps + 1, lowest

    start = jnp.zeros_like(right), right, right, jnp.vdot(right, right), jnp.zeros((), jnp.int32), jnp.ones(())
    x, _, _, _, steps, lowest = jax.lax.while_loop(unfinished, step, start)
    return x, steps, lowest


def check(solution: Solution, temperature: float) -> None:
    """Raise where the iteration did not reach the solution.

    Raises:
      UnstableError: too many steps, or a collision matrix that is not positive.
    """
    if not solution.residual < 100 * TOLERANCE:
        why = (
            "the collision matrix is not positive (noise of the tetrahedra on a coarse mesh)" if solution.lowest <= 0
            else f"{int(solution.steps)} steps were not enough"
        )  # fmt: skip
        raise UnstableError(
            f"the Boltzmann equation at {temperature:g} K is solved to {float(solution.residual):.1e} instead of "
            f"{100 * TOLERANCE:.0e}: {why}; take a finer mesh or Gaussians (sigma)"
        )
