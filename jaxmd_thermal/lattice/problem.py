"""What a thermal conductivity is computed from: arguments checked, memory estimated, grid and buffers laid out. Host."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxmd_thermal._backend import available_memory
from jaxmd_thermal.errors import CapacityError, InputError
from jaxmd_thermal.lattice import isotopes as isotope_scattering
from jaxmd_thermal.lattice import phonons, scattering, strength, symmetry
from jaxmd_thermal.lattice.force_constants import ForceConstants
from jaxmd_thermal.lattice.grid import Grid, Triplets, make_grid, make_triplets

METHODS = ("wigner", "rta", "lbte")
POPULATIONS = ("quantum", "classical")
DTYPES = ("float64", "float32")


class Problem(NamedTuple):
    """All that kappa depends on besides the force constants; made once by `prepare` (host)."""

    grid: Grid
    triplets: Triplets
    work: scattering.Work
    at: phonons.Interpolation
    paths: strength.Paths
    reciprocal: np.ndarray
    masses: np.ndarray
    positions: np.ndarray
    volume: float
    rotations: np.ndarray
    variances: np.ndarray | None
    temperatures: np.ndarray
    options: dict[str, Any]


def prepare(force_constants: ForceConstants, mesh, temperatures=(300.0,), method="wigner", sigma=None, isotopes=True,
            nac=False, boundary=None, populations="quantum", *, block_average=False, dtype="float64",
            memory=None) -> Problem:  # fmt: skip
    """Check the arguments of `thermal_conductivity`, estimate its memory, and lay out grid, triplets and buffers (host)."""
    fc = force_constants
    if fc.fc3 is None or fc.images3 is None:
        raise InputError("these force constants have no third order: the conductivity needs fc3 (give fc3_supercell)")
    if method not in METHODS:
        raise InputError(f"method is {method!r}: expected one of {', '.join(METHODS)}")
    if populations not in POPULATIONS:
        raise InputError(f"populations is {populations!r}: expected one of {', '.join(POPULATIONS)}")
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
    if sigma is not None and not sigma > 0:
        raise InputError(f"sigma is {sigma!r} THz: give a positive width, or None for tetrahedra")
    if boundary is not None and not boundary > 0:
        raise InputError(f"boundary is {boundary!r}: give a positive length in Å, or None for none")
    kelvin = np.atleast_1d(np.asarray(temperatures, float))
    if kelvin.ndim != 1 or not len(kelvin) or not np.all(kelvin > 0) or not np.all(np.isfinite(kelvin)):
        raise InputError(f"temperatures are {temperatures!r}: give positive numbers in K")
    crystal = fc.crystal
    rotations = symmetry.point_group(crystal)
    refuse_too_large(fc, mesh, len(kelvin), memory, method)
    grid = make_grid(crystal.lattice, mesh, rotations)
    triplets = make_triplets(grid, crystal.lattice)
    work = scattering.plan(grid, triplets, strength.transform_bytes(crystal, fc.images3))
    return Problem(
        grid=grid, triplets=triplets, work=work, at=phonons.interpolation(crystal, fc.images2, nac),
        paths=strength.make_paths(fc.images3), reciprocal=crystal.reciprocal, masses=np.asarray(crystal.masses, float),
        positions=np.asarray(crystal.positions), volume=crystal.volume,
        rotations=symmetry.cartesian_point_group(crystal),
        variances=isotope_scattering.mass_variances(crystal.numbers) if isotopes else None, temperatures=kelvin,
        options={"sigma": sigma, "blocks": block_average, "classical": populations == "classical", "boundary": boundary,
                 "dtype": dtype},
    )  # fmt: skip


def refuse_too_large(
    force_constants: ForceConstants, mesh, temperatures: int = 1, memory: float | None = None, method: str = "wigner"
) -> None:
    """Raise CapacityError if the estimate exceeds `memory` (GiB; None: four fifths of what the device has free).
    Values of the force constants are not looked at, so that this can be asked before they are computed."""
    estimated = estimated_bytes(force_constants, mesh, temperatures, method)
    limit = 0.8 * available_memory() if memory is None else memory * 2**30
    if estimated > limit:
        raise CapacityError(
            f"mesh {tuple(int(m) for m in mesh)} needs about {estimated / 2**30:.1f} GiB and {limit / 2**30:.1f} GiB may be "
            "used: take a coarser mesh, or a smaller supercell for fc3"
            + (", or fewer temperatures" if method == "lbte" else "")
        )


def estimated_bytes(force_constants: ForceConstants, mesh, temperatures: int = 1, method: str = "wigner") -> int:
    """Memory of `thermal_conductivity`, upper estimate without symmetry of the grid, to be known before it is used."""
    fc = force_constants
    n = int(np.prod(np.asarray(mesh, float)))
    atoms, supercell = len(fc.crystal.masses), len(fc.images3.primitive_of)
    bands = 3 * atoms
    order = max(1, len(symmetry.point_group(fc.crystal)))
    stars = n // order + 3 * int(n ** (2 / 3)) + 1
    table = min(n * strength.transform_bytes(fc.crystal, fc.images3), scattering.TABLE_BYTES)
    tables = n * 16 * (atoms * supercell + 3 * bands**2 + 2 * temperatures * bands)
    firsts = stars * 16 * 2 * atoms * supercell * bands * 9
    group = scattering.GROUP * scattering.TILE * bands**3 * 40
    triplets = stars * n // 2 * 40
    collisions = 8 * (3 * bands * _stars_at_most(fc, mesh)) ** 2 * (2 * temperatures + 3) if method == "lbte" else 0
    return int(2 * table + tables + firsts + 4 * group + triplets + collisions + 6 * fc.fc3.size * 8)


def _stars_at_most(force_constants: ForceConstants, mesh) -> float:
    """Bound of the number of irreducible points by counting fixed points (Burnside's lemma)."""
    low, middle, high = np.sort(np.asarray(mesh, float))
    rotations = symmetry.point_group(force_constants.crystal)
    operations = np.unique(np.concatenate([rotations, -rotations]), axis=0)
    # Points that an operation leaves in place, modulo reciprocal vectors: all, two planes, four lines, eight points.
    fixed = {0: low * middle * high, 1: 2 * middle * high, 2: 4 * high, 3: 8.0}
    return sum(fixed[int(np.linalg.matrix_rank(o - np.eye(3)))] for o in operations) / len(operations)
