"""Thermal conductivity of a crystal from its force constants: the driver, and the pure function that is differentiated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal import _backend
from jaxmd_thermal._arrays import buffer_length
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice import boltzmann, phonons, scattering, strength, wigner
from jaxmd_thermal.lattice import isotopes as isotope_scattering
from jaxmd_thermal.lattice.crystal import Crystal
from jaxmd_thermal.lattice.force_constants import ForceConstants
from jaxmd_thermal.lattice.problem import Problem, prepare

BATCH = 64


@dataclass(frozen=True, eq=False)
class ThermalConductivity:
    """Thermal conductivity of the phonon gas.

    Attributes:
      temperatures: (T,) K.
      kappa: (T, 3, 3) W/(m K): populations and coherences with "wigner", populations alone with "rta", populations beyond the
        relaxation-time approximation with "lbte".
      kappa_populations, kappa_coherences: (T, 3, 3) W/(m K), in the relaxation-time approximation with every method: with
        "lbte" their ratio to `kappa` is what the approximation misses, and `kappa` + `kappa_coherences` holds everything.
      qpoints: (k, 3) irreducible points in fractions of the reciprocal vectors; weights: (k,) size of their stars.
      frequencies: (k, bands) THz; heat_capacity: (T, k, bands) eV/K; group_speed: (k, bands) THz Å (100 m/s).
      velocity_operator: (k, 3, bands, bands) complex, THz Å; group_velocity: (k, bands, 3) THz Å, in degenerate blocks as in
        `Phonons.group_velocities`.
      gamma: (T, k, bands) THz, half widths by three-phonon processes, as phono3py has it; gamma_normal, gamma_umklapp: its
        parts without and with a reciprocal vector. gamma_isotope, gamma_boundary: (k, bands) THz or None.
      gamma_total: (T, k, bands) THz, half widths of all processes (1/tau = 4 pi gamma_total).
      mode_kappa: (T, k, bands) W/(m K), mean over directions, star weights included: sum/sum(weights) is kappa's mean. With
        "lbte" a mode that others drag against the gradient may count negative.
      crystal: the primitive cell.
      invalid: why kappa must not be used (imaginary modes); empty if nothing speaks against it.
      settings, versions: what it was computed with.
    """

    temperatures: np.ndarray
    kappa: np.ndarray
    kappa_populations: np.ndarray
    kappa_coherences: np.ndarray
    qpoints: np.ndarray
    weights: np.ndarray
    frequencies: np.ndarray
    heat_capacity: np.ndarray
    group_speed: np.ndarray
    velocity_operator: np.ndarray
    group_velocity: np.ndarray
    gamma: np.ndarray
    gamma_normal: np.ndarray
    gamma_umklapp: np.ndarray
    gamma_isotope: np.ndarray | None
    gamma_boundary: np.ndarray | None
    gamma_total: np.ndarray
    mode_kappa: np.ndarray
    crystal: Crystal
    invalid: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write a file with phono3py's names, shapes and units of data (`kappa-m*.hdf5`), which its tools read.

        As in phono3py, `gamma` holds the three-phonon processes alone, six components are xx, yy, zz, yz, xz, xy, and
        `mode_kappa`, star weights included, sums to `kappa` times the number of grid points. With "wigner" it includes the
        coherences, and `kappa_intra` and `kappa_inter` are the two parts; with "lbte" there is `mode_kappa_RTA` instead.

        Args:
          path: of the file; in a folder that exists the file is named after the mesh.

        Returns: path of the file.
        """
        from jaxmd_thermal.io.kappa_hdf5 import write_kappa

        return write_kappa(self, path)


def thermal_conductivity(
    force_constants: ForceConstants,
    mesh,
    temperatures=(300.0,),
    method: str = "wigner",
    sigma: float | None = None,
    isotopes: bool = True,
    nac: bool = False,
    boundary: float | None = None,
    populations: str = "quantum",
    *,
    block_average: bool = False,
    dtype: str = "float64",
    memory: float | None = None,
) -> ThermalConductivity:
    """Thermal conductivity: relaxation-time approximation with or without coherences between bands, or Boltzmann equation.

    Simoncelli, Marzari and Mauri, Phys. Rev. X 12, 041011 (2022), equation (48); three-phonon linewidths of Togo, Chaput
    and Tanaka, Phys. Rev. B 91, 094306 (2015); full solution of Chaput, Phys. Rev. Lett. 110, 265506 (2013).

    Args:
      force_constants: second and third order.
      mesh: 3 whole numbers, q-points along the reciprocal vectors of the primitive cell.
      temperatures: K.
      method: "wigner" (populations and coherences), "rta" (populations: group velocities, heat capacities, lifetimes) or
        "lbte" (populations that solve the linearised Boltzmann equation; isotopes and boundaries stand on the diagonal alone).
      sigma: THz, Gaussians of this width; None: linear tetrahedra.
      isotopes: scattering by the natural isotopes.
      nac: non-analytic correction from the Born charges of the crystal.
      boundary: Å, mean free path of boundary scattering; None: none.
      populations: "quantum" (Bose-Einstein) or "classical" (kT/hf, heat capacity k_B: what classical dynamics has).
      block_average: average |V|^2 over degenerate modes. Tetrahedron linewidths depend on the arbitrary choice of
        eigenvectors inside degenerate blocks (0.1 to 0.3 % of kappa); with this they do not.
      dtype: of the strengths |V|^2, "float64" or "float32"; all the rest is in double precision. Single precision changed
        kappa of Si, NaCl and wurtzite AlN by less than 1e-6, any linewidth by less than 1e-5, and took 0.5 to 0.9 of the time.
      memory: GiB that may be used; None: four fifths of what the device has free.

    Raises:
      InputError: force constants without third order, a mesh, temperature or option out of range.
      CapacityError: the estimate exceeds `memory`; nothing has been computed then.
      UnstableError: the Boltzmann equation could not be solved.
    """
    with _backend.double_precision():
        _backend.check_toolchain()
        p = prepare(force_constants, mesh, temperatures, method, sigma, isotopes, nac, boundary, populations,
                    block_average=block_average, dtype=dtype, memory=memory)  # fmt: skip
        ir = p.grid.irreducible
        solved = phonons.phonons(force_constants, p.grid.qpoints, nac)
        at_ir = phonons.phonons(force_constants, p.grid.qpoints[ir], nac, velocities=True)
        modes = scattering.Modes(
            jnp.asarray(p.grid.qpoints), jnp.asarray(solved.frequencies), jnp.asarray(solved.eigenvectors)
        )
        fc3, o = jnp.asarray(force_constants.fc3), p.options
        unfolding = None
        if method == "lbte":
            unfolding = jax.tree.map(jnp.asarray, boltzmann.unfold(p.grid, p.reciprocal))
        three, _ = _three_phonon(fc3, modes, p, scattering.solved, unfolding=unfolding)
        gamma = jnp.sum(three.gamma, 0)
        isotope = None
        if p.variances is not None:
            isotope, _ = _isotopes(modes, p, isotope_scattering.solved_isotope_linewidths)
        f, velocity = jnp.asarray(at_ir.frequencies), jnp.asarray(at_ir.velocity_operator)
        speed = wigner.speeds(velocity, f)
        wall = None if boundary is None else isotope_scattering.boundary_linewidths(speed, boundary)
        total = gamma + sum(x for x in (isotope, wall) if x is not None)
        parts = _finish(f, velocity, total, p)
        extra = None
        if unfolding is not None:
            extra = _in_scattering(three.collisions, total, f, velocity, unfolding, p)
        heat = np.swapaxes(np.asarray(wigner.heat_capacity(f, jnp.asarray(p.temperatures), o["classical"])), 0, 1)
    populations_, coherences, mode_kappa = (np.asarray(x) for x in parts)
    kappa = populations_
    if method == "wigner":
        kappa = kappa + coherences
    else:
        with _backend.double_precision():
            mode_kappa = np.asarray(_finish(f, velocity, total, p, coherences=False).modes)
    if extra is not None:
        kappa, mode_kappa = kappa + extra[0], mode_kappa + extra[1]
    return ThermalConductivity(
        temperatures=p.temperatures, kappa=kappa,
        kappa_populations=populations_, kappa_coherences=coherences, qpoints=p.grid.qpoints[ir], weights=p.grid.weights,
        frequencies=np.asarray(f), heat_capacity=heat, group_speed=np.asarray(speed),
        velocity_operator=at_ir.velocity_operator, group_velocity=at_ir.group_velocities, gamma=np.asarray(gamma),
        gamma_normal=np.asarray(three.gamma[0]), gamma_umklapp=np.asarray(three.gamma[1]),
        gamma_isotope=None if isotope is None else np.asarray(isotope),
        gamma_boundary=None if wall is None else np.asarray(wall), gamma_total=np.asarray(total),
        mode_kappa=mode_kappa, crystal=force_constants.crystal, invalid=solved.describe_imaginary(),
        settings={
            "mesh": [int(m) for m in p.grid.mesh], "method": method, "sigma_THz": sigma, "isotopes": isotopes, "nac": nac,
            "boundary_A": boundary, "populations": populations, "block_average": block_average, "dtype": dtype,
        },
        versions=_backend.versions(),
    )  # fmt: skip


def _in_scattering(collisions, gamma, f, velocity, unfolding, p: Problem) -> tuple[np.ndarray, np.ndarray]:
    """What the full solution adds to the populations, (T, 3, 3), and to their modes, (T, k, bands)."""
    added, by_mode = [], []
    for t, kelvin in enumerate(p.temperatures):
        found = boltzmann.solve(
            collisions[:, :, t], gamma[t], f, velocity, jnp.asarray(p.grid.weights), p.volume, kelvin, unfolding.kept,
            jnp.asarray(p.rotations), classical=p.options["classical"],
        )  # fmt: skip
        boltzmann.check(found, kelvin)
        added.append(np.asarray(found.added))
        by_mode.append(np.asarray(found.modes))
    return np.stack(added), np.stack(by_mode)


class Transport(NamedTuple):
    """What `transport_function` gives: kappa (T, 3, 3) W/(m K), its parts by populations and by coherences, frequencies
    (k, bands) THz of the irreducible points, gamma and gamma_total (T, k, bands) THz, half widths by three-phonon and by all
    processes, and heat_capacity (T, k, bands) eV/K. Conductivities and linewidths are NaN where the buffers are too small, or
    a mode is imaginary."""

    kappa: Any
    populations: Any
    coherences: Any
    frequencies: Any
    gamma: Any
    gamma_total: Any
    heat_capacity: Any


def transport_function(
    force_constants: ForceConstants, mesh, temperatures=(300.0,), method: str = "wigner", **options
) -> Callable[..., Transport]:
    """Conductivity, frequencies, linewidths and heat capacities as pure functions of the force constants, for `jax.grad` and
    `jax.jit`, under `jax.enable_x64`. One compiled program serves all functions of the same shapes and options.

    Arguments as in `thermal_conductivity`, but |V|^2 is averaged over degenerate modes unless `block_average=False`:
    derivatives need a result that does not depend on the choice of eigenvectors. The derivative is that under changes which
    keep the crystal's symmetry (`eigen.eigh`).

    Returns: function of fc2 (P, S, 3, 3) eV/Å^2 and fc3 (P, S, S, 3, 3, 3) eV/Å^3. Its buffers are filled by the force
      constants given here; where those of a call need larger ones kappa is NaN (make a new function then), as it is where
      they have an imaginary mode. Two more arguments, `lattice` (3, 3) Å and `positions` (P, 3) fractions of the primitive
      cell, make it a function of the cell as well (`sensitivity.differentiable_force_constants` gives all four); not with
      `nac`.
    """
    if method == "lbte":
        raise InputError(
            'method is "lbte": the derivative is that of the relaxation-time approximation; give "wigner" or "rta"'
        )
    options.setdefault("block_average", True)
    with _backend.double_precision():
        _backend.check_toolchain()
        p = prepare(force_constants, mesh, temperatures, method, **options)
        capacity = iso_capacity = 0
        if p.options["sigma"] is None:
            modes = _modes(jnp.asarray(force_constants.fc2), p)
            _, capacity = _three_phonon(jnp.asarray(force_constants.fc3), modes, p, scattering.solved_linewidths)
            if p.variances is not None:
                _, iso_capacity = _isotopes(modes, p, isotope_scattering.solved_isotope_linewidths)
        arrays = jax.tree.map(jnp.asarray, p._replace(triplets=None, options=None))
    return partial(_transport, arrays, capacity=buffer_length(1.2 * capacity), iso_capacity=buffer_length(1.2 * iso_capacity),
                   with_coherences=method == "wigner", options=tuple(p.options.items()))  # fmt: skip


def kappa_function(
    force_constants: ForceConstants, mesh, temperatures=(300.0,), method: str = "wigner", **options
) -> Callable:
    """`transport_function` for kappa (T, 3, 3) W/(m K) alone."""
    transport = transport_function(force_constants, mesh, temperatures, method, **options)
    return lambda *constants: transport(*constants).kappa


def _modes(fc2, p: Problem) -> scattering.Modes:
    at = jax.tree.map(jnp.asarray, p.at)
    q = jnp.asarray(p.grid.qpoints)
    f, e = jax.lax.map(lambda x: phonons.modes(fc2, at, x), q @ p.reciprocal, batch_size=min(BATCH, len(q)))
    return scattering.Modes(q, f, e)


def _three_phonon(fc3, modes, p: Problem, function, **more):
    return function(fc3, modes, p.paths, jnp.asarray(p.masses), jnp.asarray(p.positions), p.work,
                    jnp.asarray(p.temperatures), sigma=p.options["sigma"], blocks=p.options["blocks"],
                    classical=p.options["classical"], dtype=p.options["dtype"], **more)  # fmt: skip


def _isotopes(modes, p: Problem, function, **more):
    return function(modes, jnp.asarray(p.variances), jnp.asarray(p.grid.irreducible), jnp.asarray(p.work.plus),
                    p.work.corners, sigma=p.options["sigma"], blocks=p.options["blocks"], **more)  # fmt: skip


def _moved(p: Problem, lattice, positions) -> Problem:
    """The problem in a cell that has relaxed by a little, with the same symmetry: (3, 3) Å and (P, 3) fractional.

    Frequencies at given fractions of the reciprocal vectors, and |V|^2, do not depend on them; velocities and the volume do.
    """
    if p.at.dipoles is not None:
        raise InputError(
            "the derivative with respect to the cell leaves out how the non-analytic correction changes: take nac=False, or "
            "do not give `lattice` and `positions`"
        )
    shift = positions - p.positions
    of = jnp.argsort(p.at.groups.reshape(-1)) // p.at.groups.shape[1]
    fractions = p.at.vectors @ p.reciprocal.T + (shift[of][:, None] - shift[None])[:, :, None]
    return p._replace(at=p.at._replace(vectors=fractions @ lattice, reciprocal=jnp.linalg.inv(lattice).T),
                      reciprocal=jnp.linalg.inv(lattice).T, volume=jnp.abs(jnp.linalg.det(lattice)))  # fmt: skip


@partial(jax.jit, static_argnames=("capacity", "iso_capacity", "with_coherences", "options"))
def _transport(p: Problem, fc2, fc3, lattice=None, positions=None, *, capacity, iso_capacity, with_coherences, options):
    p = p._replace(options=dict(options))
    modes = _modes(fc2, p)
    result = _three_phonon(fc3, modes, p, scattering.linewidths, capacity=capacity)
    ir = jnp.asarray(p.grid.irreducible)
    here = p if lattice is None else _moved(p, lattice, positions)
    at = jax.tree.map(jnp.asarray, here.at)
    f, _, velocity = jax.lax.map(
        lambda x: phonons.velocities(fc2, at, x), modes.qpoints[ir] @ here.reciprocal, batch_size=min(BATCH, len(ir))
    )
    gamma = total = jnp.sum(result.gamma, 0)
    fits = (result.needed <= capacity) & jnp.all(modes.frequencies[1:] >= 0)  # the first point is Gamma
    fits &= jnp.all(modes.frequencies[0] >= phonons.lowest_real(modes.frequencies[0], True, jnp))
    if p.variances is not None:
        isotope, iso_needed = _isotopes(modes, p, isotope_scattering.isotope_linewidths, capacity=iso_capacity)
        total = total + isotope
        fits &= iso_needed <= iso_capacity
    if p.options["boundary"] is not None:
        total = total + isotope_scattering.boundary_linewidths(wigner.speeds(velocity, f), p.options["boundary"])
    parts = _finish(f, velocity, total, here)
    kappa = parts.populations + parts.coherences if with_coherences else parts.populations
    heat = jnp.swapaxes(wigner.heat_capacity(f, p.temperatures, p.options["classical"]), 0, 1)
    found = [jnp.where(fits, x, jnp.nan) for x in (kappa, parts.populations, parts.coherences)]
    widths = [jnp.where(fits, x, jnp.nan) for x in (gamma, total)]
    return Transport(*found, f, *widths, heat)


def _finish(f, velocity, gamma, p: Problem, coherences: bool = True) -> wigner.Conductivity:
    squares = wigner.squared_velocity(velocity, p.rotations)
    if not coherences:
        near = jnp.abs(f[:, :, None] - f[:, None, :]) < strength.CUTOFF
        squares = jnp.where(near[..., None, None], squares, 0.0)
    return wigner.conductivity(f, squares, gamma, jnp.asarray(p.grid.weights), p.volume, jnp.asarray(p.temperatures),
                               p.options["classical"])  # fmt: skip
