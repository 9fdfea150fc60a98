"""Data sets: what is read, what is refused and in which words, splits and statistics."""

from __future__ import annotations

import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from jaxmd_thermal import ForceConstants, evaluate
from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.io.datasets import read_displaced_frames, read_frames, read_phonon_frames
from jaxmd_thermal.lattice.displaced import displaced_forces
from jaxmd_thermal.potentials import EquivariantNetwork, LennardJones, StillingerWeber
from jaxmd_thermal.system import System
from jaxmd_thermal.training import plausibility
from jaxmd_thermal.training.batches import Batches
from jaxmd_thermal.training.data import Frame, compound_of, split_by_compound, told_apart
from jaxmd_thermal.training.losses import HessianColumns, factors_of, total_loss
from jaxmd_thermal.training.networks import with_statistics
from jaxmd_thermal.training.plausibility import check_energies_and_forces, check_force_constants
from jaxmd_thermal.training.replay import labelled, rattled
from jaxmd_thermal.training.statistics import statistics

ARGON = LennardJones(0.0104, 3.4, 5.5, "switch", switch_start=4.0)


@pytest.fixture(scope="module")
def trajectory():
    """Six similar structures of argon with energies, forces and stresses."""
    rng = np.random.default_rng(3)
    start = bulk("Ar", "fcc", a=5.2, cubic=True)
    out = []
    for _ in range(6):
        atoms = start.copy()
        atoms.positions += 0.04 * rng.standard_normal(atoms.positions.shape)
        said = evaluate(ARGON, atoms, ("energy", "forces", "stress"))
        out.append((atoms, float(said["energy"]), said["forces"], said["stress"]))
    return out


def write_trajectory(path, trajectory, factor=1.0, spoil=None):
    frames = []
    for i, (atoms, energy, forces, stress) in enumerate(trajectory):
        atoms, forces = atoms.copy(), factor * forces
        if spoil is not None and i == spoil[0]:
            atoms, forces = spoil[1](atoms, forces.copy())
        atoms.info["compound"] = f"argon {i // 3}"
        xx, yy, zz, yz, xz, xy = (stress[a] for a in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)))
        results = {"energy": energy, "forces": forces, "stress": np.array([xx, yy, zz, yz, xz, xy])}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    write(path, frames)
    return path


@pytest.mark.parametrize("suffix", ["extxyz", "db"])
def test_files_of_ase(tmp_path, trajectory, suffix):
    if suffix == "db":  # databases keep calculators, but not `info`
        frames = read_frames(write_trajectory(tmp_path / "set.db", trajectory))
        assert {f.compound for f in frames} == {"Ar"}
    else:
        frames = read_frames(write_trajectory(tmp_path / "set.extxyz", trajectory))
        assert [f.compound for f in frames] == ["argon 0"] * 3 + ["argon 1"] * 3
    assert len(frames) == 6 and "frame 4" in frames[4].source and "set." in frames[4].source
    for frame, (atoms, energy, forces, stress) in zip(frames, trajectory, strict=True):
        np.testing.assert_allclose(frame.positions, atoms.positions, atol=1e-7)
        np.testing.assert_allclose(frame.forces, forces, atol=1e-7)
        np.testing.assert_allclose(frame.stress, stress, atol=1e-7)
        assert frame.energy == pytest.approx(energy)


def test_wrong_units_are_found(tmp_path, trajectory):
    for factor in (10.0, 0.1, 25.71):
        path = write_trajectory(tmp_path / f"off{factor}.extxyz", trajectory, factor)
        with pytest.raises(InputError, match="other units") as caught:
            read_frames(path)
        found = float(re.search(r"by (\S+) times the work", str(caught.value)).group(1))
        assert found == pytest.approx(1 / factor, rel=0.05) and str(path) in str(caught.value)
        assert len(read_frames(path, check_units=False)) == 6


@pytest.mark.parametrize("rattle, strain", [(0.04, 0.02), (0.02, 0.005), (0.12, 0.0)])
def test_wrong_units_are_found_in_usual_training_sets(rattle, strain):
    """Strained cells and large displacements: energies against the work of forces and stresses, in scaled coordinates."""
    start = bulk("Ar", "fcc", a=5.2, cubic=True).repeat(2)
    frames = labelled(ARGON, rattled([start], 12, rattle=rattle, strain=strain, seed=1), batch_size=4, dtype="float64")
    check_energies_and_forces(frames, "set")
    for factor in (10.0, 0.1, -1.0):
        off = [f.replace(forces=factor * f.forces, stress=factor * f.stress) for f in frames]
        with pytest.raises(InputError, match="other units, or of the other sign"):
            check_energies_and_forces(off, "set")


def test_force_constants_of_the_other_sign_are_found(silicon_file):
    frame = read_phonon_frames(silicon_file(1.0, 1.0))[0]
    check_force_constants(frame)
    with pytest.raises(InputError, match="other sign"):
        check_force_constants(frame.replace(hessian=-frame.hessian))


def test_broken_frames_are_named(tmp_path, trajectory):
    def not_finite(atoms, forces):
        forces[2, 1] = np.nan
        return atoms, forces

    path = write_trajectory(tmp_path / "nan.extxyz", trajectory, spoil=(3, not_finite))
    with pytest.raises(InputError, match=r"nan.extxyz', frame 3: forces\[2, 1\] is nan"):
        read_frames(path)

    def strange(atoms, forces):
        atoms.numbers[1] = 36
        return atoms, forces

    frames = read_frames(write_trajectory(tmp_path / "kr.extxyz", trajectory, spoil=(5, strange)))
    with pytest.raises(InputError, match=r"kr.extxyz', frame 5 holds Kr"):
        Batches(frames, 5.0, species=(18,))

    def nanometres(atoms, forces):
        atoms.set_cell(0.1 * atoms.cell.array, scale_atoms=True)
        return atoms, forces

    frames = read_frames(write_trajectory(tmp_path / "nm.extxyz", trajectory, spoil=(0, nanometres)))
    with pytest.raises(InputError, match=r"frame 0.*two atoms on one site"):
        Batches(frames, 1.0)
    with pytest.raises(InputError, match="there is no file"):
        read_frames(tmp_path / "none.extxyz")
    (tmp_path / "half.extxyz").write_text("7\nLattice=")
    with pytest.raises(InputError, match=r"half.extxyz', frame 0 cannot be read"):
        read_frames(tmp_path / "half.extxyz")


@pytest.fixture(scope="module")
def silicon_file(tmp_path_factory):
    """Writes phonopy's file of Stillinger-Weber silicon, with displacements or forces off by factors."""
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    unit = bulk("Si", "diamond", a=5.431, cubic=True)
    phonon = Phonopy(
        PhonopyAtoms(symbols=["Si"] * 8, cell=unit.cell.array, scaled_positions=unit.get_scaled_positions()),
        supercell_matrix=np.diag([1, 1, 1]),
        primitive_matrix="F",
    )
    phonon.generate_displacements(distance=0.01)
    cell = phonon.supercell
    system = System.from_atoms(Atoms(cell.symbols, positions=cell.positions, cell=cell.cell, pbc=True))
    moves = np.stack([c.positions - cell.positions for c in phonon.supercells_with_displacements])
    forces = displaced_forces(StillingerWeber.silicon(), system, moves)

    right = [dict(d) for d in phonon.dataset["first_atoms"]]

    def made(force_factor=1.0, move_factor=1.0):
        path = tmp_path_factory.mktemp("phonopy") / "silicon.yaml"
        given = [dict(d) for d in right]
        for entry, of_set in zip(given, forces, strict=True):
            entry["displacement"] = move_factor * np.array(entry["displacement"])
            entry["forces"] = force_factor * of_set
        phonon.dataset = {"natom": len(cell), "first_atoms": given}
        phonon.save(path, settings={"force_sets": True, "displacements": True, "force_constants": False})
        return path

    return made


@pytest.mark.slow
def test_phonon_frames(silicon_file):
    path = silicon_file()
    (frame,) = read_phonon_frames(path, stress=True)
    assert frame.compound == "silicon" and frame.n_atoms == 8 and len(frame.columns) == 6
    assert not frame.forces.any() and not frame.stress.any() and frame.energy is None
    # The loss of the potential that made the forces is what finite displacements leave: 1e-3 of the force constants.
    with double_precision():
        batches = Batches([frame], 3.78, columns=6)
        batch = batches.assemble(batches.plan(None)[0])
        term = HessianColumns()
        factors = factors_of([term], [batch], 0)
        loss, _ = jax.jit(lambda p, b: total_loss(p, b, [term], factors))(StillingerWeber.silicon(), batch)
    assert float(loss) < 2e-3 * np.abs(frame.hessian).mean()
    # Small cells: L and X of the 2x2x2 primitive cells, and what the supercell says of them.
    small = read_phonon_frames(path, cells="commensurate")
    assert sorted(f.n_atoms for f in small) == [4] and all(not f.hessian.sum(axis=1).round(9).any() for f in small)
    fc = ForceConstants.from_phono3py(path)
    np.testing.assert_allclose(frame.hessian[4], np.asarray(fc.fc2)[1, :, 1, :])
    displaced = read_displaced_frames(path)
    moved = displaced[0].positions - frame.positions
    assert np.linalg.norm(moved, axis=1).max() == pytest.approx(0.01)
    np.testing.assert_allclose(
        displaced[0].forces.ravel(), evaluate(StillingerWeber.silicon(), Atoms(
            frame.numbers, displaced[0].positions, cell=frame.cell, pbc=True))["forces"].ravel(), atol=1e-6,
    )  # fmt: skip


@pytest.mark.slow
def test_wrong_units_of_phonopy(silicon_file):
    # Silicon is stiff for its distances: a tenth of its forces would still be usual, a twenty-seventh (eV and Hartree) is not.
    for factors in ((10.0, 1.0), (1 / 27.2, 1.0), (1.0, 10.0), (1.0, 0.1)):
        path = silicon_file(*factors)
        with pytest.raises(InputError, match="other units") as caught:
            read_phonon_frames(path)
        assert "silicon.yaml" in str(caught.value)
        assert len(read_phonon_frames(path, check_units=False)) == 1
        with pytest.raises(InputError, match="other units"):
            read_displaced_frames(path)
        assert len(read_displaced_frames(path, check_units=False)) == 1


def test_restoring_forces_are_the_self_terms_of_force_constants(monkeypatch):
    """Springs of 7 eV/Å^2 between neighbours: the trace of a simple cubic site's force constants is 2 x 3 x 7 / 3 a direction."""
    cell = Atoms("Po8", 3.3 * np.array(list(np.ndindex(2, 2, 2))), cell=[6.6] * 3, pbc=True)
    ratios = []
    monkeypatch.setattr(plausibility, "SELF_TERMS", (1e9, 1e9))  # all are refused, and the message has the ratio
    hessian = np.zeros((3, 8, 3))
    hessian[np.arange(3), 0, np.arange(3)] = 14.0
    frame = Frame(cell.numbers, cell.positions, cell.cell.array, columns=np.arange(3), hessian=hessian)
    moves = np.zeros((2, 8, 3))
    moves[0, 0], moves[1, 0] = [0.01, 0.01, 0.0], [0.0, 0.0, -0.02]
    for check in (
        lambda: plausibility.check_force_constants(frame),
        lambda: plausibility.check_restoring_forces(System.from_atoms(cell), moves, -14.0 * moves, "a file"),
    ):
        with pytest.raises(InputError, match="other units") as caught:
            check()
        ratios.append(re.search(r"about (\S+) times", str(caught.value)).group(1))
    assert ratios[0] == ratios[1]


def test_names_lose_no_file(tmp_path):
    assert [compound_of(f"x/{n}") for n in ("NaCl.yaml.xz", "Ba0.5Sr0.5TiO3.yaml", "Si.yml.gz", "Si.relaxed", "Si")] == [
        "NaCl", "Ba0.5Sr0.5TiO3", "Si", "Si.relaxed", "Si",
    ]  # fmt: skip
    files = [tmp_path / name for name in ("a/x/p.yaml", "b/x/p.yaml", "b/q.yaml", "b/q.yaml.xz")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert told_apart(files[:3], ["p", "p", "q"]) == ["a/x/p", "b/x/p", "q"]
    assert told_apart(["p", files[0]], ["p", "p"]) == ["p", "x/p"]  # the first is no path, but the name of a potential
    for same in (files[2:], [files[0], tmp_path / "b" / ".." / "a/x/p.yaml"]):
        with pytest.raises(InputError, match=r"would all be called '.*': name each only once"):
            told_apart(same, [compound_of(file) for file in same])


@pytest.mark.slow
def test_published_sets_have_usual_units(shared):
    pytest.importorskip("phono3py")
    folder = shared / "data" / "dft_phonons"
    if not folder.exists():
        pytest.skip("no data/dft_phonons")
    for name in ("LiF", "Si_PBE_p3"):  # the extremes of the estimate
        (frame,) = read_phonon_frames(folder / f"{name}.yaml.xz")
        assert frame.hessian is not None and len(read_displaced_frames(folder / f"{name}.yaml.xz")) > 0


def frame_of(symbols, energy=None, forces=None, compound=""):
    atoms = Atoms(
        symbols,
        positions=4.0 * np.arange(3)[None] * np.arange(1, len(Atoms(symbols)) + 1)[:, None],
        cell=[40] * 3,
        pbc=True,
    )
    return Frame(atoms.numbers, atoms.positions, atoms.cell.array, energy=energy, forces=forces, compound=compound)


def test_split_by_compound_is_reproducible():
    frames = [frame_of("Ar", compound=f"c{i % 10}") for i in range(40)]
    train, held = split_by_compound(frames, 0.3, seed=1)
    assert len({f.compound for f in held}) == 3 and len(train) + len(held) == 40
    assert not {f.compound for f in train} & {f.compound for f in held}
    again = split_by_compound(frames[::-1], 0.3, seed=1)
    assert {f.compound for f in again[1]} == {f.compound for f in held}
    assert any(
        {f.compound for f in split_by_compound(frames, 0.3, seed=s)[1]} != {f.compound for f in held} for s in (2, 3, 4)
    )
    with pytest.raises(InputError, match="two"):
        split_by_compound(frames[:1], 0.5)


def test_statistics():
    rng = np.random.default_rng(0)
    true = {11: -1.3, 17: 2.2, 18: 0.5}
    frames = []
    for formula in ("Na2Cl", "NaCl3", "Ar2", "NaCl", "Ar2Na"):
        frame = frame_of(formula)
        energy = sum(true[z] for z in frame.numbers)
        frames.append(frame.replace(energy=energy, forces=3.0 * rng.standard_normal((frame.n_atoms, 3))))
    found = statistics(frames, cutoff=10.0)
    assert found.shifts == pytest.approx(true) and found.energy_rms == pytest.approx(0.0, abs=1e-12)
    assert found.force_rms == pytest.approx(np.sqrt(np.mean(np.concatenate([f.forces.ravel() for f in frames]) ** 2)))
    # In a row, 8.9 Å apart: each atom sees its neighbours on either side.
    assert found.neighbors == pytest.approx(np.mean([2 * (f.n_atoms - 1) / f.n_atoms for f in frames]))
    network = with_statistics(EquivariantNetwork.create(0, [11, 17, 18, 36], 4.0, 1, channels=2, lmax=0), found)
    np.testing.assert_allclose(network.references, [-1.3, 2.2, 0.5, 0.0], atol=1e-12)
    assert float(network.scale) == found.force_rms
    with pytest.raises(InputError, match="2"):
        with_statistics(network, replace(found, shifts={2: 1.0, 36: 0.0}))
