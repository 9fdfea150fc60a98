"""Constant energy: velocity Verlet."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from .base import Evaluate, advance, degrees_of_freedom, evaluate_at, kick, kinetic_energy
from .state import MDState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NVE:
    """Microcanonical dynamics by velocity Verlet: second order, symplectic, reversible, momentum-conserving.

    Source: Swope, Andersen, Berens, Wilson, J. Chem. Phys. 76, 637 (1982).
    """

    @property
    def name(self) -> str:
        return "nve"

    @property
    def needs_stress(self) -> bool:
        return False

    def init(self, state: MDState) -> tuple:
        return ()

    def step(self, state: MDState, evaluate: Evaluate, timestep: float | jax.Array) -> MDState:
        half = kick(state.velocities, state.forces, state.masses, 0.5 * timestep)
        positions = state.positions + timestep * half
        new = evaluate_at(evaluate, positions, state.cell, half, state, timestep)
        velocities = kick(half, new.forces, state.masses, 0.5 * timestep)
        return advance(state, positions=positions, velocities=velocities, forces=new.forces, energy=new.energy)

    def conserved(self, state: MDState) -> jax.Array:
        """() eV: kinetic plus potential energy."""
        return kinetic_energy(state.velocities, state.masses) + state.energy

    def degrees_of_freedom(self, state: MDState) -> int:
        return degrees_of_freedom(state.masses.shape[-1])
