"""Phonon fine-tuning of a foundation potential on a few DFT force constants, beside the published fine-tuned one.

    python experiments/phonon_finetuning/run.py --data DIR --out runs/phonon_finetuning
    python experiments/phonon_finetuning/run.py --data DIR --variant forces-only

DIR holds `manifest.csv` and the phonopy files that it names. The same command again continues a run that was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal.cli.app import guarded
from jaxmd_thermal.cli.phonon_evaluation import compounds_of, evaluated, summary_of, written
from jaxmd_thermal.cli.progress import announce
from jaxmd_thermal.cli.training import trained
from jaxmd_thermal.cli.training_settings import load_training
from jaxmd_thermal.errors import InputError

CONFIG = Path(__file__).with_name("config.toml")
START, PUBLISHED = "nequix-mp-1", "nequix-mp-1-pft"
SUPERCELLS = {"data.cells": "supercell", "data.max_atoms": 144, "batch_size": 1, "block": 32}
ENERGIES = {
    "replay.structures": None,
    "replay.energies_only": ("$REPLAY/*.extxyz",),
    "replay.batch_size": 8,
    "replay.losses.forces": None,
    "replay.losses.stress": None,
}
WEAK = {
    "replay.losses.energy": {"weight": 500.0, "kind": "huber", "delta": 0.1},
    "replay.losses.forces": {"weight": 200.0, "kind": "huber", "delta": 0.1},
}
VARIANTS = {
    "full": {},
    # The displaced supercells with their forces, as an ordinary data set; the published result is that it hurts.
    "forces-only": SUPERCELLS | {"data.labels": "displaced", "losses.hessian": None},
    # The supercells themselves instead of the small cells that hold the same wave vectors.
    "supercells": SUPERCELLS,
    "no-replay": {"replay": None},
    # Terms and weights that the published fine-tuning has for its upstream data, and the constant energies trained, too.
    "published-replay": WEAK | {"optimizer.constants": True},
    # Terms that are weak for small errors, and of the training compounds forces and stresses, too.
    "weak-replay": WEAK
    | {
        "replay.structures": ("$REPLAY/solid_*.extxyz", "$REPLAY/compound_*.extxyz"),
        "replay.energies_only": None,
    },
    # Energies alone, weak for small errors; what is the same for all atoms of an element its constant energy may take.
    "weak-energies": ENERGIES
    | {
        "replay.energies_only": ("$REPLAY/solid_*.extxyz", "$REPLAY/compound_*.extxyz"),
        "replay.losses.energy": WEAK["replay.losses.energy"],
        "optimizer.constants": True,
    },
    # The same of many invented crystals as well, and so heavy that errors of a few meV/atom count.
    "invented-energies": ENERGIES
    | {
        "replay.losses.energy": {"weight": 4000.0, "kind": "huber", "delta": 0.1},
        "optimizer.constants": True,
        "replay.copies": 2,
        "replay.batch_size": 16,
    },
    # The same, and forces of crystals of anions that the phonon data say nothing about: their curvature is the base model's.
    "held-anions": ENERGIES
    | {
        "replay.structures": ("$REPLAY/*_unlike.extxyz",),
        "replay.energies_only": ("$REPLAY/*_[0-9][0-9][0-9].extxyz", "$REPLAY/compound_*.extxyz"),
        "replay.losses.energy": {"weight": 4000.0, "kind": "huber", "delta": 0.1},
        "replay.losses.forces": {"weight": 1000.0, "kind": "huber", "delta": 0.1},
        "optimizer.constants": True,
        "replay.copies": 2,
        "replay.batch_size": 16,
    },
    # Nothing is replayed; what was forgotten is brought back afterwards, by the smallest change of the weights.
    "restored": {
        "replay": None,
        "steps": 500,
        "restore.structures": ("$REPLAY/solid_*.extxyz",),
        "restore.energies_only": ("$REPLAY/prototype_*.extxyz", "$REPLAY/compound_*.extxyz"),
        "restore.copies": 1,  # another crystal says more than another copy
        "restore.directions": 4,
    },
    # Energies alone are replayed, of invented crystals as well: of displaced atoms and strained cells, or at rest.
    "energy-replay": ENERGIES,
    "energy-at-rest": ENERGIES | {"replay.copies": 1, "replay.rattle": 0.0, "replay.strain": 0.0},
    # Zero stress at the DFT geometry, with the cell strained as it must be.
    "stress": {"data.stress_at_rest": True, "losses.stress": {"weight": 5.0}},
}
INVENTED = {
    "energy-replay": 100,
    "energy-at-rest": 100,
    "invented-energies": 400,
    "held-anions": 400,
    "restored": 2000,
}
"""Variants that ask the base model of invented crystals, too, and how many."""

KEPT_WITHIN = 5.0, 16.0
"""meV/atom and meV/Å: how far the share that is kept may move the solids that it is chosen on. Forces: half of the 32.5 meV/Å
by which the variant `no-replay` moves them."""

HELD_OUT = 4
"""One in so many compositions of the solids is never replayed: forgetting is measured there, and limited on half of them."""

PROTOTYPE_EDGES = {
    "rocksalt": 2.0,
    "zincblende": 4 / 3**0.5,
    "wurtzite": (8 / 3) ** 0.5,
    "cesiumchloride": 2 / 3**0.5,
    "fluorite": 4 / 3**0.5,
}
"""Edge of the cube, or of the hexagon, over the length of the bond."""
SIMILAR = 0.15
"""Elements whose radii differ by no more take each other's place (the rule of Hume-Rothery for solid solutions)."""
CATIONS = (
    "Li Na K Rb Cs Be Mg Ca Sr Ba B Sc Ti V Cr Mn Fe Co Ni Cu Zn Y Zr Nb Mo Ag Cd La Hf Ta W Al Ga In Tl Si Ge Sn Pb Sb Bi Er"
).split()
ANIONS = "H C N O F P S Cl As Se Br Te I".split()


def main(options) -> int:
    data, out = options.data, options.out / options.variant
    os.environ["DFT_PHONONS"] = str(data)
    invented = INVENTED.get(options.variant, 0)
    by_anion = options.variant == "held-anions"
    folder = options.out / ("replayed" + (f"_{invented}" if invented else "") + ("_by_anion" if by_anion else ""))
    os.environ["REPLAY"] = str(replayed(data, options.solids, folder, invented, by_anion))
    named, functionals = compounds_of((), str(data / "manifest.csv"), ("validation",))
    if unknown := sorted(set(options.evaluate) - set(named)):
        raise InputError(
            f"--evaluate names {unknown}, which are not for validation: choose of {', '.join(sorted(named))}"
        )
    if options.evaluate:
        named = {k: v for k, v in named.items() if k in options.evaluate}
    changes: dict[str, Any] = dict(VARIANTS[options.variant])
    if not options.solids.is_file():  # the training compounds and what is invented are left
        if "restore.structures" in changes:
            changes["restore.structures"] = None
        elif "replay" not in changes:
            changes["replay.structures"] = None
    if options.steps is not None:
        changes["steps"] = options.steps
    if options.seed is not None:
        changes["seed"] = options.seed
    if options.only:
        from jaxmd_thermal.cli.training import read_manifest

        keys = [r["key"] for r in read_manifest(str(data / "manifest.csv")) if r["split"] == "train"]
        changes["data.exclude"] = [k for k in keys if k not in options.only]
    from jaxmd_thermal.io.exported import save_potential
    from jaxmd_thermal.io.models import load_potential
    from jaxmd_thermal.training.replay import forgetting, interpolated, kept_share, rattled

    models = {START: load_potential(START)}
    halves: dict[str, list] = {}
    if options.solids.is_file():
        _, *apart = parted(options.solids, data)
        halves = {k: rattled(v, 1, seed=1) for k, v in zip(("where it was chosen", "elsewhere"), apart)}
    chosen_on = halves.get("where it was chosen", [])
    result, forgotten = trained(load_training(options.config, changes), out)
    document = {"variant": options.variant, "steps": result.steps, "stopped": result.stopped, "forgotten": forgotten}
    announce(f"changed on other copies of the replayed structures: {json.dumps(forgotten)}")
    models["this run"] = result.potential
    if halves:
        share, seen = kept_share(models[START], result.potential, chosen_on, *KEPT_WITHIN, batch_size=8)
        announce(f"share of the change that is kept: {share:g}, {json.dumps(seen)}")
        kept = interpolated(models[START], result.potential, share)
        save_potential(kept, out / "kept_share", overwrite=True)
        document["share"] = share
        if share < 1.0:  # else it is this run
            models["kept share"] = kept
    models[PUBLISHED] = load_potential(PUBLISHED)
    tables = evaluated(models, named, functionals)
    announce(summary_of(tables))
    written(tables, out)
    for name in list(models)[1:]:
        ratios = {g: tables[name].relative_to(tables[START], functional=g) for g in sorted(set(functionals.values()))}
        # A functional without a stable compound has none.
        document[name] = {g: r for g, r in ratios.items() if np.isfinite(r)}
        document[name]["all stable"] = tables[name].relative_to(tables[START])
        if halves:
            rows = halves | {"both": [frame for half in halves.values() for frame in half]}
            moved = {k: forgetting(models[START], models[name], rows[k], batch_size=8) for k in rows}
            document[name]["changed_on_solids"] = moved
            announce(f"{name}, changed on rattled solids that were not replayed: {json.dumps(moved)}")
    (out / "summary.json").write_text(json.dumps(document, indent=1))
    return 0


def parted(solids: Path, data: Path) -> tuple[list, list, list]:
    """Solids of a file, by composition: replayed; never replayed, half of which the share that is kept is chosen on, and half on
    which it is judged. Those of the phonon data are in none."""
    from ase.io import read

    known = known_compositions(data)
    found: dict[tuple, list] = {}
    for atoms in read(solids, index=":"):
        found.setdefault(composition(str(atoms.symbols)), []).append(atoms)
    kept = [polymorphs for key, polymorphs in found.items() if key not in known]
    unseen = kept[HELD_OUT - 1 :: HELD_OUT]
    del kept[HELD_OUT - 1 :: HELD_OUT]
    return tuple([a for each in part for a in each] for part in (kept, unseen[::2], unseen[1::2]))  # type: ignore[return-value]


def replayed(data: Path, solids: Path, folder: Path, invented: int, by_anion: bool = False) -> Path:
    """Structure files for the replay: training compounds, solids but every fourth composition, prototypes if wanted.

    With `by_anion` names of those with an anion that no training compound has end with `_unlike`.
    """
    from ase.io import read

    from jaxmd_thermal import ForceConstants
    from jaxmd_thermal.cli.training import read_manifest
    from jaxmd_thermal.io.ase import write_structure
    from jaxmd_thermal.io.models import load_potential
    from jaxmd_thermal.system import System

    folder.mkdir(parents=True, exist_ok=True)
    for row in read_manifest(str(data / "manifest.csv")):
        file = folder / f"compound_{row['key']}.extxyz"
        if row["split"] != "train" or file.exists() or row["key"] == "NaCl_rd444":
            continue
        unit = ForceConstants.from_phono3py(row["path"]).geometry.unit
        system = System(unit.positions @ unit.lattice, unit.lattice, unit.numbers, unit.masses)
        atoms = system.to_atoms()
        atoms.info["compound"] = row["key"]
        write_structure(file, atoms)
    trained_on = {
        e for r in read_manifest(str(data / "manifest.csv")) if r["split"] == "train" for e, _ in formula_of(r)
    }
    unlike = set(ANIONS) - trained_on if by_anion else set()

    def write(kind, number, atoms):
        mark = "_unlike" if unlike & set(atoms.symbols) else ""
        write_structure(folder / f"{kind}_{number:03d}{mark}.extxyz", atoms)

    for number, atoms in enumerate(parted(solids, data)[0] if solids.is_file() else []):
        write("solid", number, atoms)
    if len([*folder.glob("prototype_*.extxyz")]) < invented:
        excluded = known_compositions(data)
        if solids.is_file():
            excluded |= {composition(str(atoms.symbols)) for atoms in read(solids, index=":")}
        for number, atoms in enumerate(prototypes(load_potential(START), invented, excluded)):
            write("prototype", number, atoms)
    return folder


def prototypes(potential, count: int, excluded: set, seed: int = 0) -> list:
    """Crystals of random elements, at the volume that the base model likes best: chemistry that no data set holds.

    What a base model is asked needs no reference, so the structures may be invented. Every other one is a binary; in the rest
    half of the cations and half of the anions are replaced by an element of similar size, so that each says something of four
    bonds, in surroundings that no binary has.
    """
    from ase import Atoms

    from jaxmd_thermal.training.replay import labelled, rattled

    rng = np.random.default_rng(seed)
    found: dict[tuple, Atoms] = {}
    draws = 0
    while len(found) < count:
        draws += 1
        if draws > 100 * count:
            raise InputError(f"only {len(found)} of {count} crystals of such elements can be told apart: take fewer")
        kind, mixed = str(rng.choice(sorted(PROTOTYPE_EDGES))), len(found) % 2 == 1
        atoms = crystal(kind, *(pair(rng, elements, mixed) for elements in (CATIONS, ANIONS)))
        known = composition(str(atoms.symbols))
        if known not in excluded:
            found.setdefault((kind, known), atoms)
    scales = np.linspace(0.84, 1.2, 10)
    trials = []
    for atoms in found.values():
        for scale in scales:
            trial = atoms.copy()
            trial.set_cell(scale * atoms.cell, scale_atoms=True)
            trials.append(trial)
    said = labelled(potential, rattled(trials, rattle=0.0, strain=0.0), batch_size=len(scales))
    best = np.argmin(np.reshape([frame.energy for frame in said], (count, len(scales))), axis=1)
    return [trials[i * len(scales) + k] for i, k in enumerate(best)]


def pair(rng, elements: list[str], mixed: bool) -> tuple[str, str]:
    """An element and, if mixed, one within `SIMILAR` of its size, else the same again."""
    one = str(rng.choice(elements))
    alike = [e for e in elements if abs(radius(e) - radius(one)) <= SIMILAR * radius(one)]
    return one, str(rng.choice(alike)) if mixed else one


def crystal(kind: str, cations: tuple[str, str], anions: tuple[str, str]):
    """Crystal with bonds as long as the covalent radii say; twice the smallest cell where it must be to hold both elements."""
    from ase.build import bulk

    bond = sum(map(radius, cations + anions)) / 2
    formula = f"{cations[0]}{anions[0]}{'2' if kind == 'fluorite' else ''}"
    atoms = bulk(formula, kind, a=PROTOTYPE_EDGES[kind] * bond)
    pairs = [both for both in (cations, anions) if both[0] != both[1]]
    if pairs and kind != "wurtzite":
        atoms = atoms.repeat((1, 1, 2))
    symbols = np.array(atoms.get_chemical_symbols(), object)
    for one, other in pairs:
        where = np.flatnonzero(symbols == one)
        symbols[where[len(where) // 2 :]] = other
    atoms.set_chemical_symbols(list(symbols))
    return atoms


def radius(element: str) -> float:
    """Covalent radius, Å."""
    from ase.data import atomic_numbers, covalent_radii

    return float(covalent_radii[atomic_numbers[element]])


def composition(formula: str) -> tuple:
    """Elements and their smallest whole numbers."""
    from ase.formula import Formula

    return tuple(sorted(Formula(formula).reduce()[0].count().items()))


def known_compositions(data: Path) -> set:
    """Those of the phonon data, of training and of validation."""
    from jaxmd_thermal.cli.training import read_manifest

    return {formula_of(r) for r in read_manifest(str(data / "manifest.csv"))}


def formula_of(row: dict) -> tuple:
    """Composition of a row of the manifest, whose formula may end with a name of the structure."""
    return composition(row["formula"].split("_")[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = os.environ.get("JAXMD_THERMAL_SHARED", "../shared")
    parser.add_argument("--data", type=Path, default=Path(shared) / "data" / "dft_phonons")
    parser.add_argument("--out", type=Path, default=Path("runs/phonon_finetuning"))
    parser.add_argument(
        "--solids", type=Path, default=Path(shared) / "data" / "phonondb103" / "phononDB-PBE-structures.extxyz",
        help="structures of the 103 solids, on which forgetting is measured; skipped where the file is missing",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="restored")
    parser.add_argument("--steps", type=int, default=None, help="instead of the configuration's, for a trial")
    parser.add_argument("--seed", type=int, default=None, help="instead of the configuration's, to see the spread")
    parser.add_argument("--only", nargs="*", default=(), help="training compounds, for a trial")
    parser.add_argument("--evaluate", nargs="*", default=(), help="validation compounds [all]")
    sys.exit(guarded(lambda: main(parser.parse_args())))
