"""`python -m benchmarks.training`: a phonon fine-tuning step beside a force-training step on the same cell.

Both are gradients by all weights of one structure, float32, in CPU seconds of one process, turn by turn. The goal is that
a step with one column of the Hessian costs at most three steps with forces alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

GOAL = 3.0


def frame(repeats: tuple[int, int, int]):
    """Rattled silicon with labels: their values do not matter for the cost."""
    from ase.build import bulk

    from jaxmd_thermal.training.data import Frame

    atoms = bulk("Si", "diamond", a=5.431, cubic=True).repeat(repeats)
    rng = np.random.default_rng(0)
    n = len(atoms)
    positions = atoms.positions + 0.02 * rng.standard_normal((n, 3))
    columns = np.arange(3 * n)
    return Frame(
        atoms.numbers,
        positions,
        atoms.cell.array,
        forces=rng.standard_normal((n, 3)),
        columns=columns,
        hessian=rng.standard_normal((len(columns), n, 3)),
    )


def prepared(potential: Any, losses: tuple, structure: Any, columns: int, precision: str):
    """A function that computes one gradient and waits for it, and the seconds until the first was there."""
    import jax

    from jaxmd_thermal._backend import double_precision
    from jaxmd_thermal.training.batches import Batches
    from jaxmd_thermal.training.losses import factors_of
    from jaxmd_thermal.training.optimizers import Partition, adamw
    from jaxmd_thermal.training.steps import PRECISIONS, Program

    with double_precision():
        batches = Batches([structure], potential.cutoff, columns=columns)
        parts = batches.parts(batches.steps(0)[0][0], 0, 1)
        partition = Partition.of(potential)
        weights, others = partition.split(potential, PRECISIONS[precision][0])
        program = Program(partition, others, adamw(), precision, 0.999, jax.devices()[:1])
        state, factors = program.start(weights), factors_of(losses, parts, 0)

    def once():
        with double_precision():
            return jax.block_until_ready(program.gradients(state, parts, losses, factors))

    began = time.process_time()
    once()
    return once, time.process_time() - began


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--potential", default="nequix-mp-1")
    parser.add_argument("--repeats", type=int, nargs=3, default=(2, 2, 2), help="of the cubic 8-atom cell of silicon")
    parser.add_argument("--columns", type=int, default=1)
    parser.add_argument("--block", type=int, default=None, help="atoms at a time; 0: all [that of the potential]")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=None, help="append a line of JSON")
    options = parser.parse_args(arguments)

    from jaxmd_thermal import load_potential
    from jaxmd_thermal.training.losses import Forces, HessianColumns
    from jaxmd_thermal.training.networks import with_block

    potential = load_potential(options.potential)
    if options.block is not None:
        potential = with_block(potential, options.block or None)
    structure = frame(tuple(options.repeats))
    forces, phonons = (Forces(20.0, "norm"),), (Forces(20.0, "norm"), HessianColumns(100.0))
    steps, compiled, taken = {}, {}, {"forces": [], "phonons": []}
    for name, losses in (("forces", forces), ("phonons", phonons)):
        steps[name], compiled[name] = prepared(potential, losses, structure, options.columns, options.precision)
    for _ in range(options.rounds):
        for name, step in steps.items():
            began = time.process_time()
            step()
            taken[name].append(time.process_time() - began)
    median = {name: float(np.median(values)) for name, values in taken.items()}
    ratios = np.array(taken["phonons"]) / np.array(taken["forces"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    document = {
        "case": "training", "potential": options.potential, "atoms": structure.n_atoms, "columns": options.columns,
        "block": options.block, "precision": options.precision, "forces_s": median["forces"], "phonons_s": median["phonons"],
        "first_s": compiled, "ratio": float(np.median(ratios)), "ratio_range": [float(ratios.min()), float(ratios.max())],
        "peak_GB": peak, "goal": GOAL,
    }  # fmt: skip
    print(
        f"{structure.n_atoms} atoms, {options.columns} column(s), {options.precision}: forces {median['forces']:.3f} s, phonons "
        f"{median['phonons']:.3f} s, {document['ratio']:.2f} times [{ratios.min():.2f}-{ratios.max():.2f}], goal {GOAL}; "
        f"compiled and run once in {compiled['forces']:.0f} and {compiled['phonons']:.0f} s; peak {peak:.1f} GB (CPU seconds)"
    )
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(json.dumps(document) + "\n")
    return 0 if document["ratio"] <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
