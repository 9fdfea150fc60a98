"""`check_heat_flux`: does the engine's heat flux of a potential meet the two definitions that need no theory of edges?

Both references see the potential in an open cluster only, without the engine's listener at `graph.gather`, so a model
that goes around that door, or promises too short a range, is found out.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import check_toolchain, double_precision
from jaxmd_thermal.derivatives import (
    calculate,
    check_potential,
    evaluate,
    kinetic_energies,
    refuse_long_range,
    required_cutoff,
)
from jaxmd_thermal.errors import CapacityError, InputError
from jaxmd_thermal.graph import Graph
from jaxmd_thermal.neighbors import allocate
from jaxmd_thermal.potentials.base import terms_of
from jaxmd_thermal.sites import check_sites
from jaxmd_thermal.system import System, heights, working_frame
from jaxmd_thermal.units import ACCELERATION, AMU_A2_FS2, BOLTZMANN

TOLERANCE_UNFOLDED = 1e-9
"""Relative. Rounding alone: typically 1e-13, more where the parts of the flux cancel."""
TOLERANCE_CLUSTER = 1e-6
"""Relative. Central differences of fourth order with `TIME_STEP`."""
TOLERANCE_ENERGIES = 1e-9
"""Relative to the largest atomic energy: the same atoms in the periodic cell and in the unfolded cluster."""

TEMPERATURE = 300.0
RATTLE = 0.03
TIME_STEP = 2e-3
"""fs. So short that hardly an edge crosses the cutoff (a truncated potential jumps there), yet far above rounding."""
CLUSTER_ATOMS = 64
MAX_UNFOLDED = 100_000


@dataclass(frozen=True)
class HeatFluxReport:
    """Result of `check_heat_flux`; errors are relative to the norm of the reference.

    Attributes:
      passed: both definitions are met.
      error_unfolded: engine against `J_pot = sum_i sum_j (r_i - r_j) (dU_i/dr_j . v_j)` in the unfolded cell.
      error_cluster: engine against `d/dt sum_i r_i e_i` in an open cluster.
      error_energies: atomic energies of the unfolded cell against those of the periodic one.
      n_unfolded: atoms and images in the unfolded cell.
      text: what failed, and the likely cause.
    """

    passed: bool
    error_unfolded: float
    error_cluster: float
    error_energies: float
    n_unfolded: int
    text: str

    def __str__(self) -> str:
        return self.text


def check_heat_flux(potential, atoms, *, velocities=None, seed: int = 0) -> HeatFluxReport:
    """Compare the engine's heat flux of a potential with two brute-force definitions, in float64.

    Atoms are displaced at random by a few hundredths of Å first: on perfect crystal sites, symmetry hides errors.

    Args:
      potential: any object with `atomic_energies(graph)`, `cutoff` and `interaction_steps`.
      atoms: ASE `Atoms`, a `System` or a path; a small cell is enough, and quicker.
      velocities: (atoms, 3) Å/fs; drawn for 300 K if they are not given.
      seed: of displacements and velocities.

    Returns:
      `HeatFluxReport` with `.passed`, `.error_unfolded`, `.error_cluster`, `.text`.

    Raises:
      UnsupportedError: the potential has long-range terms.
      InputError: what is not a potential, unknown elements, unusable velocities.
      CapacityError: the unfolded cell would hold more than 100,000 atoms.

    Source: definition of Langer et al., PRB 108, L100302 (2023).
    """
    refuse_long_range(potential)
    system = System.from_atoms(atoms)
    check_potential(potential, system)
    rng = np.random.default_rng(seed)
    positions = np.asarray(system.positions, float)
    system = system.replace(positions=positions + RATTLE * rng.standard_normal(positions.shape))
    if velocities is None:
        spread = np.sqrt(BOLTZMANN * TEMPERATURE / (np.asarray(system.masses) * AMU_A2_FS2))
        velocities = spread[:, None] * rng.standard_normal((system.n_atoms, 3))
    velocities = np.asarray(velocities, float)
    if velocities.shape != np.shape(system.positions) or not np.all(np.isfinite(velocities)):
        raise InputError(
            f"velocities have the shape {velocities.shape}; they must be finite and of the shape "
            f"{np.shape(system.positions)}, in Å/fs"
        )
    engine = evaluate(potential, system, ("heat_flux_potential",), velocities=velocities)
    reach = max(getattr(t, "interaction_steps", 1) * t.cutoff for t in terms_of(potential))
    cluster, owner = unfold(system, reach)
    flux, energies = _unfolded_flux(potential, cluster, velocities[owner], system.n_atoms)
    bare = _bare_energies(potential, system)
    error_energies = float(np.max(np.abs(energies - bare)) / max(np.max(np.abs(bare)), 1e-300))
    error_unfolded = relative_error(engine["heat_flux_potential"], flux)

    drop, chosen = _cut_cluster(system, owner, cluster)
    open_flux = evaluate(potential, drop, ("heat_flux",), velocities=velocities[chosen])["heat_flux"]
    error_cluster = relative_error(open_flux, energy_moment_rate(potential, drop, velocities[chosen]))

    good_unfolded, good_cluster = error_unfolded <= TOLERANCE_UNFOLDED, error_cluster <= TOLERANCE_CLUSTER
    good_energies = error_energies <= TOLERANCE_ENERGIES
    return HeatFluxReport(
        passed=good_unfolded and good_cluster and good_energies,
        error_unfolded=error_unfolded,
        error_cluster=error_cluster,
        error_energies=error_energies,
        n_unfolded=cluster.n_atoms,
        text=_verdict(potential, reach, error_unfolded, error_cluster, error_energies, cluster.n_atoms, drop.n_atoms),
    )


def relative_error(value, reference) -> float:
    """|value - reference| / |reference|; 0 if both vanish, infinite if it is not finite."""
    difference, scale = np.linalg.norm(np.asarray(value) - reference), np.linalg.norm(reference)
    if not np.isfinite(difference):
        return float("inf")
    return 0.0 if difference == 0.0 else float(difference / max(scale, 1e-300))


def unfold(system: System, reach: float) -> tuple[System, np.ndarray]:
    """The cell and all images within `reach` (Å) of it as an open cluster, the atoms of the cell first.

    Returns: the cluster, and (n,) the atom that each member is an image of.
    """
    frame = working_frame(np.asarray(system.cell, float), system.pbc)
    fractional = np.asarray(system.positions) @ np.linalg.inv(frame)
    fractional = np.where(system.pbc, fractional - np.floor(fractional), fractional)
    depth = np.where(system.pbc, reach / heights(frame), 0.0)
    counts = np.ceil(depth).astype(int)
    expected = system.n_atoms * float(np.prod(1 + 2 * depth))
    if expected > MAX_UNFOLDED:
        raise CapacityError(
            f"the unfolded cell would hold about {expected:.0f} atoms, more than {MAX_UNFOLDED}: check the potential on "
            "a smaller structure"
        )
    steps = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in counts], indexing="ij"), axis=-1).reshape(-1, 3)
    steps = steps[np.argsort(np.abs(steps).sum(axis=1), kind="stable")]  # the cell itself comes first
    images = fractional[None] + steps[:, None]
    low, high = np.where(system.pbc, -depth, -np.inf), np.where(system.pbc, 1.0 + depth, np.inf)
    kept = np.all((images >= low) & (images <= high), axis=-1)
    owner = np.broadcast_to(np.arange(system.n_atoms), kept.shape)[kept]
    cluster = System(
        positions=images[kept] @ frame,
        cell=np.eye(3),
        numbers=np.asarray(system.numbers)[owner],
        masses=np.asarray(system.masses)[owner],
        pbc=(False, False, False),
    )
    return cluster, owner


def _energies(potential, positions, cell, numbers, neighbors):
    """(atoms,) eV without constants, from graphs that nobody listens to."""
    return sum(
        t.atomic_energies(Graph.of(positions, cell, numbers, neighbors, t.cutoff)).astype(positions.dtype)
        for t in terms_of(potential)
    )


@jax.jit
def _compiled_energies(potential, positions, cell, numbers, neighbors):
    return _energies(potential, positions, cell, numbers, neighbors)


def _bare_energies(potential, system: System) -> np.ndarray:
    with double_precision():
        neighbors = allocate(system, required_cutoff(potential), skin=0.0)
        return np.asarray(_compiled_energies(potential, system.positions, system.cell, system.numbers, neighbors))


@jax.jit
def _moments(potential, positions, cell, numbers, neighbors, velocities, ours):
    """sum over our atoms i and all j of (r_i - r_j) (dU_i/dr_j . v_j): one forward-mode and one reverse-mode pass."""

    def energies(x):
        return _energies(potential, x, cell, numbers, neighbors)

    u, rates = jax.jvp(energies, (positions,), (velocities,))
    gradient = jax.grad(lambda x: jnp.sum(energies(x) * ours))(positions)
    received = (ours * rates) @ positions
    sent = jnp.sum(gradient * velocities, axis=1) @ positions
    return received - sent, u


def _unfolded_flux(potential, cluster: System, velocities, n_atoms: int):
    with double_precision():
        check_toolchain()
        neighbors = allocate(cluster, required_cutoff(potential), skin=0.0)
        check_sites(cluster, neighbors)
        ours = (np.arange(cluster.n_atoms) < n_atoms).astype(float)
        # Measured from the middle of the cell: the flux does not depend on it, the digits lost do.
        centred = np.asarray(cluster.positions) - np.mean(np.asarray(cluster.positions)[:n_atoms], axis=0)
        flux, u = _moments(potential, centred, cluster.cell, cluster.numbers, neighbors, velocities, ours)
        return np.asarray(flux), np.asarray(u)[:n_atoms]


def _cut_cluster(system: System, owner, unfolded: System) -> tuple[System, np.ndarray]:
    """An open cluster out of the unfolded cell: the members nearest to its middle."""
    positions = np.asarray(unfolded.positions)
    middle = np.mean(positions[: system.n_atoms], axis=0)
    nearest = np.argsort(np.sum((positions - middle) ** 2, axis=1), kind="stable")[: max(CLUSTER_ATOMS, 2)]
    drop = unfolded.replace(
        positions=positions[nearest] - middle, numbers=unfolded.numbers[nearest], masses=unfolded.masses[nearest]
    )
    return drop, owner[nearest]


@jax.jit
def _moment_and_forces(potential, positions, cell, numbers, neighbors, velocities, masses):
    out = calculate(potential, positions, cell, numbers, neighbors, ("forces",))
    u = _energies(potential, positions, cell, numbers, neighbors)
    return (u + kinetic_energies(velocities, masses)) @ positions, out["forces"]


def energy_moment_rate(potential, cluster: System, velocities, timestep: float = TIME_STEP) -> np.ndarray:
    """(3,) eV Å/fs: d/dt sum_i r_i e_i of an open cluster along its NVE trajectory.

    Central differences of fourth order between Runge-Kutta steps of fourth order, forward and backward in time.
    """
    with double_precision():
        neighbors = allocate(cluster, required_cutoff(potential), skin=0.5)
        check_sites(cluster, neighbors)
        masses = np.asarray(cluster.masses)
        start = (np.asarray(cluster.positions), np.asarray(velocities))

        def look(state):
            moment, forces = _moment_and_forces(
                potential, state[0], cluster.cell, cluster.numbers, neighbors, state[1], masses
            )
            return np.asarray(moment), (state[1], np.asarray(forces) * (ACCELERATION / masses[:, None]))

        def moved(state, rate, h):
            return tuple(s + h * r for s, r in zip(state, rate, strict=True))

        def after(h):
            state = start
            k1 = look(state)[1]
            k2 = look(moved(state, k1, 0.5 * h))[1]
            k3 = look(moved(state, k2, 0.5 * h))[1]
            k4 = look(moved(state, k3, h))[1]
            mean = tuple((a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(k1, k2, k3, k4, strict=True))
            return look(moved(state, mean, h))[0]

        one = after(timestep) - after(-timestep)
        two = after(2 * timestep) - after(-2 * timestep)
        return (8.0 * one - two) / (12.0 * timestep)


def _verdict(potential, reach, unfolded, cluster, energies, n_unfolded, n_cluster) -> str:
    name = type(potential).__name__
    lines = [
        f"heat flux of {name}: relative error {unfolded:.1e} against the unfolded cell ({n_unfolded} atoms, "
        f"limit {TOLERANCE_UNFOLDED:.0e}), {cluster:.1e} against d/dt sum r_i e_i of an open cluster ({n_cluster} atoms, "
        f"limit {TOLERANCE_CLUSTER:.0e})"
    ]
    wrong_energies, wrong_flux = energies > TOLERANCE_ENERGIES, unfolded > TOLERANCE_UNFOLDED
    if wrong_energies:
        lines.append(
            f"The definition by unfolding failed already at the energies (relative error {energies:.1e}): what lies "
            f"farther than {reach:.4g} Å = interaction_steps x cutoff still matters. Likely cause: the model declares "
            "too few interaction_steps, an edge beyond its cutoff contributes, or a term is not local (a mean over all "
            "atoms, absolute positions). Remedy: raise interaction_steps, or declare long_range = True"
        )
    elif wrong_flux:
        lines.append(
            "The definition by unfolding failed although the energies agree. Likely cause: the model reaches its "
            "neighbours behind graph.gather's back (for example x[graph.senders]), or stops a gradient on the way. "
            "Remedy: gather every neighbour quantity with graph.gather or graph.map_rows"
        )
    if cluster > TOLERANCE_CLUSTER:
        lines.append(
            "The definition by d/dt sum r_i e_i in an open cluster failed. "
            + (
                "Likely cause: the same"
                if wrong_flux and not wrong_energies
                else "Likely cause: energies and their derivatives do not belong together (a hand-written derivative "
                "rule, a stopped gradient), or the energy jumps as atoms move"
            )
        )
    if len(lines) == 1:
        lines.append("passed")
    return ". ".join(lines) + "."
