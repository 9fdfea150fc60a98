"""Independent references: explicit image loops, open clusters, NumPy. Slow, and written to be read.

Nothing here uses the package's neighbour list, ghosts, derivative routes or time shifts. Models are evaluated on graphs
of open clusters whose neighbour matrix is made by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.graph import Graph
from jaxmd_thermal.neighbors import NeighborList, NeighborPlan, allocate, make_plan
from jaxmd_thermal.potentials import Potential
from jaxmd_thermal.potentials.base import terms_of
from jaxmd_thermal.system import System, static

# --- pairs ----------------------------------------------------------------------------------------------------------


def image_range(cell, pbc, reach) -> list[range]:
    """Images to look at in each direction, when atoms may lie anywhere in (or near) the cell."""
    inverse = np.linalg.inv(np.where(np.array(pbc)[:, None], cell, complete(cell, pbc)))
    ranges = []
    for d in range(3):
        n = int(np.ceil(reach * np.linalg.norm(inverse[:, d]))) + 1 if pbc[d] else 0
        ranges.append(range(-n, n + 1))
    return ranges


def complete(cell, pbc):
    """The cell with the rows of open directions replaced by unit vectors normal to all others."""
    rows = np.array(cell, float)
    periodic = [d for d in range(3) if pbc[d]]
    _, _, basis = np.linalg.svd(rows[periodic] if periodic else np.zeros((1, 3)))
    normals = list(basis[len(periodic) :])
    for d in range(3):
        if not pbc[d]:
            rows[d] = normals.pop()
    return rows


def wrapped(positions, cell, pbc):
    frame = complete(cell, pbc)
    fractional = positions @ np.linalg.inv(frame)
    return np.where(pbc, fractional - np.floor(fractional), fractional) @ frame


def brute_force_pairs(positions, cell, pbc, cutoff):
    """(i, j, vectors) of all directed pairs within the cutoff, images included, by explicit loops."""
    inside = wrapped(positions, cell, pbc)
    first, second, vectors = [], [], []
    for steps in product(*image_range(cell, pbc, cutoff)):
        # Masked, because a row of an open direction may hold anything, infinity included.
        shift = np.array(steps, float) @ complete(cell, pbc)
        difference = inside[None, :] + shift - inside[:, None]
        distance = np.linalg.norm(difference, axis=-1)
        close = distance < cutoff
        if not any(steps):
            np.fill_diagonal(close, False)
        i, j = np.nonzero(close)
        first.append(i), second.append(j), vectors.append(difference[i, j])
    return np.concatenate(first), np.concatenate(second), np.concatenate(vectors)


def sorted_pairs(i, j, vectors, decimals=6) -> list[tuple]:
    return sorted(zip(i.tolist(), j.tolist(), *(np.round(vectors + 0.0, decimals) + 0.0).T.tolist()))


# --- open clusters ----------------------------------------------------------------------------------------------------


def unfold(positions, cell, pbc, reach):
    """Positions of the atoms and of every image within `reach` of any of them, and the owners; the atoms come first."""
    inside = wrapped(positions, cell, pbc)
    places, owners = [inside], [np.arange(len(positions))]
    for steps in product(*image_range(cell, pbc, reach)):
        if any(steps):
            images = inside + np.array(steps, float) @ complete(cell, pbc)
            nearest = np.linalg.norm(images[:, None] - inside[None], axis=-1).min(axis=1)
            places.append(images[nearest <= reach]), owners.append(np.flatnonzero(nearest <= reach))
    return np.concatenate(places), np.concatenate(owners)


def open_neighbors(positions, cutoff) -> NeighborList:
    """Neighbour matrix of an open cluster, made by hand."""
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    close = distances < cutoff
    slots = max(int(close.sum(axis=1).max()), 1)
    index = np.tile(np.arange(len(positions), dtype=np.int32)[:, None], (1, slots))
    for row, neighbors in enumerate(close):
        found = np.flatnonzero(neighbors)
        index[row, : len(found)] = found
    return NeighborList(
        index=index,
        owner=np.zeros(0, np.int32),
        shift=np.zeros((len(positions), 3), np.int32),
        reference_positions=positions,
        reference_cell=np.eye(3),
        status=np.uint32(0),
        required=np.zeros(5, np.int32),
        plan=NeighborPlan(cutoff, 0.0, (False,) * 3, slots, (0, 0, 0), (0, 0, 0), (1, 1, 1), 1),
    )


def energies_on(potential, positions, numbers, neighbors):
    """(n,) atomic energies of an open cluster; no listener, no blocks of the engine."""
    cell = jnp.eye(3)
    return sum(t.atomic_energies(Graph.of(positions, cell, numbers, neighbors, t.cutoff)) for t in terms_of(potential))


@partial(jax.jit, static_argnames="n_atoms")
def _jacobian(potential, positions, numbers, neighbors, n_atoms):
    def ours(x):
        u = energies_on(potential, x, numbers, neighbors)[:n_atoms]
        return u, u

    return jax.jacrev(ours, has_aux=True)(positions)


def unfolded(potential, systems, velocities) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(J_pot, energies)] by the definition itself: J_pot = sum_i sum_j (r_i - r_j) (dU_i/dr_j . v_j), dense Jacobian.

    i runs over the atoms of the cell, j over them and all images within the interaction range. Several systems with the
    same number of atoms share one compiled program: smaller clusters are filled up with atoms far away from everything.
    """
    reach = max(t.interaction_steps * t.cutoff for t in terms_of(potential))
    cutoff = max(t.cutoff for t in terms_of(potential))
    n = systems[0].n_atoms
    clusters = [unfold(np.asarray(s.positions), np.asarray(s.cell), s.pbc, reach) for s in systems]
    size = max(len(owners) for _, owners in clusters)
    filled = []
    for places, owners in clusters:
        missing = size - len(owners)
        far = 1e4 + 100.0 * np.arange(missing)[:, None] * np.ones(3)
        filled.append((np.concatenate([places, far]), np.concatenate([owners, np.zeros(missing, int)])))
    lists = [open_neighbors(places, cutoff) for places, _ in filled]
    slots = max(x.index.shape[1] for x in lists)
    results = []
    for system, v, (places, owners), neighbors in zip(systems, velocities, filled, lists, strict=True):
        rows = np.arange(size, dtype=np.int32)[:, None]
        index = np.concatenate([neighbors.index, np.tile(rows, slots - neighbors.index.shape[1])], axis=1)
        neighbors = replace(neighbors, index=index, plan=replace(neighbors.plan, slots=slots))
        with double_precision():
            jacobian, u = _jacobian(potential, places, np.asarray(system.numbers)[owners], neighbors, n)
            jacobian = np.asarray(jacobian)  # (i, j, 3)
        power = np.einsum("ijx,jx->ij", jacobian, v[owners])
        results.append((np.einsum("ijx,ij->x", places[:n, None] - places[None], power), np.asarray(u)))
    return results


# --- closed formulas --------------------------------------------------------------------------------------------------


def lennard_jones(r, epsilon, sigma, cutoff, switch_start=None):
    """(phi, phi') of the pair potential, plain or with the XPLOR switch, written out by hand."""
    s6 = (sigma / r) ** 6
    phi, slope = 4 * epsilon * (s6**2 - s6), -24 * epsilon * (2 * s6**2 - s6) / r
    if switch_start is not None:
        c2, o2, r2 = cutoff**2, switch_start**2, r**2
        width = (c2 - o2) ** 3
        switch = (c2 - r2) ** 2 * (c2 + 2 * r2 - 3 * o2) / width
        d_switch = 12 * r * (c2 - r2) * (o2 - r2) / width
        on = r >= switch_start
        phi, slope = np.where(on, phi * switch, phi), np.where(on, slope * switch + phi * d_switch, slope)
    return np.where(r < cutoff, phi, 0.0), np.where(r < cutoff, slope, 0.0)


def pair_flux(system: System, velocities, phi_and_slope, cutoff) -> np.ndarray:
    """J_pot = -1/2 sum_ij r_ij (phi'(r) rhat_ij . v_j), r_ij = r_j - r_i: the sender's velocity."""
    _, j, vectors = brute_force_pairs(np.asarray(system.positions), np.asarray(system.cell), system.pbc, cutoff)
    r = np.linalg.norm(vectors, axis=1)
    slope = phi_and_slope(r)[1]
    power = slope * np.sum(vectors * velocities[j], axis=1) / r
    return -0.5 * power @ vectors


def stillinger_weber(system: System, epsilon=2.1683, sigma=2.0951) -> np.ndarray:
    """(atoms,) eV of silicon: pairs halved, triples with their centre, by plain loops."""
    big_a, b, a, lam, gamma = 7.049556277, 0.6022245584, 1.80, 21.0, 1.20
    i, _, vectors = brute_force_pairs(np.asarray(system.positions), np.asarray(system.cell), system.pbc, a * sigma)
    energies = np.zeros(system.n_atoms)
    for atom in range(system.n_atoms):
        mine = vectors[i == atom]
        for n, x in enumerate(mine):
            r = np.linalg.norm(x)
            pair = big_a * epsilon * (b * (sigma / r) ** 4 - 1.0) * np.exp(sigma / (r - a * sigma))
            energies[atom] += 0.5 * pair
            for y in mine[n + 1 :]:
                s = np.linalg.norm(y)
                angle = x @ y / (r * s) + 1.0 / 3.0
                fade = np.exp(gamma * sigma / (r - a * sigma)) * np.exp(gamma * sigma / (s - a * sigma))
                energies[atom] += lam * epsilon * angle**2 * fade
    return energies


# --- models that only tests need --------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Opaque:
    """A potential of which the engine knows nothing but the protocol (duck-typed): takes the message-passing route."""

    inner: Any
    cutoff: float = static()
    interaction_steps: int = static(1)
    row_local: bool = static(False)

    @classmethod
    def of(cls, potential, **changes):
        return cls(potential, potential.cutoff, potential.interaction_steps, **changes)

    def atomic_energies(self, graph):
        return self.inner.atomic_energies(graph)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Messages(Potential):
    """A small message-passing model with a scalar and a vector feature; quick to compile, easy to read.

    `cheat` makes it fetch neighbours behind graph.gather's back; `promised` is what it declares as interaction_steps.
    """

    strength: Any
    cutoff: float = static()
    depth: int = static(2)
    promised: int = static(2)
    cheat: bool = static(False)

    @property
    def interaction_steps(self):
        return self.promised

    def atomic_energies(self, graph):
        door = (lambda x: x[graph.senders]) if self.cheat else graph.gather
        edges = graph.edge_vectors / self.cutoff
        weight = jnp.where(graph.mask, (1.0 - jnp.minimum(jnp.sum(edges**2, axis=-1), 1.0)) ** 4, 0.0)
        scalar = jnp.sum(weight, axis=1)
        vector = jnp.einsum("nk,nkx->nx", weight, edges)
        for _ in range(self.depth - 1):
            sent, arrow = door(scalar), door(vector)
            along = jnp.einsum("nkx,nkx->nk", arrow, edges)
            scalar, vector = (
                jnp.tanh(0.3 * scalar + jnp.sum(weight * (sent + along), axis=1)),
                0.3 * vector + jnp.einsum("nk,nkx->nx", weight * sent, edges) + jnp.einsum("nk,nkx->nx", weight, arrow),
            )
        return self.strength * (scalar + 0.5 * scalar**2 + jnp.sum(vector**2, axis=1))


# --- structures -------------------------------------------------------------------------------------------------------

TRICLINIC = np.array([[4.1, 0.3, -0.2], [1.1, 3.9, 0.4], [-0.8, 0.9, 4.3]])
"""Å. Skewed, and a third as high as the cutoffs of the tests reach: every neighbour has several images."""
SHORT = np.array([[3.1, 0.2, 0.1], [1.4, 3.4, 0.3], [0.6, -1.2, 6.8]])


def structure(cell=TRICLINIC, symbols="Si4", pbc=True, seed=0, spacing=1.6) -> System:
    """Random atoms, no two closer than `spacing` Å, some of them outside of the cell."""
    from ase import Atoms
    from ase.geometry import get_distances

    rng = np.random.default_rng(seed)
    count = len(Atoms(symbols))
    for _ in range(10_000):
        positions = rng.uniform(size=(count, 3)) @ cell
        images = np.concatenate([positions + np.array(s) @ cell for s in product((-1, 0, 1), repeat=3)])
        distances = get_distances(positions, images)[1]
        if np.min(np.where(distances > 1e-9, distances, np.inf)) > spacing:
            break
    else:
        raise AssertionError(f"no room for {symbols} at {spacing} Å")
    positions[0] += 2 * cell[0] - cell[2]
    return System.from_atoms(Atoms(symbols, positions=positions, cell=cell, pbc=pbc))


def random_velocities(system: System, seed=1, spread=0.01, momentum_free=False):
    """(atoms, 3) Å/fs; with `momentum_free` the total momentum is zero to rounding."""
    velocities = spread * np.random.default_rng(seed).standard_normal((system.n_atoms, 3))
    if momentum_free:
        masses = np.asarray(system.masses)
        velocities -= masses @ velocities / masses.sum()
    return velocities


def shared_plan(systems, cutoff, skin=0.0) -> NeighborPlan:
    """One plan for several structures of the same size, so that they share compiled programs."""
    plans = [make_plan(s, cutoff, skin) for s in systems]
    for _ in range(3):
        plan = NeighborPlan(
            cutoff=cutoff,
            skin=skin,
            pbc=plans[0].pbc,
            slots=max(p.slots for p in plans),
            ghosts=tuple(max(p.ghosts[d] for p in plans) for d in range(3)),
            images=tuple(max(p.images[d] for p in plans) for d in range(3)),
            bins=plans[0].bins,
            run=max(p.run for p in plans),
        )
        with double_precision():
            grown = [allocate(s, cutoff, skin, plan=plan).plan for s in systems]
        if all(g == plan for g in grown):
            return plan
        plans = grown
    return plan


def relative(value, reference) -> float:
    """|value - reference| / |reference|."""
    return float(np.linalg.norm(np.asarray(value) - reference) / np.linalg.norm(reference))
