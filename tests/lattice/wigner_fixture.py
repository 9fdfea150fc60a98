"""The fixtures of the reference code as objects of the package, and a small dynamical matrix of our own."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal import units
from jaxmd_thermal.lattice import scattering, strength
from jaxmd_thermal.lattice.crystal import Crystal, Images
from jaxmd_thermal.lattice.eigen import eigh
from jaxmd_thermal.lattice.grid import Triplets
from jaxmd_thermal.lattice.tetrahedron import vertex_table

THZ = np.sqrt(1 / units.AMU_A2_FS2) / (2 * np.pi) * 1e3


def images_of(vectors, shares, primitive_of) -> Images:
    dense, multiplicity = [], np.zeros((*vectors.shape[:2], 2), int)
    for s, p in np.ndindex(*vectors.shape[:2]):
        used = vectors[s, p, shares[s, p] > 0]
        multiplicity[s, p] = len(used), len(dense)
        dense += list(used)
    rows = np.array([np.flatnonzero(primitive_of == p)[0] for p in range(vectors.shape[1])])
    return Images(np.zeros((3, 3), int), rows, primitive_of, np.array(dense), multiplicity)


def load(shared, name):
    """Fields of the fixture; `crystal`, `images2`, `images3`; `work`: the fixture's own points and triplets."""
    z = SimpleNamespace(**np.load(shared / f"data/phonondb103/fixtures/{name}.npz"))
    numbers = np.array([11, 17] if name.startswith("nacl") else [3, 35])
    z.crystal = Crystal(z.prim, z.pos, numbers, z.masses)
    z.images2, z.images3 = images_of(z.s2, z.w2, z.s2p2), images_of(z.s3, z.w3, z.s2p)
    address = np.mod(z.addr, z.mesh)
    flat = address[:, 0] + z.mesh[0] * (address[:, 1] + z.mesh[1] * address[:, 2])
    home = np.full(np.prod(z.mesh), -1)
    home[flat[::-1]] = np.arange(len(flat))[::-1]

    def find(a):
        a = np.mod(a, z.mesh)
        return home[a[..., 0] + z.mesh[0] * (a[..., 1] + z.mesh[1] * a[..., 2])]

    vertices, corners = vertex_table(z.rel)
    triplets = Triplets(z.gps, z.off, z.tri, z.wts, np.ones(len(z.wts), bool))
    z.work = scattering.arrange(
        triplets, find(z.addr[:, None] + vertices), find(z.addr[:, None] - vertices), corners, 10**6
    )
    z.paths, z.paths2 = strength.make_paths(z.images3), strength.make_paths(z.images2)
    return z


def dynamical_matrix(fc2, q, paths, masses):
    n = len(masses)
    blocks = jnp.asarray(fc2)[:, paths.order.reshape(-1)].reshape(n, n, -1, 3, 3)
    d = jnp.einsum("ijsab,qijs->qiajb", blocks, strength.phase_factors(paths, q))
    root = 1 / jnp.sqrt(jnp.repeat(jnp.asarray(masses), 3))
    d = d.reshape(len(q), 3 * n, 3 * n) * root[:, None] * root
    return 0.5 * (d + jnp.swapaxes(d.conj(), 1, 2))


def solve(fc2, q, z) -> scattering.Modes:
    values, vectors = eigh(dynamical_matrix(fc2, q, z.paths2, z.masses))
    size = jnp.where(jnp.abs(values) > 1e-18, jnp.abs(values), 1e-18)
    return scattering.Modes(q, jnp.sign(values) * jnp.sqrt(size) * THZ, vectors)


def velocity(fc2, modes: scattering.Modes, z):
    def along(axis):
        direction = jnp.tile(jnp.asarray(z.prim[:, axis])[None], (len(modes.qpoints), 1))
        return jax.jvp(lambda q: dynamical_matrix(fc2, q, z.paths2, z.masses), (modes.qpoints,), (direction,))[1]

    e, f = modes.eigenvectors, modes.frequencies
    inner = jnp.einsum("kis,ckij,kjt->kcst", e.conj(), jnp.stack([along(c) for c in range(3)]) * THZ**2, e)
    both = ((f[:, :, None] > 1e-4) & (f[:, None, :] > 1e-4))[:, None]
    return jnp.where(both, inner / jnp.where(both, (f[:, :, None] + f[:, None, :])[:, None], 1.0), 0.0)
