"""Relaxation of a crystal before its phonons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase import Atoms


def relax(potential: Any, atoms: Any, protocol: str = "leaderboard") -> Atoms:
    """Cell and positions at the minimum of the energy, by ASE's optimisers; a copy.

    Args:
      potential: a potential, or what `load_potential` takes.
      atoms: ASE `Atoms`, `System`, or the path of a structure file.
      protocol: the tables of kappa differ by it, so state it:
        "leaderboard": one stage, FIRE on ASE's FrechetCellFilter with FixSymmetry, fmax 0.02 eV/Å, 500 steps. It stops short
          of the minimum, so its result has no derivative with respect to the potential.
        "ksrme": diagonal strain only; FIRE first with fixed symmetry, then without (the first stands if the symmetry
          changes), fmax 1e-4 eV/Å, 300 steps each.
        "converged": fixed symmetry, BFGS to 1e-3 eV/Å, then Newton's method with exact second derivatives; refused unless
          forces are below 1e-6 eV/Å and stress below 1e-8 eV/Å^3. The only one whose result has a derivative with respect to
          the potential (`sensitivity.differentiable_force_constants`).

    Returns: ASE `Atoms`; `info["relaxation"]` says the protocol, whether it converged, and whether the space group
      (symprec 1e-5 Å) is that of the start. A relaxation that ran out of steps is returned as the protocols do.

    Raises:
      InputError: an unknown protocol, a structure that is not periodic in three directions.
      UnstableError: "converged" found no minimum; forces that are not finite.

    Source: protocols of Matbench Discovery and of Póta, Ahlawat, Csányi, Simoncelli, arXiv:2408.00755.
    """
    from jaxmd_thermal.io.relax import relaxed

    return relaxed(potential, atoms, protocol)
