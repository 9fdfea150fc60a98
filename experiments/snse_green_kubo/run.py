"""Thermal conductivity of SnSe at 300 K with the published So3krates model, by Green-Kubo, beside the literature.

    python experiments/snse_green_kubo/run.py --reduced --out runs/snse-reduced      (minutes on two CPU cores)
    python experiments/snse_green_kubo/run.py --out runs/snse                        (the whole protocol)

The same command again continues a run that was stopped, or only rebuilds the report of a finished one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from ase import Atoms

from jaxmd_thermal.cli import commands
from jaxmd_thermal.cli.app import guarded
from jaxmd_thermal.cli.progress import announce, duration
from jaxmd_thermal.io.ase import write_structure
from jaxmd_thermal.report.data import conductivity, number, with_error

HERE = Path(__file__).parent
CELLS = {"relaxed": (11.5660, 4.1821, 4.3793), "300K": (11.6345, 4.1957, 4.4042)}
"""a, b, c of the Pnma cell in Å, density functional theory: at rest, and with the thermal expansion to 300 K."""
SITES = {"Se": (0.85831, 0.03288), "Sn": (0.11994, 0.39798)}
"""Fractional x and z of the four equivalent sites; y is 1/4 or 3/4."""

# W/(m K); the errors that the sources give, axis by axis where they do.
REFERENCES = [
    ("Brorsson et al.", ((0.571, None), (1.464, None), (1.321, None)), None),
    ("Liu et al.", ((0.57, 0.05), (1.25, 0.24), (0.76, 0.08)), None),
    ("Knoop et al., ab initio Green-Kubo", None, (1.40, 0.38)),
]
EXPERIMENTS = "experiments                                0.45 to 1.9, samples and axes mixed"
REDUCED = (
    "This is a reduced run. It shows that everything works together; its cell and its time are far too small for the\n"
    "conductivity of SnSe. The result is what the whole protocol gives (without --reduced)."
)


def snse(cell: str) -> Atoms:
    """The 8 atoms of the orthorhombic (Pnma) cell, its long axis along x."""
    symbols, places = [], []
    for symbol, (x, z) in SITES.items():
        symbols += [symbol] * 4
        places += [(x, 0.75, z), (-x, 0.25, -z), (0.5 - x, 0.25, z + 0.5), (x + 0.5, 0.75, 0.5 - z)]
    return Atoms(symbols, scaled_positions=np.mod(places, 1.0), cell=CELLS[cell], pbc=True)


def main(out: Path, reduced: bool, cell: str) -> int:
    start = time.perf_counter()
    structure = write_structure(out / f"snse-{cell}.extxyz", snse(cell))
    config = HERE / ("reduced.toml" if reduced else "config.toml")
    commands.run("green-kubo", {"out": str(out), "structure": str(structure)}, str(config), show=False)
    document = json.loads((out / "results.json").read_text())
    (entry,) = document["results"]
    kappa, mean = entry["thermal_conductivity_W_mK"], entry["details"].get("mean_temperature_K")
    axes = [
        with_error(
            number(kappa["tensor"][n][n]), number(kappa["tensor_stderr"][n][n]) if kappa["tensor_stderr"] else None
        )
        for n in range(3)
    ]
    announce("")
    announce(f"Thermal conductivity of SnSe, {document['n_atoms']} atoms, {cell} cell, W/(m K)")
    announce(f"  {'':<36}{'a':>16}{'b':>16}{'c':>16}{'mean':>16}")
    at = f"this run, mean {mean:.0f} K" if mean else "this run"
    _row(at + (" (reduced)" if reduced else ""), axes, with_error(*conductivity(entry)))
    for name, values, average in REFERENCES:
        _row(name, [with_error(*v) for v in values] if values else [""] * 3, with_error(*average) if average else "")
    announce(f"  {EXPERIMENTS}")
    announce(f"  verdict on this run: {entry['verdict']['text']}")
    if reduced:
        announce(REDUCED)
    announce(f"report: {out / 'report.html'}   ({duration(time.perf_counter() - start)})")
    return 0


def _row(name: str, axes: list[str], mean: str) -> None:
    announce(f"  {name:<36}" + "".join(f"{text:>16}" for text in [*axes, mean]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=None, help="default: runs/snse, or runs/snse-reduced")
    parser.add_argument("--reduced", action="store_true", help="72 atoms, 4 x 60 ps: minutes, not the result")
    parser.add_argument("--cell", choices=CELLS, default="relaxed", help="lattice constants (default: %(default)s)")
    options = parser.parse_args()
    chosen = options.out or Path("runs/snse-reduced" if options.reduced else "runs/snse")
    sys.exit(guarded(lambda: main(chosen, options.reduced, options.cell)))
