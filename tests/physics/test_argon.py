"""Argon's conductivity against LAMMPS with the same potential, cell and protocol (references: the project's argon data).

Seeds were fixed before the first run. Each temperature takes minutes, so these are slow tests; `make test-slow` runs them and
`experiments/argon/README.md` holds what they gave.
"""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from scipy.stats import chi2

from jaxmd_thermal import green_kubo, hnemd, load_potential

# lattice constant (Å), mean temperature of the reference runs (K), kappa and its error (W/(m K)): cepstral, five runs of 1 ns
REFERENCES = [(5.2969, 20.6, 1.16, 0.09), (5.3737, 49.7, 0.361, 0.015), (5.4860, 80.4, 0.182, 0.007)]

# A quarter of an hour on one core, half of that on two.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def conductivity(lattice, temperature, steps=250_000):
    atoms = bulk("Ar", "fcc", a=lattice, cubic=True) * (4, 4, 4)
    return green_kubo(
        load_potential("lj-argon-gk"), atoms, temperature, timestep=4.0, steps=steps, equilibration_steps=10_000,
        replicas=4, sample_every=5, seed=2026,
    )  # fmt: skip


def test_green_kubo_agrees_with_lammps_at_three_temperatures():
    sigmas = []
    for lattice, temperature, kappa, error in REFERENCES:
        result = conductivity(lattice, temperature)
        sigmas.append((result.isotropic - kappa) / np.hypot(result.isotropic_stderr, error))
        print(f"{temperature} K: {result.isotropic:.4f} +- {result.isotropic_stderr:.4f}, LAMMPS {kappa} +- {error}, "
              f"mean {result.mean_temperature:.2f} K, {sigmas[-1]:+.2f} sigma; {result.verdict.text}")  # fmt: skip
    assert np.all(np.abs(sigmas) <= 3.0)
    assert chi2.sf(np.sum(np.square(sigmas)), len(sigmas)) > 0.01


def test_green_kubo_and_hnemd_agree():
    lattice, temperature, *_ = REFERENCES[1]
    equilibrium = conductivity(lattice, temperature)
    atoms = bulk("Ar", "fcc", a=lattice, cubic=True) * (4, 4, 4)
    driven = hnemd(
        load_potential("lj-argon-gk"), atoms, temperature, driving_force=[[0.0025, 0, 0], [0, 0.005, 0], [0.005, 0, 0]],
        timestep=4.0, steps=100_000, equilibration_steps=10_000, replicas=2, sample_every=5, seed=2026,
    )  # fmt: skip
    difference = driven.isotropic - equilibrium.isotropic
    sigma = np.hypot(driven.isotropic_stderr, equilibrium.isotropic_stderr)
    print(f"Green-Kubo {equilibrium.isotropic:.4f} +- {equilibrium.isotropic_stderr:.4f}, HNEMD {driven.isotropic:.4f} +- "
          f"{driven.isotropic_stderr:.4f}; {driven.verdict.text}")  # fmt: skip
    assert abs(difference) <= 3 * sigma
    assert "linear regime" not in driven.verdict.text
