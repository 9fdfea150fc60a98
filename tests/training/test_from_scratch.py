"""Networks with random weights learn a classical potential until their phonons are its phonons."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from jaxmd_thermal import fit, force_constants, load_potential
from jaxmd_thermal.lattice.density import mesh_phonons
from jaxmd_thermal.potentials import EquivariantNetwork, LennardJones
from jaxmd_thermal.training.losses import EnergyPerAtom, Forces
from jaxmd_thermal.training.networks import with_statistics
from jaxmd_thermal.training.optimizers import adamw, rate
from jaxmd_thermal.training.replay import labelled, rattled
from jaxmd_thermal.training.statistics import statistics

STEPS = 8000
SILICON = bulk("Si", "diamond", a=5.431, cubic=True), 4.5, ((0.02, 0.005), (0.06, 0.01))
# The cutoff lies behind the second shell, and the switch begins between it and the first.
ARGON = bulk("Ar", "fcc", a=5.30, cubic=True), 5.8, ((0.04, 0.005), (0.12, 0.01))


def stillinger_weber():
    return load_potential("sw-silicon")


def lennard_jones():
    return LennardJones(epsilon=0.0104, sigma=3.40, cutoff=5.8, truncation="switch", switch_start=4.5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("teacher", "data"), [(stillinger_weber, SILICON), (lennard_jones, ARGON)])
def test_phonons_of_a_network_trained_on(teacher, data):
    """Within 2 % of the largest frequency, every mode of the grid; the data hold energies and forces only."""
    teacher = teacher()
    cell, cutoff, amplitudes = data
    # Large cells: in small ones an atom and its image always move together, and a network may mix up their forces.
    large = cell.repeat((2, 2, 2))
    moved = [
        frame
        for seed, (rattle, strain) in enumerate(amplitudes)
        for frame in rattled([large], 20, rattle=rattle, strain=strain, seed=seed)
    ]
    frames = labelled(teacher, moved, dtype="float64")
    found = statistics(frames, cutoff)
    network = EquivariantNetwork.create(
        1,
        cell.get_chemical_symbols()[:1],
        cutoff,
        2,
        channels=12,
        lmax=2,
        radial=8,
        hidden=32,
        neighbors=found.neighbors,
        block=None,
    )
    result = fit(
        with_statistics(network, found),
        frames,
        [EnergyPerAtom(4.0, "mse"), Forces(1.0, "mse")],
        adamw(rate(5e-3, "cosine", STEPS, warmup=20), weight_decay=0.0, clip=10.0),
        steps=STEPS,
        buckets=1,
        average=0.99,
        seed=1,
    )
    first, last = (np.mean([e["forces meV/Å"] for _, e in part]) for part in (
        result.errors("train")[:10], result.errors("train")[-10:]))  # fmt: skip
    assert last < 0.05 * first
    frequencies = [
        mesh_phonons(force_constants(p, cell, (2, 2, 2), displacement=None), [8, 8, 8]).frequencies
        for p in (teacher, result.potential)
    ]
    largest = frequencies[0].max()
    worst = np.abs(frequencies[1] - frequencies[0]).max()
    print(f"forces {first:.1f} -> {last:.2f} meV/Å; worst mode {worst:.3f} of {largest:.3f} THz")
    assert worst < 0.02 * largest
    assert abs(frequencies[1].max() - largest) < 0.02 * largest
