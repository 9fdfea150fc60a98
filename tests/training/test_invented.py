"""Crystals that the experiment of phonon fine-tuning invents."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ase.data import covalent_radii

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.potentials import LennardJones
from jaxmd_thermal.training.replay import labelled, rattled


@pytest.fixture(scope="module")
def experiment():
    path = Path(__file__).parents[2] / "experiments" / "phonon_finetuning" / "run.py"
    spec = importlib.util.spec_from_file_location("phonon_finetuning", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "kind, neighbors", [("rocksalt", 6), ("zincblende", 4), ("wurtzite", 4), ("cesiumchloride", 8), ("fluorite", 8)]
)
@pytest.mark.parametrize("cations, anions", [("Al", "N"), (("Al", "Ga"), ("N", "C")), (("Na", "Na"), ("Cl", "S"))])
def test_bonds_and_composition(experiment, kind, neighbors, cations, anions):
    """Cations have as many anions around them as the structure says, at the mean of the sums of covalent radii."""
    cations, anions = (tuple(e) if isinstance(e, tuple) else (e, e) for e in (cations, anions))
    atoms = experiment.crystal(kind, cations, anions)
    assert atoms.get_volume() > 0
    bond = np.mean([experiment.radius(c) for c in cations]) + np.mean([experiment.radius(a) for a in anions])
    count = Counter(atoms.get_chemical_symbols())
    for pair, part in ((cations, 1), (anions, 2 if kind == "fluorite" else 1)):
        for element in set(pair):
            share = pair.count(element) / 2 * part / (3 if kind == "fluorite" else 2)
            assert count[element] == pytest.approx(share * len(atoms))
    big = atoms.repeat((3, 3, 3))
    first = next(i for i, e in enumerate(big.get_chemical_symbols()) if e in cations)
    away = big.get_distances(first, range(len(big)), mic=True)
    near = np.flatnonzero((away > 0) & (away < 1.1 * bond))
    assert len(near) == neighbors and {big.get_chemical_symbols()[i] for i in near} <= set(anions)
    assert away[near] == pytest.approx(bond, rel=1e-3)  # wurtzite with the ideal ratio of its axes, as ase writes it


def test_invented_crystals_differ_and_lie_at_their_best_volume(experiment):
    potential = LennardJones(0.05, 2.4, 6.0, "switch", switch_start=5.0)
    excluded = {experiment.composition(f"{c}Cl") for c in experiment.CATIONS}
    found = experiment.prototypes(potential, 24, excluded)
    assert len(found) == 24
    kinds = {(experiment.composition(str(a.symbols)), len(a), round(a.cell.cellpar()[5])) for a in found}
    assert len(kinds) > 20 and not excluded & {k[0] for k in kinds}
    elements = [len(set(a.symbols)) for a in found]
    assert elements[::2] == [2] * 12 and max(elements) == 4
    for atoms in found:
        sizes = [covalent_radii[np.unique(atoms.numbers[np.isin(atoms.symbols, of)])]
                 for of in (experiment.CATIONS, experiment.ANIONS)]  # fmt: skip
        assert all(s.max() - s.min() <= 0.15001 * s.max() for s in sizes)
    # Bonds of 0.84 to 1.2 times the sum of the radii are tried, in steps of 0.04; what is best beyond them stays at the end.
    length = np.array([shortest(atoms) / bond_of(experiment, atoms) for atoms in found])
    scaled = []
    for atoms, own in zip(found, length, strict=True):
        for step in (-0.04, 0.0, 0.04):
            scaled.append(atoms.copy())
            scaled[-1].set_cell((own + step) / own * atoms.cell, scale_atoms=True)
    said = labelled(potential, rattled(scaled, rattle=0.0, strain=0.0), batch_size=8)
    energy = np.reshape([frame.energy for frame in said], (-1, 3))
    inside = (energy[:, 1] < energy[:, 0]) & (energy[:, 1] < energy[:, 2])
    assert inside.sum() >= 8
    assert np.all(inside | (np.abs(length - 0.84) < 1e-3) | (np.abs(length - 1.2) < 1e-3))
    with pytest.raises(InputError, match="only 0 of 3 crystals"):
        experiment.prototypes(potential, 3, Everything())


def shortest(atoms):
    big = atoms.repeat((3, 3, 3))
    away = big.get_distances(0, range(len(big)), mic=True)
    return away[away > 0].min()


def bond_of(experiment, atoms):
    """Mean covalent radius of the cations and that of the anions, over all of them."""
    radii = [
        np.mean([experiment.radius(e) for e in atoms.symbols if e in of])
        for of in (experiment.CATIONS, experiment.ANIONS)
    ]
    return sum(radii)


class Everything:
    def __contains__(self, thing):
        return True
