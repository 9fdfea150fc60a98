"""Neighbour lists on the device: any cell, several images, O(N), valid while the box changes.

Every periodic image that lies within reach of the cell is an explicit *ghost* atom. With the atoms it forms the
*extended* array, and a neighbour is an index into it. The inner loops therefore know neither shifts nor minimum images:
one gather and one subtraction give an edge vector, for triclinic cells and for cells smaller than the cutoff alike.

All capacities are static (`NeighborPlan`). What does not fit sets a status bit and reports the capacity that would have
been enough; the driver grows the plan and replays (architecture, decision 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._cell_search import COLUMN_BINS, RUN_BINS, search
from jaxmd_thermal.errors import CapacityError, InputError, Status
from jaxmd_thermal.system import System, heights, static, working_frame

MAX_EXTENDED = 2**31 - 1


@dataclass(frozen=True)
class NeighborPlan:
    """Static shape of a neighbour list. `grown` makes room for what a build reported as `required`.

    Attributes:
      cutoff, skin: Å. Pairs up to cutoff + skin are listed, so the list stays valid while atoms move.
      pbc: periodicity.
      slots: neighbours an atom can have (the columns K of the matrix).
      ghosts: capacity of the extended array's ghosts after imaging along the first, second and third direction.
      images: images looked at on either side, per direction.
      bins: cells of the search grid, per direction.
      run: atoms that a run of cells of the search grid can hold.
    """

    cutoff: float
    skin: float
    pbc: tuple[bool, bool, bool]
    slots: int
    ghosts: tuple[int, int, int]
    images: tuple[int, int, int]
    bins: tuple[int, int, int]
    run: int

    @property
    def reach(self) -> float:
        return self.cutoff + self.skin

    def grown(self, required, system: System, *, stale: bool = False) -> NeighborPlan:
        """A plan that holds `required` (of a `NeighborList`) and fits the cell of `system`, with a margin.

        `stale` also widens the skin by half: atoms cross it within one step.
        """
        if stale:
            wide = make_plan(system, self.cutoff, 1.5 * self.skin + 0.1)
            return replace(wide, slots=max(wide.slots, self.slots), run=max(wide.run, self.run))
        need = [int(x) for x in np.asarray(required).reshape(-1, 5).max(axis=0)]
        have = np.diff(self.ghosts, prepend=0)
        new = np.array(need[1:4]) - np.concatenate([[0], self.ghosts[:2]])
        fresh = make_plan(system, self.cutoff, self.skin, slots=1)
        return replace(
            self,
            slots=max(self.slots, with_margin(need[0], self.slots)),
            ghosts=_stages([with_margin(int(n), int(h)) for n, h in zip(new, have, strict=True)]),
            run=max(self.run, with_margin(need[4], self.run)),
            images=fresh.images,
            bins=fresh.bins,
        )


def _stages(added) -> tuple[int, int, int]:
    """Ghosts after each direction, from the ghosts that each direction adds."""
    first, second, third = (int(n) for n in np.cumsum(added))
    return first, second, third


def with_margin(needed: int, have: int, margin: float = 1.15) -> int:
    """`have` if it is enough, else `needed` with a margin, rounded up so that few different shapes get compiled."""
    if needed <= have:
        return have
    return _round_up(needed * margin, 8)


def _round_up(value: float, multiple: int) -> int:
    return max(multiple, math.ceil(value / multiple) * multiple)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NeighborList:
    """Neighbour matrix and ghosts of one structure.

    Attributes:
      index: (atoms, K) rows of the extended array; an empty slot of row i holds i.
      owner: (ghosts,) atom that each ghost is an image of.
      shift: (atoms + ghosts, 3) whole lattice vectors that take an atom to its place in the extended array.
      reference_positions, reference_cell: where the list was built.
      status: sticky `Status` bits.
      required: (5,) largest need so far: slots, three stages of ghosts, run.
      plan: static capacities.
    """

    index: Any
    owner: Any
    shift: Any
    reference_positions: Any
    reference_cell: Any
    status: Any
    required: Any
    plan: NeighborPlan = static()

    def extended(self, positions, cell):
        """(atoms + ghosts, 3) positions of atoms and ghosts, Å. Differentiable in both arguments."""
        moved = positions if self.owner.shape[0] == 0 else jnp.concatenate([positions, positions[self.owner]])
        return moved + self.shift.astype(positions.dtype) @ cell.astype(positions.dtype)

    @property
    def owners(self):
        """(atoms + ghosts,) atom that each row of the extended array belongs to."""
        n_atoms = self.shift.shape[0] - self.owner.shape[0]
        return jnp.concatenate([jnp.arange(n_atoms, dtype=jnp.int32), self.owner])


def make_plan(
    system: System, cutoff: float, skin: float = 1.0, *, slots: int | None = None, margin: float = 1.25
) -> NeighborPlan:
    """Capacities for a structure, from its density and (for ghosts) by counting. Runs on the host.

    Raises:
      InputError: a cutoff or skin that is not positive or finite.
      CapacityError: more than 2^31 extended atoms.
    """
    if not (np.isfinite(cutoff) and cutoff > 0):
        raise InputError(f"the cutoff is {cutoff} Å; it must be positive and finite")
    if not (np.isfinite(skin) and skin >= 0):
        raise InputError(f"the skin is {skin} Å; it must be zero or positive")
    reach = cutoff + skin
    positions = np.asarray(system.positions, float).reshape(-1, system.n_atoms, 3)
    cells = np.broadcast_to(np.asarray(system.cell, float), (len(positions), 3, 3))
    images, bins = np.zeros(3, int), np.ones(3, int)
    ghosts = np.zeros(3, int)
    density = 0.0
    for x, cell in zip(positions, cells, strict=True):
        frame = working_frame(cell, system.pbc)
        h = heights(frame)
        frac = x @ np.linalg.inv(frame)
        extent = np.ptp(frac, axis=0)
        reach_frac = np.array([reach / h[d] if system.pbc[d] else 0.0 for d in range(3)])
        images = np.maximum(
            images, [math.ceil(1.02 * r) if p else 0 for r, p in zip(reach_frac, system.pbc, strict=True)]
        )
        width = np.where(system.pbc, h + 2 * reach, extent)
        per_reach = np.array([COLUMN_BINS, COLUMN_BINS, RUN_BINS])
        bins = np.maximum(bins, np.clip(np.floor(width / reach * per_reach), 1, 4096).astype(int))
        ghosts = np.maximum(ghosts, _count_ghosts(frac, reach_frac, system.pbc))
        box = float(np.prod(np.where(system.pbc, h, np.maximum(extent, 1.0)))) * _skewness(frame, h)
        density = max(density, system.n_atoms / box)
    # Clusters and slabs occupy part of their box: at least the close packing of their neighbourhood is given room.
    expected = density * 4.0 / 3.0 * math.pi * reach**3
    total = system.n_atoms + int(margin * ghosts[2])
    if total > MAX_EXTENDED:
        raise CapacityError(f"{total} atoms and images exceed {MAX_EXTENDED}: use a smaller cutoff or supercell")
    while np.prod(bins, dtype=float) > 64 * total + 10_000:  # mostly empty space: wider cells are correct, too
        bins[np.argmax(bins)] = max(1, bins.max() // 2)
    occupancy = density * (reach / COLUMN_BINS) ** 2 * reach * (2 * RUN_BINS + 1) / RUN_BINS
    return NeighborPlan(
        cutoff=float(cutoff),
        skin=float(skin),
        pbc=system.pbc,
        slots=_round_up(margin * expected + 4, 4) if slots is None else int(slots),
        ghosts=_stages([_round_up(1.05 * g + 8, 8) if g else 0 for g in np.diff(ghosts, prepend=0)]),
        images=tuple(int(n) for n in images),  # type: ignore[arg-type]
        bins=tuple(int(n) for n in bins),  # type: ignore[arg-type]
        run=_round_up(margin * occupancy + 10, 2),
    )


def _skewness(frame, h) -> float:
    """Volume of the frame over the product of its heights (1 for an orthogonal cell)."""
    return float(abs(np.linalg.det(frame)) / np.prod(h))


def _count_ghosts(frac, reach_frac, pbc) -> np.ndarray:
    wrapped = np.where(pbc, frac - np.floor(frac), frac)
    counts = np.zeros(3, int)
    current = wrapped
    for d in range(3):
        if pbc[d]:
            copies = [current]
            n = math.ceil(1.02 * reach_frac[d])
            for image in [i for i in range(-n, n + 1) if i]:
                moved = current + image * np.eye(3)[d]
                inside = (moved[:, d] >= -reach_frac[d]) & (moved[:, d] < 1 + reach_frac[d])
                copies.append(moved[inside])
            current = np.concatenate(copies)
        counts[d] = len(current) - len(frac)
    return counts


def build(positions, cell, plan: NeighborPlan) -> NeighborList:
    """Neighbour list of one structure; pure, jit-able, O(N).

    Rows list the sphere of radius cutoff + skin about each atom, in an order that depends only on the structure.
    """
    n_atoms = positions.shape[0]
    positions = jax.lax.stop_gradient(positions)
    cell = jax.lax.stop_gradient(cell)
    frame = working_frame(cell, plan.pbc, jnp)
    h = heights(frame, jnp)
    reach_frac = plan.reach / h
    frac = positions @ jnp.linalg.inv(frame)
    pbc = np.array(plan.pbc)
    wrap = jnp.where(pbc, -jnp.floor(frac), 0.0)
    frac = frac + wrap

    status = jnp.uint32(0)
    for d in range(3):
        if plan.pbc[d]:
            status |= jnp.where(reach_frac[d] > plan.images[d], np.uint32(Status.GEOMETRY), np.uint32(0))

    # Images, one direction after the other: ghosts of ghosts fill the edges and corners.
    owner = jnp.arange(n_atoms, dtype=jnp.int32)
    shift = wrap
    alive = jnp.ones(n_atoms, bool)
    needed = []
    for d in range(3):
        if plan.pbc[d]:
            steps = np.array([i for i in range(-plan.images[d], plan.images[d] + 1) if i], float)
            moved = frac[None, :, d] + steps[:, None]
            inside = alive & (moved >= -reach_frac[d]) & (moved < 1.0 + reach_frac[d])
            # Slots that earlier directions left empty cannot be used, so they count as needed.
            taken = frac.shape[0] - n_atoms
            count = jnp.sum(inside, dtype=jnp.int32) + taken
            capacity = plan.ghosts[d] - taken
            (chosen,) = jnp.nonzero(inside.ravel(), size=max(capacity, 0), fill_value=inside.size)
            real = chosen < inside.size
            image, source = jnp.divmod(jnp.where(real, chosen, 0), frac.shape[0])
            unit = np.eye(3)[d] * jnp.asarray(steps)[image][:, None]
            frac = jnp.concatenate([frac, frac[source] + unit])
            shift = jnp.concatenate([shift, shift[source] + unit])
            owner = jnp.concatenate([owner, owner[source]])
            alive = jnp.concatenate([alive, real])
            status |= jnp.where(count > plan.ghosts[d], np.uint32(Status.GHOSTS), np.uint32(0))
            needed.append(count)
        else:
            needed.append(jnp.int32(0))

    extended = jnp.concatenate([positions, positions[owner[n_atoms:]]]) + shift @ cell
    index, slots, run = search(frac, extended, alive, n_atoms, reach_frac, plan)
    status |= jnp.where(slots > plan.slots, np.uint32(Status.NEIGHBORS), np.uint32(0))
    status |= jnp.where(run > plan.run, np.uint32(Status.BINS), np.uint32(0))
    finite = jnp.all(jnp.isfinite(positions)) & jnp.all(jnp.isfinite(cell))
    return NeighborList(
        index=index,
        owner=owner[n_atoms:],
        shift=shift.astype(jnp.int32),
        reference_positions=positions,
        reference_cell=cell,
        # A non-finite structure is reported as such: no capacity would repair it.
        status=jnp.where(finite, status, np.uint32(Status.NON_FINITE)),
        required=jnp.where(finite, jnp.stack([slots, *needed, run]), 0).astype(jnp.int32),
        plan=plan,
    )


def outdated(neighbors: NeighborList, positions, cell):
    """Whether the list may miss a pair within the cutoff, for moved atoms *and* a changed cell.

    With F the homogeneous deformation since the build and u the displacements beyond it, a listed-out pair is at
    least sigma_min(F) (cutoff + skin) - 2 max|u| apart, and sigma_min(F) >= 1 - |F - 1|_Frobenius.
    """
    plan = neighbors.plan
    deformation = jnp.eye(3, dtype=positions.dtype)
    if any(plan.pbc):
        old = working_frame(neighbors.reference_cell, plan.pbc, jnp)
        new = working_frame(cell, plan.pbc, jnp)
        deformation = jnp.linalg.inv(old) @ new
    strain = jnp.sqrt(jnp.sum((deformation - jnp.eye(3)) ** 2))
    moved = positions - neighbors.reference_positions @ deformation
    # A drift of the whole structure counts as well, though it changes no distance: it costs rebuilds, never a pair.
    furthest = jnp.sqrt(jnp.max(jnp.sum(moved**2, axis=-1)))
    reach = plan.reach * jnp.maximum(1.0 - strain, 0.0)
    # Written so that NaN asks for a rebuild, which then reports NON_FINITE.
    return ~(reach - 2.0 * furthest >= plan.cutoff)


def rebuilt(neighbors: NeighborList, positions, cell) -> NeighborList:
    """A fresh list with the status and needs of the old one kept (they are sticky)."""
    new = build(positions, cell, neighbors.plan)
    return replace(new, status=new.status | neighbors.status, required=jnp.maximum(new.required, neighbors.required))


def refresh(neighbors: NeighborList, positions, cell, next_positions=None) -> NeighborList:
    """Rebuild if the list is outdated, or will be at `next_positions`. Leading axes are replicas.

    One test for all replicas, outside of any `vmap`: inside, a conditional becomes a select, and the list would be
    rebuilt at every step. If the list was outdated already at `positions`, the status says so (`Status.STALE`).
    """
    coming = positions if next_positions is None else next_positions
    late, due, again = outdated, outdated, rebuilt
    if positions.ndim == 3:
        late, due, again = jax.vmap(outdated), jax.vmap(outdated), jax.vmap(rebuilt)
    if next_positions is not None:
        stale = jnp.where(late(neighbors, positions, cell), np.uint32(Status.STALE), np.uint32(0))
        neighbors = replace(neighbors, status=neighbors.status | stale)
    due = jnp.any(due(neighbors, coming, cell))
    return jax.lax.cond(due, again, lambda n, *_: n, neighbors, positions, cell)


_build_one = jax.jit(build, static_argnames="plan")


@partial(jax.jit, static_argnames="plan")
def _build_many(positions, cell, plan):
    return jax.vmap(partial(build, plan=plan))(positions, cell)


def allocate(
    system: System,
    cutoff: float,
    skin: float = 1.0,
    *,
    plan: NeighborPlan | None = None,
    margin: float | None = None,
    attempts: int = 6,
) -> NeighborList:
    """Neighbour list with capacities that fit `system` (leading axes are replicas). Runs on the host.

    With `margin` the slots are cut down to the largest number of neighbours times `margin`: a network pays for every
    slot, a pair potential hardly.

    Raises:
      InputError: a cutoff or skin that is not positive or finite.
      CapacityError: the capacities did not converge.
    """
    plan = make_plan(system, cutoff, skin) if plan is None else plan
    positions, cell = jnp.asarray(system.positions), jnp.asarray(system.cell)
    for _ in range(attempts):
        if positions.ndim == 2:
            neighbors = _build_one(positions, cell, plan=plan)
        else:
            neighbors = _build_many(positions, jnp.broadcast_to(cell, (*positions.shape[:-2], 3, 3)), plan=plan)
        status = Status(int(np.bitwise_or.reduce(np.asarray(neighbors.status).ravel())))
        if not status & Status.capacity():
            return neighbors if margin is None else _trimmed(neighbors, margin)
        plan = plan.grown(neighbors.required, system)
    raise CapacityError(
        f"after {attempts} attempts the neighbour list still lacks room ({status.name}; slots {plan.slots}, "
        f"run {plan.run}, ghosts {plan.ghosts}): are many atoms on one site, or is the unit of length wrong?"
    )


def _trimmed(neighbors: NeighborList, margin: float) -> NeighborList:
    """The list without slots that no row needs: neighbours stand before the empty slots of a row."""
    needed = int(np.asarray(neighbors.required).reshape(-1, 5)[:, 0].max())
    slots = min(neighbors.plan.slots, _round_up(needed * margin, 4))
    return replace(neighbors, index=neighbors.index[..., :slots], plan=replace(neighbors.plan, slots=slots))
