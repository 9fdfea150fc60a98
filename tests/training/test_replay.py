"""Replay of a base model, and what a fine-tuned one has forgotten."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from ase.build import bulk

from jaxmd_thermal import _backend, evaluate, fit
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.potentials import LennardJones
from jaxmd_thermal.training.losses import EnergyPerAtom, Forces, HessianColumns, Stress
from jaxmd_thermal.training.records import CoTraining
from jaxmd_thermal.training.replay import forgetting, interpolated, kept_share, labelled, rattled, replay

BASE = LennardJones(0.0104, 3.4, 5.5, "switch", switch_start=4.0)


def crystals():
    return [bulk("Ar", "fcc", a=5.2), bulk("Ar", "fcc", a=5.4, cubic=True)]


@pytest.mark.slow
def test_labels_are_what_the_potential_says_and_repeat():
    frames = replay(BASE, crystals(), copies=2, seed=1, dtype="float64", batch_size=2)
    assert [f.n_atoms for f in frames] == [1, 1, 4, 4]
    assert len({f.positions.tobytes() for f in frames}) == 4
    for frame in frames[1:3]:
        said = evaluate(BASE, frame.system, ("energy", "forces", "stress"))
        assert frame.energy == pytest.approx(float(said["energy"]), abs=1e-12)
        np.testing.assert_allclose(frame.forces, said["forces"], atol=1e-12)
        np.testing.assert_allclose(frame.stress, said["stress"], atol=1e-13)
    again = rattled(crystals(), 2, seed=1)
    assert all(a.positions.tobytes() == b.positions.tobytes() for a, b in zip(frames, again, strict=True))
    moved = np.concatenate(
        [f.positions - np.asarray(crystals()[1].positions) for f in rattled(crystals()[1:], 200, strain=0.0)]
    )
    assert moved.std() == pytest.approx(0.05, rel=0.05)
    with pytest.raises(InputError, match="strained"):
        slab = crystals()[1]
        slab.pbc = (True, True, False)
        rattled([slab])


def test_forgetting_in_closed_form():
    """A potential twice as deep: energies, forces and stresses change by themselves."""
    frames = labelled(BASE, rattled(crystals(), 2), dtype="float64")
    deeper = replace(BASE, epsilon=2 * BASE.epsilon)
    found = forgetting(BASE, deeper, frames, dtype="float64", batch_size=2)
    energies = np.array([f.energy / f.n_atoms for f in frames])
    forces = np.concatenate([f.forces.ravel() for f in frames])
    assert found["energy_meV_atom"] == pytest.approx(1e3 * np.sqrt(np.mean(energies**2)))
    assert found["forces_meV_A"] == pytest.approx(1e3 * np.sqrt(np.mean(forces**2)))
    stress = np.stack([f.stress for f in frames])
    assert found["stress_GPa"] == pytest.approx(160.21766208 * np.sqrt(np.mean(stress**2)))
    assert forgetting(BASE, BASE, frames)["energy_meV_atom"] == 0.0


@pytest.mark.slow
def test_share_of_a_fine_tuning_in_closed_form():
    """Everything is linear in epsilon: a share of its change makes that share of the changes, energies and forces alike."""
    tuned = LennardJones(0.0116, 3.4, 5.5, "switch", switch_start=4.0)
    frames = rattled([bulk("Ar", "fcc", a=5.4, cubic=True)] * 3)
    assert interpolated(BASE, tuned, 0.25).epsilon == pytest.approx(0.0107, rel=1e-12)
    whole = forgetting(BASE, tuned, frames, dtype="float64")
    for name, limits in (("energy_meV_atom", {"forces": np.inf}), ("forces_meV_A", {"energy": np.inf})):
        limit = {name.split("_")[0]: 0.57 * whole[name]}
        share, found = kept_share(BASE, tuned, frames, **limits, **limit, dtype="float64")
        assert share == 0.55  # in steps of a twentieth
        assert found == pytest.approx({k: 0.55 * v for k, v in whole.items()}, rel=1e-9)
    assert kept_share(BASE, tuned, frames, 1e-9, np.inf)[0] == 0.0
    assert kept_share(BASE, tuned, frames, np.inf, np.inf)[0] == 1.0
    for share in (-0.1, 1.1):
        with pytest.raises(InputError, match="between 0"):
            interpolated(BASE, tuned, share)
    with pytest.raises(InputError, match="different parameters"):
        interpolated(BASE, LennardJones(np.full((2, 2), 0.01), 3.4, 5.5, species=(18, 36)), 0.5)


def test_co_training_keeps_what_fine_tuning_forgets():
    """Softer force constants at one volume: without replay the energies of other structures follow, with it far less."""
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    soft = replace(BASE, epsilon=0.9 * BASE.epsilon)
    from jaxmd_thermal import hessian_columns
    from jaxmd_thermal.training.data import Frame

    columns = np.arange(3)
    frame = Frame(
        atoms.numbers, atoms.positions, atoms.cell.array, columns=columns, hessian=hessian_columns(soft, atoms, columns),
        source="argon",
    )  # fmt: skip
    kept = CoTraining(
        replay(BASE, crystals(), copies=3, dtype="float64"), [EnergyPerAtom(20.0), Forces(10.0), Stress(10.0)], steps=3
    )
    unseen = rattled(crystals(), 3, seed=9)
    change = {}
    for name, co in (("alone", None), ("with replay", kept)):
        result = fit(
            BASE,
            [frame],
            [HessianColumns(1.0, "mse")],
            optax.sgd(3e-5),
            steps=60,
            co_training=co,
            precision="float64",
            average=0.0,
        )
        change[name] = forgetting(BASE, result.potential, unseen)["energy_meV_atom"]
    assert change["with replay"] < 0.5 * change["alone"], change


@pytest.mark.skipif(not _backend.MAPS.exists(), reason="the system does not tell memory maps")
@pytest.mark.parametrize("allowed, times", [(0, 1), (10**9, 0)])
def test_programs_are_forgotten_before_memory_maps_run_out(monkeypatch, allowed, times):
    """Several trainings and evaluations of one process: each begins with room for its programs."""
    calls = []
    monkeypatch.setattr(_backend, "SOME_MAPS", allowed)
    monkeypatch.setattr(jax, "clear_caches", lambda: calls.append(0))
    frames = labelled(BASE, rattled(crystals()[:1]))
    assert len(calls) == times
    fit(BASE, frames, [Forces(1.0)], steps=1, precision="float64", average=0.0)
    assert len(calls) == 2 * times
