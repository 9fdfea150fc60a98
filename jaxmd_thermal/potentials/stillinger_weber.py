"""Stillinger-Weber: pairs, and triples that favour the tetrahedral angle."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.potentials.base import Potential
from jaxmd_thermal.system import static

EDGE = 1e-3
"""Within this fraction of the cutoff the exponentials are below 1e-240 (usual parameters), and are taken as zero."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StillingerWeber(Potential):
    """U_i = 1/2 sum_j phi2(r_ij) + sum_{j<k} phi3(r_ij, r_ik, theta_jik): triples belong to their centre.

    phi2 = A epsilon [B (sigma/r)^p - (sigma/r)^q] exp(sigma / (r - a sigma))
    phi3 = lambda epsilon (cos theta - cos theta0)^2 exp(gamma sigma / (r_ij - a sigma)) exp(gamma sigma / (r_ik - a sigma))

    both zero from r = a sigma on, where all derivatives vanish.

    Args:
      epsilon: eV.
      sigma: Å.
      A, B, p, q, a, lam, gamma, cos_theta0: dimensionless.
      cutoff: Å; a sigma unless it is given. Static: a fit that lets a sigma grow needs a cutoff with room for it.
      species: atomic numbers that the parameters describe, None for any.

    Source: Stillinger and Weber, Phys. Rev. B 31, 5262 (1985), eqs. 2.3 to 2.6.
    """

    epsilon: Any
    sigma: Any
    A: Any
    B: Any
    p: Any
    q: Any
    a: Any
    lam: Any
    gamma: Any
    cos_theta0: Any
    cutoff: float = static(None)
    species: tuple[int, ...] | None = static(None)

    row_local = True

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if not f.metadata.get("static") and isinstance(value, int | float):
                object.__setattr__(self, f.name, np.asarray(value, np.float64))
        if self.cutoff is None:
            object.__setattr__(self, "cutoff", float(self.a) * float(self.sigma))
        if not self.cutoff > 0:
            raise InputError(f"the cutoff a sigma is {self.cutoff} Å; it must be positive")

    @classmethod
    def silicon(cls) -> StillingerWeber:
        """Silicon with the parameters of 1985: epsilon = 50 kcal/mol = 2.1683 eV, cohesive energy 2 epsilon per atom.

        (A later set scales epsilon to 2.16722 eV to meet the measured cohesive energy; this is not it.)
        """
        return cls(
            epsilon=2.1683, sigma=2.0951, A=7.049556277, B=0.6022245584, p=4.0, q=0.0, a=1.80, lam=21.0, gamma=1.20,
            cos_theta0=-1.0 / 3.0, species=(14,),
        )  # fmt: skip

    def atomic_energies(self, graph):
        edges, d2 = graph.edge_vectors, graph.distances_squared
        reach = jnp.asarray(self.a * self.sigma, d2.dtype)
        r = jnp.sqrt(d2)
        inside = graph.mask & (r < (1.0 - EDGE) * reach)
        # Two wheres: beyond the cutoff the exponential must not even be differentiated (0 times infinity).
        r = jnp.where(inside, r, 0.5 * reach)
        tail = jnp.where(inside, self.sigma / (r - reach), 0.0)

        # Powers by exp(p log x): p and q are parameters too, and their gradients exist as x > 0.
        log_ratio = jnp.log(self.sigma / r)
        phi2 = self.A * (self.B * jnp.exp(self.p * log_ratio) - jnp.exp(self.q * log_ratio)) * jnp.exp(tail)
        pairs = 0.5 * jnp.sum(jnp.where(inside, phi2, 0.0), axis=-1)

        # The sum over pairs j < k of h_j h_k (u_j.u_k - c)^2 is a polynomial in moments of the neighbours:
        # 1/2 [|sum h uu|^2 - 2 c |sum h u|^2 + c^2 (sum h)^2 - (1 - c)^2 sum h^2]. Linear in K, not quadratic.
        h = jnp.where(inside, jnp.exp(self.gamma * tail), 0.0)
        u = edges / r[..., None]
        hu = h[..., None] * u
        zeroth, first, second = jnp.sum(h, axis=-1), jnp.sum(hu, axis=1), jnp.einsum("nkx,nky->nxy", hu, u)
        c = self.cos_theta0
        triples = 0.5 * (
            jnp.sum(second**2, axis=(1, 2))
            - 2.0 * c * jnp.sum(first**2, axis=1)
            + c**2 * zeroth**2
            - (1.0 - c) ** 2 * jnp.sum(h**2, axis=-1)
        )
        return self.epsilon * (pairs + self.lam * triples)
