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

from jaxmd_thermal.cli.app import guarded
from jaxmd_thermal.cli.phonon_evaluation import compounds_of, evaluated, summary_of, written
from jaxmd_thermal.cli.progress import announce
from jaxmd_thermal.cli.training import trained
from jaxmd_thermal.cli.training_settings import load_training

CONFIG = Path(__file__).with_name("config.toml")
START, PUBLISHED = "nequix-mp-1", "nequix-mp-1-pft"
SUPERCELLS = {"data.cells": "supercell", "data.max_atoms": 144, "batch_size": 1, "block": 32}
VARIANTS = {
    "full": {},
    # The displaced supercells with their forces, as an ordinary data set; the published result is that it hurts.
    "forces-only": SUPERCELLS | {"data.labels": "displaced", "losses.hessian": None},
    # The supercells themselves instead of the small cells that hold the same wave vectors.
    "supercells": SUPERCELLS,
    "no-replay": {"replay": None},
    # Zero stress at the DFT geometry, with the cell strained as it must be.
    "stress": {"data.stress_at_rest": True, "losses.stress": {"weight": 5.0}},
}
STABLE = ("SnO2", "LiF", "ErAgTe2", "KCaCO3F", "Li3NbS4")
"""Validation compounds without imaginary modes."""


def main(options) -> int:
    data, out = options.data, options.out / options.variant
    os.environ["DFT_PHONONS"] = str(data)
    os.environ["REPLAY"] = str(replayed(data, options.solids, options.out / "replayed"))
    changes = dict(VARIANTS[options.variant])
    if options.steps is not None:
        changes["steps"] = options.steps
    if options.only:
        from jaxmd_thermal.cli.training import read_manifest

        keys = [r["key"] for r in read_manifest(str(data / "manifest.csv")) if r["split"] == "train"]
        changes["data.exclude"] = [k for k in keys if k not in options.only]
    settings = load_training(options.config, changes)
    result, forgotten = trained(settings, out)
    document = {"variant": options.variant, "steps": result.steps, "stopped": result.stopped, "forgotten": forgotten}
    announce(f"changed on rattled structures that were not replayed: {json.dumps(forgotten)}")
    named, functionals = compounds_of((), str(data / "manifest.csv"), ("validation",))
    if options.evaluate:
        named = {k: v for k, v in named.items() if k in options.evaluate}
    from jaxmd_thermal.io.models import load_potential

    models = {START: load_potential(START), "this run": result.potential, PUBLISHED: load_potential(PUBLISHED)}
    tables = evaluated(models, named, functionals)
    announce(summary_of(tables))
    written(tables, out)
    for name in ("this run", PUBLISHED):
        document[name] = {
            "all stable": tables[name].relative_to(tables[START]),
            **{g: tables[name].relative_to(tables[START], functional=g) for g in sorted(set(functionals.values()))},
        }
        if options.solids.is_file():
            document[name]["changed_on_solids"] = changed(models[START], models[name], options.solids, data)
            announce(
                f"{name}, changed on rattled solids that were not trained on: {document[name]['changed_on_solids']}"
            )
    (out / "summary.json").write_text(json.dumps(document, indent=1))
    return 0


def changed(base, potential, solids: Path, data: Path) -> dict[str, float]:
    """RMS change of energies, forces and stresses on rattled solids of a file that were neither trained on nor replayed."""
    from jaxmd_thermal.training.replay import forgetting, rattled

    return forgetting(base, potential, rattled(halves(solids, data)[1], 1, seed=1), batch_size=8)


def halves(solids: Path, data: Path) -> tuple[list, list]:
    """(replayed, never replayed) solids of a file, by composition; those of the phonon data are in neither."""
    from ase.formula import Formula
    from ase.io import read

    from jaxmd_thermal.cli.training import read_manifest

    def composition(formula: str) -> tuple:
        return tuple(sorted(Formula(formula).reduce()[0].count().items()))

    known = {composition(r["formula"].split("_")[0]) for r in read_manifest(str(data / "manifest.csv"))}
    found: dict[tuple, list] = {}
    for atoms in read(solids, index=":"):
        found.setdefault(composition(str(atoms.symbols)), []).append(atoms)
    kept = [polymorphs for key, polymorphs in found.items() if key not in known]
    return [a for each in kept[::2] for a in each], [a for each in kept[1::2] for a in each]


def replayed(data: Path, solids: Path, folder: Path) -> Path:
    """Structure files for the replay: the unit cells of the training compounds, and every other one of the solids."""
    from jaxmd_thermal import ForceConstants
    from jaxmd_thermal.cli.training import read_manifest
    from jaxmd_thermal.io.ase import write_structure
    from jaxmd_thermal.system import System

    folder.mkdir(parents=True, exist_ok=True)
    for row in read_manifest(str(data / "manifest.csv")):
        file = folder / f"{row['key']}.extxyz"
        if row["split"] != "train" or file.exists() or row["key"] == "NaCl_rd444":
            continue
        unit = ForceConstants.from_phono3py(row["path"]).geometry.unit
        system = System(unit.positions @ unit.lattice, unit.lattice, unit.numbers, unit.masses)
        atoms = system.to_atoms()
        atoms.info["compound"] = row["key"]
        write_structure(file, atoms)
    for number, atoms in enumerate(halves(solids, data)[0] if solids.is_file() else []):
        write_structure(folder / f"solid_{number:03d}.extxyz", atoms)
    return folder


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
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="full")
    parser.add_argument("--steps", type=int, default=None, help="instead of the configuration's, for a trial")
    parser.add_argument("--only", nargs="*", default=(), help="training compounds, for a trial")
    parser.add_argument("--evaluate", nargs="*", default=(), help="validation compounds [all]")
    sys.exit(guarded(lambda: main(parser.parse_args())))
