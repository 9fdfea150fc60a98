"""`python -m benchmarks.run`: measure, print, and append to benchmarks/results.jsonl."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from benchmarks.cases import CASES, Bench
from benchmarks.harness import RESULTS, Report, cores, goals_missed
from jaxmd_thermal.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(CASES), help="this case only; may be repeated")
    parser.add_argument("--quick", action="store_true", help="few short rounds of small systems; nothing is appended")
    parser.add_argument("--rounds", type=int, help="measured rounds (default 7, quick 3)")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of atoms, 4 m^3 (default 864 4000 32000)")
    parser.add_argument("--core", type=int, default=cores()[-1], help="core that all programs take turns on")
    parser.add_argument("--out", type=Path, help=f"file to append to (default {RESULTS.name}, quick: none)")
    options = parser.parse_args(arguments)

    report = Report(options.out or (None if options.quick else RESULTS))
    bench = Bench(
        report=report,
        core=options.core,
        rounds=options.rounds or (3 if options.quick else 7),
        sizes=tuple(options.sizes or ((864,) if options.quick else (864, 4000, 32000))),
        scale=0.1 if options.quick else 1.0,
    )
    if options.quick:
        bench.growth_sizes, bench.foundation_sizes = (864, 4000), (64,)
    print(f"{report.machine}; core {options.core}; median [min-max] of {bench.rounds} rounds, CPU seconds")
    skipped: list[str] = []
    try:
        for name in options.only or CASES:
            started = time.perf_counter()
            print(f"\n{name}: {(CASES[name].__doc__ or '').strip().splitlines()[0]}")
            try:
                CASES[name](bench)
            except (
                InputError,
                FileNotFoundError,
            ) as error:  # weights or peers that are not there: the others still run
                print(f"skipped: {error}")
                skipped.append(name)
            print(f"({time.perf_counter() - started:.0f} s)")
    finally:
        shutil.rmtree(bench.folder, ignore_errors=True)
    missed = goals_missed(report.results)
    judged = [r for r in report.results if r.met is not None]
    print(f"\n{len(judged) - len(missed)} of {len(judged)} goals met")
    for result in missed:
        print(f"  missed: {result.line()}")
    if skipped:
        print(f"skipped: {', '.join(skipped)}")
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
