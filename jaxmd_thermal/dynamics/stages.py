"""Nouns of a run: its stages, what is reported while it goes on, and what comes out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxmd_thermal.neighbors import NeighborPlan
from jaxmd_thermal.system import System, working_frame


@dataclass(frozen=True)
class Stage:
    """One part of a run.

    Attributes:
      name: for files and messages.
      ensemble: an ensemble object.
      steps: time steps; a multiple of `sample_every` (rounded up).
      sample_every: steps between samples.
      quantities: see `loop.Simulation`.
      field: (replicas, 3) 1/Å or None.
      trajectory: samples also hold positions, velocities and cell.
      max_temperature: K.
      site_virials: (3, atoms, 3), see `loop.Simulation`.
    """

    name: str
    ensemble: Any
    steps: int
    sample_every: int = 1
    quantities: tuple[str, ...] = ()
    field: Any = None
    trajectory: bool = False
    max_temperature: float = math.inf
    site_virials: Any = None

    @property
    def frames(self) -> int:
        return -(-self.steps // self.sample_every)


@dataclass(frozen=True)
class Progress:
    """What the driver reports after each chunk."""

    stage: str
    step: int
    steps: int
    ns_per_day: float
    eta_s: float
    temperature: float
    drift: float  # eV/atom since the start of the stage, of the conserved energy
    compiling: bool = False


@dataclass(frozen=True)
class StageResult:
    """Samples of one stage, (frames, replicas, ...) NumPy arrays, with `time` (frames,) fs."""

    name: str
    samples: dict[str, np.ndarray]
    observers: tuple[Any, ...]


@dataclass(frozen=True)
class SimulationResult:
    """Outcome of a run.

    Attributes:
      samples: of the last stage, (frames, replicas, ...): time (fs), potential_energy, kinetic_energy,
        conserved_energy (eV), temperature (K), volume (Å^3), and what was asked for.
      stages: all stages.
      observers: finalized observers of the last stage.
      positions, velocities, cell: final, (replicas, atoms, 3), (replicas, 3, 3).
      system: the structure that was simulated.
      plan: capacities that the neighbour list ended with.
      ns_per_day, wall_s: of this process (None after a resume that had nothing left to do).
    """

    samples: dict[str, np.ndarray]
    stages: tuple[StageResult, ...]
    observers: tuple[Any, ...]
    positions: np.ndarray
    velocities: np.ndarray
    cell: np.ndarray
    system: System
    plan: NeighborPlan
    settings: dict[str, Any]
    versions: dict[str, str]
    seed: int
    seconds_per_step: float | None = None
    path: Any = None

    def atoms(self, replica: int = 0):
        """ASE `Atoms` of the final state of one replica, with velocities."""
        final = self.system.replace(positions=self.positions[replica], cell=self.cell[replica])
        return final.to_atoms(self.velocities[replica])


@dataclass
class Setup:
    """A structure prepared for a run: atoms sorted in space, one copy a replica."""

    system: System
    order: np.ndarray
    n_replicas: int
    masses: Any = field(init=False)

    def __post_init__(self):
        self.masses = np.broadcast_to(self.system.masses, (self.n_replicas, self.system.n_atoms))

    def restore_order(self, x: np.ndarray, axis: int) -> np.ndarray:
        back = np.empty_like(x)
        index = [slice(None)] * x.ndim
        index[axis] = self.order
        back[tuple(index)] = x
        return back


def spatial_order(system: System, width: float = 6.0) -> np.ndarray:
    """Permutation that puts atoms of one region next to each other in memory: gathers then stay in the cache."""
    frame = working_frame(np.asarray(system.cell, float), system.pbc)
    frac = np.asarray(system.positions) @ np.linalg.inv(frame)
    lengths = np.linalg.norm(frame, axis=1)
    frac = np.where(system.pbc, frac - np.floor(frac), frac - frac.min(axis=0))
    box = np.floor(frac * lengths / width).astype(int)
    # Serpentine through the boxes, so that consecutive boxes touch.
    box[:, 1] = np.where(box[:, 0] % 2, -box[:, 1], box[:, 1])
    box[:, 2] = np.where((box[:, 0] + box[:, 1]) % 2, -box[:, 2], box[:, 2])
    return np.lexsort((box[:, 2], box[:, 1], box[:, 0]))
