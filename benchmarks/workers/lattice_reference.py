"""The peer: phono3py, and the `nequix` package as ASE calculator for whole compounds."""

from __future__ import annotations

import resource

from benchmarks.workers.protocol import cpu_seconds, pin, serve, timed

pin()

import numpy as np  # noqa: E402
import phono3py  # noqa: E402
from ase.build import bulk  # noqa: E402
from ase.constraints import FixSymmetry  # noqa: E402
from ase.filters import FrechetCellFilter  # noqa: E402
from ase.optimize import FIRE  # noqa: E402
from phonopy.structure.atoms import PhonopyAtoms  # noqa: E402

run: dict = {"parts": {}}


def setup(state: str, task: str, mesh: int = 0, weights: str = "", crystal: dict | None = None, **_) -> dict:
    """`task` is "conductivity" (of the force constants in the folder `state`) or "compound"."""
    if task == "conductivity":
        given = phono3py.load(
            f"{state}/phono3py.yaml", fc2_filename=f"{state}/fc2.hdf5", fc3_filename=f"{state}/fc3.hdf5",
            produce_fc=False, log_level=0,
        )  # fmt: skip
        run["work"] = lambda: _conductivity(given, mesh)
    else:
        assert crystal is not None
        run["work"] = lambda: _compound(weights, crystal)
    return {}


def _conductivity(given, mesh: int):
    given.mesh_numbers = [mesh] * 3
    given.init_phph_interaction()
    given.run_thermal_conductivity(temperatures=[300.0], is_isotope=True)
    return given.thermal_conductivity


def _compound(weights: str, crystal: dict):
    from nequix.calculator import NequixCalculator

    parts, before = {}, cpu_seconds()

    def done(name: str) -> None:
        nonlocal before
        parts[name], before = round(cpu_seconds() - before, 1), cpu_seconds()

    atoms = bulk("NaCl", "rocksalt", a=crystal["a"], cubic=True)
    calculator = run.setdefault("calculator", NequixCalculator(model_path=weights, use_kernel=False))
    atoms.calc = calculator
    atoms.set_constraint(FixSymmetry(atoms))
    with FIRE(FrechetCellFilter(atoms), logfile=None) as optimizer:
        optimizer.run(fmax=0.02, steps=500)
    done("relaxation")
    cell = PhonopyAtoms(numbers=atoms.numbers, cell=atoms.cell.array, scaled_positions=atoms.get_scaled_positions())
    given = phono3py.Phono3py(
        cell, supercell_matrix=[crystal["fc3_supercell"]] * 3, phonon_supercell_matrix=[crystal["supercell"]] * 3,
        primitive_matrix="auto", log_level=0,
    )  # fmt: skip
    given.generate_displacements(distance=0.03)
    given.generate_fc2_displacements(distance=0.03)
    given.phonon_forces = [_forces(calculator, x) for x in given.phonon_supercells_with_displacements]
    given.forces = [_forces(calculator, x) for x in given.supercells_with_displacements]
    given.produce_fc2(symmetrize_fc2=True)
    given.produce_fc3(symmetrize_fc3r=True)
    done("force constants")
    found = _conductivity(given, crystal["mesh"])
    done("phonon-phonon")
    run["parts"] = parts
    return found


def _forces(calculator, cell) -> np.ndarray:
    from ase import Atoms

    atoms = Atoms(numbers=cell.numbers, cell=cell.cell, positions=cell.positions, pbc=True)
    forces = calculator.get_property("forces", atoms)
    return forces - forces.mean(axis=0)


def advance(steps: int) -> dict:
    def work():
        for _ in range(steps):
            run["result"] = run["work"]()

    return timed(work)


def result() -> dict:
    """Mean three-phonon half width, THz, which both programs define alike, and CPU seconds of the parts."""
    x = run["result"]
    return {"linewidth": float(np.average(x.gamma[0, 0].mean(axis=1), weights=x.grid_weights)), "parts": run["parts"]}


def memory() -> dict:
    return {"peak_kB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


if __name__ == "__main__":
    serve({"setup": setup, "advance": advance, "result": result, "memory": memory})
