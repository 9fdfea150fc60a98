"""Thermal conductivity of rocksalt RbI at 300 K with a foundation potential, by Green-Kubo, beside the lattice value.

    python experiments/rbi_green_kubo/run.py --reduced --out runs/rbi-reduced      (half an hour on two cores)
    python experiments/rbi_green_kubo/run.py --out runs/rbi                        (the size that counts; for a GPU)

The same command again continues a run that was stopped, or only rebuilds the report of a finished one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from jaxmd_thermal._backend import quiet_compiler, use_all_cores
from jaxmd_thermal.cli import commands
from jaxmd_thermal.cli.app import guarded
from jaxmd_thermal.cli.progress import announce, duration
from jaxmd_thermal.io.ase import write_structure
from jaxmd_thermal.report.data import conductivity, with_error

HERE = Path(__file__).parent
START = 7.44
"""Å, from where the lattice constant is relaxed."""
FORCE_TOLERANCE = 1e-4
"""eV/Å."""
REFERENCES = [
    ("lattice dynamics with PBE force constants (phonondb; Wigner, RTA linewidths, without NAC), 300 K", 1.788, None)
]
BY_POTENTIAL = {
    "nequix-mp-1": ("lattice dynamics with this potential (Wigner, the protocol of phonondb103), 300 K", 1.134, None)
}
"""Of `experiments/phonondb103`: what Green-Kubo of the same potential is to be compared with."""
REDUCED = (
    "This is a reduced run: 64 atoms hold few phonons, and the time is short. It shows that everything works together; the\n"
    "number to compare is that of the whole size (without --reduced)."
)


def relaxed(potential: str):
    """The cubic cell of 8 atoms at the minimum of the potential."""
    quiet_compiler()  # before JAX is imported, as the next: the replicas of the run need all cores as devices
    use_all_cores()
    from jaxmd_thermal import Calculator

    atoms = bulk("RbI", "rocksalt", a=START, cubic=True)
    atoms.calc = Calculator(potential)
    BFGS(FrechetCellFilter(atoms, hydrostatic_strain=True), logfile=None).run(fmax=FORCE_TOLERANCE, steps=100)
    return atoms


def main(out: Path, reduced: bool, potential: str) -> int:
    start = time.perf_counter()
    structure = out / "rbi-relaxed.extxyz"
    if not structure.exists():
        announce(f"relaxing the cell with {potential}")
        atoms = relaxed(potential)
        atoms.calc = None
        structure = write_structure(structure, atoms)
        announce(f"  lattice constant {atoms.cell.lengths()[0]:.4f} Å")
    config = HERE / ("reduced.toml" if reduced else "config.toml")
    given = {"out": str(out), "structure": str(structure), "potential": potential}
    commands.run("green-kubo", given, str(config), show=False)
    document = json.loads((out / "results.json").read_text())
    (entry,) = document["results"]
    mean = (entry.get("details") or {}).get("mean_temperature_K")
    announce("")
    announce(f"Thermal conductivity of RbI, {document['n_atoms']} atoms, {potential}, W/(m K)")
    label = "this run" + (f", mean {mean:.0f} K" if mean else "") + (" (reduced)" if reduced else "")
    announce(f"  {with_error(*conductivity(entry)):<18} {label}")
    for name, value, error in REFERENCES + ([BY_POTENTIAL[potential]] if potential in BY_POTENTIAL else []):
        announce(f"  {with_error(value, error):<18} {name}")
    announce(f"  verdict on this run: {entry['verdict']['text']}")
    if reduced:
        announce(REDUCED)
    announce(f"report: {out / 'report.html'}   ({duration(time.perf_counter() - start)})")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=None, help="default: runs/rbi, or runs/rbi-reduced")
    parser.add_argument("--reduced", action="store_true", help="64 atoms, 2 x 40 ps: not the result")
    parser.add_argument("--potential", default="nequix-mp-1", help="default: %(default)s")
    options = parser.parse_args()
    chosen = options.out or Path("runs/rbi-reduced" if options.reduced else "runs/rbi")
    sys.exit(guarded(lambda: main(chosen, options.reduced, options.potential)))
