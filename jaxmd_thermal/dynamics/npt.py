"""Constant pressure and temperature: stochastic cell rescaling, isotropic or of the full cell.

The target. With scaled coordinates s = x h^-1 and momenta pi = p h^T (rows; h = cell), dx dp = ds dpi, and the
isothermal-isobaric density at fixed (s, pi) is

    isotropic:  rho(V) dV ~ V^c exp(-beta (H + P V)) dV
    full cell:  rho(h) dh ~ V^(c-2) exp(-beta (H + P V)) dh       (9 components; dh = V^2 dV dh_0 with det h_0 = 1)

so that both give exp(-beta P V) Q(N, V) for the volume, V^N exp(-beta P V) for an ideal gas. c = 0 when all 3N momenta
fluctuate. When the total momentum is held at zero, delta(sum p) = V delta(sum pi) and c = 1: the thermostat keeps 3N -
3 degrees of freedom, the pressure of the missing ones is k_B T / V and has to be put back.

The moves. x -> x M, h -> h M, v -> v M^-T with M = exp(G); v moves against x, so this is a canonical map and H changes
by dH = tr(W G), W = V sigma - sum m v v (sigma: configurational stress, positive in tension).

* Isotropic: G = (e/3) 1, e = d ln V, density of ln V: V rho(V).
* Full cell: G lower triangular in the frame (a along x, b in the xy plane; rotated back to the cell's own
  orientation), so a keeps its direction and b its plane and the cell cannot rotate. Integrating the rotations out of
  dh leaves l_11^2 l_22 dl for the triangular l (Muirhead, Aspects of Multivariate Statistical Theory, theorem 2.1.13).

Each direction E_ab of G is the vector field X_ab: l -> l E_ab; its divergence in dl is (3, 2, 1) for the diagonal,
zero off it. The reversible diffusion dl = sum_ab [D_ab (X_ab ln rho + div X_ab) dt + sqrt(2 D_ab) dW_ab] o l E_ab then
has rho as its stationary density. On the diagonal (2, 1, 0) - 2 + c + (3, 2, 1) = (3, 1, -1) + c, hence

    G_aa = D [(3, 1, -1)_a + c - beta (W_aa + P V)] dt + sqrt(2 D) dW_aa
    G_ab = -2 D beta W_ab dt + sqrt(4 D) dW_ab   (a > b)

with D = k_B T / (3 V_0 B tau), B the bulk modulus, tau the damping. The factor 2 off the diagonal is what rotating
nine equal noises into triangular form gives, so the dynamics does not depend on the choice of the axes. tr G obeys the
isotropic equation with 3 D. The noise is additive, where the papers' is sqrt(1/V) (isotropic papers integrate sqrt(V)
for that): V_0 is the volume at the start instead of the current one. This changes the rate by V/V_0, not the
distribution.

Sources: Bernetti and Bussi, J. Chem. Phys. 153, 114107 (2020); Del Tatto, Raiteri, Bernetti, Bussi, Appl. Sci. 12,
1139 (2022); measure of the full cell: Martyna, Tobias, Klein, J. Chem. Phys. 101, 4177 (1994).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..errors import InputError
from ..units import BOLTZMANN, GPA
from .base import Evaluate, advance, as_floats, evaluate_at, kick, kinetic_energy, kinetic_tensor, require
from .csvr import CSVR
from .langevin import Langevin
from .nose_hoover import NoseHoover
from .nve import NVE
from .state import MDState

_LOWER = np.tril(np.ones((3, 3)))
_RATE = _LOWER + np.tril(np.ones((3, 3)), -1)
"""D_ab / D: 1 on the diagonal, 2 below it."""
_MEASURE = np.diag([3.0, 1.0, -1.0])
"""Derivative of the logarithm of the measure, triangular cell (module docstring)."""


def _inverse(m: jax.Array) -> jax.Array:
    """Inverse (3, 3) by cofactors: a general solver is a library call per step, this fuses."""
    cofactors = jnp.stack([jnp.cross(m[1], m[2]), jnp.cross(m[2], m[0]), jnp.cross(m[0], m[1])], axis=1)
    return cofactors / jnp.dot(m[0], cofactors[:, 0])


def _map(rows: jax.Array, m: jax.Array) -> jax.Array:
    """rows @ m for (atoms, 3), written as sums that fuse: a matrix product of width 3 is a library call on CPU."""
    return rows[:, :1] * m[0] + rows[:, 1:2] * m[1] + rows[:, 2:] * m[2]


class BarostatState(NamedTuple):
    """What the cell carries from step to step, beside the thermostat's heat."""

    heat: jax.Array
    """() eV taken from the thermostat so far."""
    work: jax.Array
    """() eV done on the atoms by changes of the cell so far."""
    stress: jax.Array
    """(3, 3) eV/Å^3, configurational, of the current positions."""
    ready: jax.Array
    """() 0 until `stress` has been evaluated, then 1."""
    frame: jax.Array
    """(3, 3) rotation Q of cell = l Q with lower-triangular l; constant."""
    reference_volume: jax.Array
    """() Å^3."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NPT:
    """Stochastic cell rescaling in the middle of a step, with `CSVR` or `Langevin` as thermostat.

    The stress of the start of the step drives the cell, so one evaluation per step is enough; the first step, which
    knows no stress, leaves the cell alone. First order in stride * timestep / damping: the variance of the volume is
    too large by about half of that ratio (0.1 % for 2 fs and 1000 fs, times true / given bulk modulus).

    Args:
      thermostat: `CSVR` or `Langevin`; holds the temperature and the number of degrees of freedom.
      pressure: eV/Å^3 (`1.0 * units.GPA`), positive when it compresses.
      damping: fs, relaxation time of the volume if `bulk_modulus` is right.
      bulk_modulus: eV/Å^3, an estimate: it sets the rate only, not the distribution. Within a factor of 10 is enough.
      flexible: change all six parameters of the cell (else the volume only).
      stride: steps between two changes of the cell.

    Raises:
      InputError: a value that is not positive; in `init`, a cell without volume. `require_periodic` rejects slabs,
        wires and clusters, whose volume and pressure mean nothing.
    """

    thermostat: CSVR | Langevin
    pressure: float = 0.0
    damping: float = 1000.0
    bulk_modulus: float = 10.0 * GPA
    flexible: bool = field(default=False, metadata={"static": True})
    stride: int = field(default=1, metadata={"static": True})

    def __post_init__(self) -> None:
        if isinstance(self.thermostat, (NVE, NoseHoover)):
            raise InputError(
                f"the barostat cannot be combined with '{self.thermostat.name}'; "
                "give it CSVR(...) or Langevin(...) as thermostat"
            )
        require(self.pressure, "pressure", "eV/Å^3", minimum=-np.inf)
        require(self.damping, "damping of the cell", "fs")
        require(self.bulk_modulus, "bulk_modulus", "eV/Å^3")
        require(self.stride, "stride", "steps")
        as_floats(self, "pressure", "damping", "bulk_modulus")

    @property
    def name(self) -> str:
        return "npt-flexible" if self.flexible else "npt"

    @property
    def needs_stress(self) -> bool:
        return True

    @property
    def temperature(self) -> Any:
        return self.thermostat.temperature

    def require_periodic(self, pbc: Any) -> None:
        """Raise InputError unless all three directions are periodic."""
        if not all(bool(p) for p in pbc):
            raise InputError(
                f"the ensemble '{self.name}' needs a structure periodic in 3 directions, this one has pbc = "
                f"{tuple(bool(p) for p in pbc)}: its volume has no meaning; use 'langevin', 'nose-hoover' or 'csvr' "
                "at fixed cell"
            )

    def init(self, state: MDState, stress: jax.Array | None = None) -> BarostatState:
        """`stress` (3, 3) eV/Å^3 of the start, if known, lets the first step move the cell too.

        Raises:
          InputError: the cell is known at this point and has no volume.
        """
        cell, dtype = state.cell, state.positions.dtype
        volume = jnp.abs(jnp.linalg.det(cell))
        if not isinstance(volume, Tracer) and not np.all(np.asarray(volume) > 0.0):
            raise InputError(
                f"the cell has volume {float(np.min(np.asarray(volume))):g} Å^3, the ensemble '{self.name}' needs one "
                "above 0; give the structure three independent lattice vectors or use 'langevin' or 'csvr'"
            )
        frame = jnp.linalg.qr(cell.T)[0].T
        zero = jnp.zeros((), dtype)
        known = jnp.zeros((3, 3), dtype) if stress is None else jnp.asarray(stress, dtype)
        ready = zero if stress is None else zero + 1.0
        return BarostatState(zero, zero, known, ready, frame, volume)

    def _strain(self, barostat: BarostatState, volume: jax.Array, W: jax.Array, key: jax.Array, time: Any) -> jax.Array:
        """(3, 3) G of x -> x exp(G), over `time` fs; W (3, 3) eV is the derivative of the Hamiltonian with respect to
        G."""
        kT = BOLTZMANN * self.thermostat.temperature
        D = time * kT / (3.0 * barostat.reference_volume * self.bulk_modulus * self.damping)
        extra = 1.0 if self.thermostat.zero_momentum else 0.0
        dtype = W.dtype
        if not self.flexible:
            drift = 3.0 * D * (1.0 + extra - (jnp.trace(W) / 3.0 + self.pressure * volume) / kT)
            return (drift + jnp.sqrt(6.0 * D) * jax.random.normal(key, (), dtype)) / 3.0 * jnp.eye(3, dtype=dtype)
        Q = barostat.frame
        diagonal = jnp.asarray(_MEASURE, dtype) + (extra - self.pressure * volume / kT) * jnp.eye(3, dtype=dtype)
        drift = D * _RATE * (diagonal - Q @ W @ Q.T / kT)
        noise = jnp.sqrt(2.0 * D) * np.sqrt(_RATE) * jax.random.normal(key, (3, 3), dtype)
        return Q.T @ (drift + noise) @ Q

    def step(self, state: MDState, evaluate: Evaluate, timestep: float | jax.Array) -> MDState:
        masses, old = state.masses, state.thermostat
        key, cell_key, noise_key = jax.random.split(state.key, 3)
        half = kick(state.velocities, state.forces, masses, 0.5 * timestep)
        middle = state.positions + 0.5 * timestep * half

        volume = jnp.abs(jnp.linalg.det(state.cell))
        virial = volume * old.stress
        W = virial - kinetic_tensor(half, masses)
        # Multiplied by 0 or 1, not a cond: under vmap a cond computes both branches anyway, and nine numbers cost
        # nothing.
        active = old.ready * ((state.step + 1) % self.stride == 0)
        G = active * self._strain(old, volume, W, cell_key, self.stride * timestep)
        # Padé (1, 1): exact inverse under G -> -G, keeps triangles triangular, within |G|^3/12 of the exponential.
        forward, backward = jnp.eye(3, dtype=G.dtype) + 0.5 * G, jnp.eye(3, dtype=G.dtype) - 0.5 * G
        M, M_inverse = _inverse(backward) @ forward, _inverse(forward) @ backward
        cell = state.cell @ M
        scaled = _map(half, M_inverse.T)
        gained = kinetic_energy(scaled, masses) - kinetic_energy(half, masses)

        moved, heat = self.thermostat.thermalise(scaled, masses, noise_key, timestep)
        positions = _map(middle, M) + 0.5 * timestep * moved
        new = evaluate_at(evaluate, positions, cell, moved, state, timestep)
        if new.stress is None:
            raise InputError(f"the ensemble '{self.name}' got no stress; let the potential's evaluation return one")
        new_virial = jnp.abs(jnp.linalg.det(cell)) * new.stress
        # Trapezoidal work of the configurational part: the cell changed between the two evaluations.
        work = gained + 0.5 * jnp.sum((virial + new_virial) * G)
        return advance(
            state,
            positions=positions,
            velocities=kick(moved, new.forces, masses, 0.5 * timestep),
            cell=cell,
            forces=new.forces,
            energy=new.energy,
            thermostat=old._replace(
                heat=old.heat + heat, work=old.work + work, stress=new.stress, ready=jnp.ones_like(old.ready)
            ),
            key=key,
        )

    def conserved(self, state: MDState) -> jax.Array:
        """() eV: total energy minus the heat from the thermostat and the work of the cell. The terms P V and k_B T ln
        V of the enthalpy are integrated exactly by their own work and cancel."""
        total = kinetic_energy(state.velocities, state.masses) + state.energy
        return total - state.thermostat.heat - state.thermostat.work

    def degrees_of_freedom(self, state: MDState) -> int:
        return self.thermostat.degrees_of_freedom(state)
