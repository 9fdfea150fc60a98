"""Thermal conductivity of silicon (Stillinger-Weber) by lattice dynamics, beside phono3py. Part of `make run`.

    python experiments/silicon_wigner/run.py --out runs/silicon

The same command again only rebuilds the report of a finished calculation.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from jaxmd_thermal.cli import lattice
from jaxmd_thermal.cli.app import guarded
from jaxmd_thermal.cli.progress import announce, duration
from jaxmd_thermal.report.data import conductivity, with_error

CONFIG = Path(__file__).with_name("config.toml")
NAMES = {"wigner": "Wigner: populations and coherences", "lbte": "full Boltzmann equation"}
# phono3py on the force constants of this run, same mesh, tetrahedra, isotopes (README.md).
REFERENCES = [
    ("phono3py 4.9.0, relaxation time with coherences", 417.94),
    ("phono3py 4.9.0, full Boltzmann equation (direct solution)", 477.34),
]


def main(out: Path, config: Path) -> int:
    start = time.perf_counter()
    lattice.run("wigner", {"out": str(out)}, str(config), show=False)
    document = json.loads((out / "results.json").read_text())
    announce("")
    announce(f"Thermal conductivity of silicon (Stillinger-Weber), mesh {document['settings']['mesh'][0]}^3, W/(m K)")
    for entry in document["results"]:
        value = with_error(*conductivity(entry))
        announce(f"  {value:<18} this run, {NAMES[entry['method']]}, {entry['temperature_K']:g} K")
    for name, value in REFERENCES:
        announce(f"  {with_error(value):<18} {name}")
    announce(f"report: {out / 'report.html'}   ({duration(time.perf_counter() - start)})")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/silicon"))
    parser.add_argument("--config", type=Path, default=CONFIG)
    options = parser.parse_args()
    sys.exit(guarded(lambda: main(options.out, options.config)))
