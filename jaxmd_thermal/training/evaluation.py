"""Phonons of a potential against those of a set of DFT forces: errors of one compound, and tables of many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal._backend import forget_programs
from jaxmd_thermal.errors import InputError, ThermalError, UnstableError
from jaxmd_thermal.lattice.commensurate import commensurate_points
from jaxmd_thermal.lattice.density import mesh_phonons
from jaxmd_thermal.lattice.force_constants import ForceConstants, force_constants
from jaxmd_thermal.lattice.phonons import phonons
from jaxmd_thermal.lattice.relax import relax
from jaxmd_thermal.lattice.thermodynamics import CUTOFF, THZ_ENERGY, thermodynamics
from jaxmd_thermal.potentials.base import Potential
from jaxmd_thermal.system import System
from jaxmd_thermal.training.data import compound_of, told_apart
from jaxmd_thermal.units import BOLTZMANN

KELVIN = THZ_ENERGY / BOLTZMANN
"""K per THz, h/k_B."""

MESH = 19
"""Points of the grid along each reciprocal vector, for the largest frequency and the thermodynamic sums."""

SOFT_ACOUSTIC = -35.0
"""K. An acoustic branch at Gamma below this marks a structure as unstable (Loew et al., arXiv:2412.16551)."""

EXTENSIVE = ("free_energy_kJ_mol", "entropy_J_mol_K", "heat_capacity_J_mol_K")
METRICS = ("omega_max_K", *EXTENSIVE)
"""The four metrics of phonon benchmarks."""

FORCE_CONSTANTS = ("force_constants_mae_meV_A2", "force_constants_relative")


@dataclass(frozen=True)
class Harmonic:
    """What the harmonic crystal says, per mole of primitive cells.

    Attributes:
      omega_max_K, omega_min_K: largest and smallest frequency on the grid; imaginary ones negative.
      free_energy_kJ_mol, entropy_J_mol_K, heat_capacity_J_mol_K: modes below 0.01 THz left out.
      stable: no imaginary mode at the q-points that the supercell holds.
    """

    omega_max_K: float
    omega_min_K: float
    free_energy_kJ_mol: float
    entropy_J_mol_K: float
    heat_capacity_J_mol_K: float
    stable: bool


def harmonic(fc: ForceConstants, temperature: float = 300.0, mesh: int = MESH) -> Harmonic:
    """`Harmonic` of force constants, without the non-analytic correction."""
    on_mesh = mesh_phonons(fc, [mesh] * 3, nac=False)
    sums = thermodynamics(on_mesh, temperature, cutoff=CUTOFF)
    return Harmonic(
        omega_max_K=KELVIN * float(on_mesh.frequencies.max()),
        omega_min_K=KELVIN * float(on_mesh.frequencies.min()),
        free_energy_kJ_mol=float(sums.free_energy[0]),
        entropy_J_mol_K=float(sums.entropy[0]),
        heat_capacity_J_mol_K=float(sums.heat_capacity[0]),
        stable=is_stable(fc),
    )


def is_stable(fc: ForceConstants) -> bool:
    """Whether no mode at the commensurate q-points is imaginary; at Gamma acoustic ones may reach `SOFT_ACOUSTIC`.

    Source of the rule: Loew et al., arXiv:2412.16551.
    """
    solved = phonons(fc, commensurate_points(fc.images2.matrix), nac=False, eigenvectors=False)
    lowest = np.array(solved.frequencies)
    gamma = np.flatnonzero(np.all(np.abs(solved.qpoints) < 1e-9, axis=1))[0]
    acoustic = np.argsort(np.abs(lowest[gamma]))[:3]
    soft = lowest[gamma, acoustic].min() * KELVIN < SOFT_ACOUSTIC
    lowest[gamma, acoustic] = 0.0
    return not soft and bool(lowest.min() >= 0.0)


def model_force_constants(
    potential: Potential, reference: ForceConstants, relaxed: str | None = None
) -> ForceConstants:
    """Second-order force constants of a potential by AD, in the cells of a reference.

    Args:
      relaxed: protocol of `relax` that is run first; None: at the reference's geometry.

    Raises:
      InputError: the reference has no geometry, an unknown element.
      UnstableError: forces that are not finite, or (protocol "converged") no minimum.
    """
    geometry = reference.geometry
    if geometry is None:
        raise InputError(
            "the reference has no `geometry`: read it from files of phonopy (ForceConstants.from_phono3py)"
        )
    unit = geometry.unit
    start: Any = System(
        unit.positions @ unit.lattice, np.asarray(unit.lattice), np.asarray(unit.numbers, np.int32), unit.masses
    )
    if relaxed is not None:
        start = relax(potential, start, relaxed)
    return force_constants(
        potential,
        start,
        geometry.supercell_matrix,
        displacement=None,
        primitive=geometry.primitive_matrix,
        symprec=geometry.symprec,
    )


def phonon_errors(
    potential: Potential, path: str | Path, temperature: float = 300.0, *, mesh: int = MESH
) -> dict[str, float]:
    """Errors of a potential's phonons against one phonopy file, at the file's geometry; model minus reference.

    Both sides are symmetrised, without the non-analytic correction, with the masses of the file; frequencies and
    thermodynamics are taken on a Gamma-centred grid and modes below 0.01 THz (imaginary ones included) left out.

    Args:
      potential: a potential.
      path: a file or folder of phonopy (`ForceConstants.from_phono3py`).
      temperature: K.
      mesh: grid points along each reciprocal vector.

    Returns: `omega_max_K` (largest frequency), `free_energy_kJ_mol`, `entropy_J_mol_K`, `heat_capacity_J_mol_K` (per mole of
      primitive cells), `force_constants_mae_meV_A2` (mean over all elements), `force_constants_relative` (Frobenius norm
      of the difference over that of the reference).

    Raises:
      InputError: an unreadable file, or an element that the potential does not know.
    """
    reference = ForceConstants.from_phono3py(path)
    model = model_force_constants(potential, reference)
    return differences(model, reference, harmonic(model, temperature, mesh), harmonic(reference, temperature, mesh))


def differences(model: ForceConstants, reference: ForceConstants, ours: Harmonic, theirs: Harmonic) -> dict[str, float]:
    """The entries of `phonon_errors`, from what both sides say."""
    change = np.asarray(model.fc2) - np.asarray(reference.fc2)
    out = {name: getattr(ours, name) - getattr(theirs, name) for name in METRICS}
    mae = 1e3 * float(np.mean(np.abs(change)))
    return out | dict(zip(FORCE_CONSTANTS, (mae, float(np.linalg.norm(change) / np.linalg.norm(reference.fc2)))))


@dataclass(frozen=True)
class CompoundErrors:
    """One row of a table.

    Attributes:
      name: of the compound.
      functional: of the reference, as far as it is known.
      atoms: of the primitive cell.
      errors: as `phonon_errors`; empty where the evaluation failed.
      model, reference: what both sides say; None for the model where it failed.
      failure: why there are no errors; empty otherwise.
      force_constants: of model and reference, for plots; None where it failed.
    """

    name: str
    functional: str
    atoms: int
    errors: dict[str, float]
    model: Harmonic | None
    reference: Harmonic
    failure: str = ""
    force_constants: tuple[ForceConstants, ForceConstants] | None = None

    @property
    def per_atom(self) -> dict[str, float]:
        """The errors, with the extensive ones per mole of atoms."""
        return {k: v / self.atoms if k in EXTENSIVE else v for k, v in self.errors.items()}

    @property
    def classified(self) -> str:
        """`stable` or `unstable` where both sides agree, else `missed` (an instability) or `invented`."""
        if self.model is None:
            return "failed"
        if self.model.stable == self.reference.stable:
            return "stable" if self.reference.stable else "unstable"
        return "invented" if self.reference.stable else "missed"


@dataclass(frozen=True)
class PhononTable:
    """Errors of many compounds.

    Attributes:
      rows: one a compound.
      temperature: K.
      geometry: "reference", or the protocol of the relaxation.
      mesh: grid points along each reciprocal vector.
    """

    rows: tuple[CompoundErrors, ...]
    temperature: float
    geometry: str
    mesh: int

    def means(self, *, functional: str | None = None, stable: bool = True, per_atom: bool = False) -> dict[str, float]:
        """Means over compounds of absolute errors; NaN without a compound.

        Args:
          functional: only its compounds; None: all of them (mixed functionals tell little about a model of one).
          stable: only compounds whose reference has no imaginary mode: elsewhere the sums leave out different modes.
          per_atom: extensive errors per mole of atoms; otherwise of primitive cells.
        """
        chosen = [r for r in self.rows if r.errors and (functional is None or r.functional == functional)]
        chosen = [r.per_atom if per_atom else r.errors for r in chosen if r.reference.stable or not stable]
        return {
            name: float(np.mean([abs(r[name]) for r in chosen])) if chosen else float("nan")
            for name in (*METRICS, *FORCE_CONSTANTS)
        }

    def classification(self) -> dict[str, int]:
        """How many compounds are `stable`, `unstable`, `missed`, `invented` or `failed` (`CompoundErrors.classified`)."""
        kinds = ("stable", "unstable", "missed", "invented", "failed")
        return {kind: sum(r.classified == kind for r in self.rows) for kind in kinds}

    def relative_to(self, before: PhononTable, **choice: Any) -> float:
        """Mean over the four metrics of this table's mean absolute error over that of `before`; arguments as `means`.

        Both are means over the same compounds: those of which both tables have errors.
        """
        left = self.only_one_has(before)
        kept = (replace(t, rows=tuple(r for r in t.rows if r.name not in left)) for t in (self, before))
        now, then = (table.means(**choice) for table in kept)
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.mean([np.divide(now[name], then[name]) for name in METRICS]))

    def only_one_has(self, other: PhononTable) -> set[str]:
        """Compounds of which one of two tables has errors and the other has none."""
        ours, theirs = ({r.name for r in table.rows if r.errors} for table in (self, other))
        return ours ^ theirs

    def records(self) -> list[dict[str, Any]]:
        """One flat dictionary a compound, for files."""
        out = []
        for r in self.rows:
            record: dict[str, Any] = {
                "compound": r.name, "functional": r.functional, "atoms": r.atoms, "class": r.classified, "failure": r.failure,
            }  # fmt: skip
            record |= r.errors
            record |= {f"{name}_per_atom": r.per_atom[name] for name in EXTENSIVE if r.errors}
            for side, values in (("reference", r.reference), ("model", r.model)):
                record |= {} if values is None else {f"{side}_{k}": v for k, v in vars(values).items()}
            out.append(record)
        return out

    def to_text(self) -> str:
        """A table for the terminal."""
        width = max([14, *(len(r.name) for r in self.rows)])
        head = f"{'compound':{width}s} {'xc':10s} {'atoms':>5s} {'dω K':>8s} {'dF kJ/mol':>10s} {'dS':>8s} {'dCv':>8s} "
        head += f"{'Φ meV/Å²':>9s} {'Φ rel':>7s}  class"
        lines = [head]
        for r in self.rows:
            line = f"{r.name:{width}s} {r.functional:10.10s} {r.atoms:5d} "
            lines.append(line + (self._numbers(r.errors) + f"  {r.classified}" if r.errors else f"failed: {r.failure}"))
        groups = sorted({r.functional for r in self.rows})
        for group in groups:
            line = f"{'mean |error|':{width}s} {group:10.10s} {'':5s} "
            lines.append(line + self._numbers(self.means(functional=group)) + "  stable references")
        lines.append(", ".join(f"{n} {kind}" for kind, n in self.classification().items() if n))
        return "\n".join(lines)

    @staticmethod
    def _numbers(e: Mapping[str, float]) -> str:
        w, f, s, c = (e[name] for name in METRICS)
        mae, relative = (e[name] for name in FORCE_CONSTANTS)
        return f"{w:8.2f} {f:10.3f} {s:8.3f} {c:8.3f} {mae:9.2f} {relative:7.4f}"


def evaluate_phonons(
    potential: Potential,
    paths: Iterable[str | Path] | Mapping[str, str | Path],
    temperature: float = 300.0,
    *,
    relaxed: str | None = None,
    functionals: Mapping[str, str] | None = None,
    mesh: int = MESH,
    progress: Callable[[int, int, str], None] | None = None,
) -> PhononTable:
    """Errors of a potential's phonons against many phonopy files.

    Args:
      potential: a potential.
      paths: files or folders of phonopy; a mapping gives the compounds' names, otherwise `by_compound` does.
      temperature: K.
      relaxed: protocol of `relax`, run first for every compound; None: at the geometry of the files, so that the errors are
        those of the curvature alone.
      functionals: functional of each reference by the name of the compound.
      mesh: grid points along each reciprocal vector.
      progress: called with (compounds done, of how many, the next one's name).

    A compound on which the potential fails (an element that it does not know, no minimum) becomes a row without errors.

    Raises:
      InputError: an unreadable file, an unknown protocol.
    """
    named: dict[str, str | Path]
    named = dict(paths) if isinstance(paths, Mapping) else by_compound(list(paths))  # type: ignore[arg-type]
    rows = []
    if relaxed is not None:
        from jaxmd_thermal.io.relax import check_protocol

        check_protocol(relaxed)
    for done, (name, path) in enumerate(named.items()):
        forget_programs()
        if progress is not None:
            progress(done, len(named), name)
        reference = ForceConstants.from_phono3py(path)
        theirs = harmonic(reference, temperature, mesh)
        functional = (functionals or {}).get(name, "unknown")
        errors: dict[str, float] = {}
        ours, both, failure = None, None, ""
        try:
            model = model_force_constants(potential, reference, relaxed)
            if not np.all(np.isfinite(model.fc2)):
                raise UnstableError("its force constants are not finite")
            ours = harmonic(model, temperature, mesh)
            errors, both = differences(model, reference, ours, theirs), (model, reference)
        except ThermalError as error:
            failure = str(error)
        rows.append(
            CompoundErrors(name, functional, len(reference.crystal.numbers), errors, ours, theirs, failure, both)
        )
    return PhononTable(tuple(rows), temperature, relaxed or "reference", mesh)


def by_compound(paths: Sequence[str | Path]) -> dict[str, str | Path]:
    """{name of the compound: file or folder}, without any of them lost (`told_apart`).

    Raises:
      InputError: files that no name tells apart.
    """
    return dict(zip(told_apart(paths, [compound_of(path) for path in paths]), paths, strict=True))
