"""Thermal conductivity of solid argon by two independent routes, beside the references. `make run` calls this.

    python experiments/argon/run.py --out runs/argon

The same command again continues a run that was stopped, or only rebuilds the report of a finished one.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from jaxmd_thermal.cli import commands
from jaxmd_thermal.cli.app import guarded
from jaxmd_thermal.cli.progress import announce, duration
from jaxmd_thermal.report.data import conductivity, with_error

CONFIG = Path(__file__).with_name("config.toml")
# Same potential, 256 atoms, 50 K, computed with LAMMPS: Langevin 40 ps, then 5 NVE runs of 1 ns, flux every 20 fs.
REFERENCES = [
    ("LAMMPS, Green-Kubo, cepstral, mean 49.7 K", 0.361, 0.015),
    ("LAMMPS, Green-Kubo, filtered integral, mean 49.7 K", 0.384, 0.028),
]


def main(out: Path, config: Path) -> int:
    start = time.perf_counter()
    folders = []
    for verb in ("green-kubo", "hnemd"):
        folders.append(out / verb)
        commands.run(verb, {"out": str(folders[-1])}, str(config), show=False)
    document = commands.combine(out, folders)
    announce("")
    announce(f"Thermal conductivity of solid argon, {document['n_atoms']} atoms, W/(m K)")
    for entry in document["results"]:
        mean = (entry.get("details") or {}).get("mean_temperature_K")
        at = f"{entry['temperature_K']:g} K" + (f", mean {mean:.1f} K" if mean else "")
        announce(f"  {with_error(*conductivity(entry)):<18} this run, {entry['method']}, {at}")
        announce(f"  {'':<18} {entry['verdict']['text']}")
    for name, value, error in REFERENCES:
        announce(f"  {with_error(value, error):<18} {name}")
    announce(f"report: {out / 'report.html'}   ({duration(time.perf_counter() - start)})")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/argon"))
    parser.add_argument("--config", type=Path, default=CONFIG)
    options = parser.parse_args()
    sys.exit(guarded(lambda: main(options.out, options.config)))
