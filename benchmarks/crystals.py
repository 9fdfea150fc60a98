"""Rattled crystals for the foundation potentials. NumPy only, because every worker imports it.

Each state holds positions and velocities (atoms, 3) in Å and Å/fs, a unit `direction` in configuration space, cell (3, 3) Å,
numbers and masses (atoms,).
"""

from __future__ import annotations

import numpy as np

RATTLE = 0.05
"""Å."""


def silicon(n_atoms: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Diamond structure. Raises ValueError if `n_atoms` is not 8 m^3."""
    repeats = round((n_atoms / 8) ** (1 / 3))
    if 8 * repeats**3 != n_atoms:
        raise ValueError(f"{n_atoms} atoms are not 8 m^3: the nearest size is {8 * repeats**3}")
    fcc = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]])
    return _repeated(np.concatenate([fcc, fcc + 0.25]), [14] * 8, [28.085] * 8, np.eye(3) * 5.43, (repeats,) * 3, seed)


def tin_selenide(repeats: tuple[int, int, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Orthorhombic SnSe (Pnma): both elements on sites (x, 1/4, z)."""
    sites, numbers, masses = [], [], []
    for x, z, number, mass in ((0.118, 0.103, 50, 118.710), (0.855, 0.482, 34, 78.971)):
        sites += [[x, 0.25, z], [0.5 - x, 0.75, z + 0.5], [-x, 0.75, -z], [x + 0.5, 0.25, 0.5 - z]]
        numbers += [number] * 4
        masses += [mass] * 4
    return _repeated(np.array(sites) % 1.0, numbers, masses, np.diag([11.566, 4.182, 4.379]), repeats, seed)


def _repeated(basis, numbers, masses, cell, repeats, seed: int) -> dict[str, np.ndarray]:
    shifts = np.stack(np.meshgrid(*[np.arange(r) for r in repeats], indexing="ij"), axis=-1).reshape(-1, 1, 3)
    positions = ((shifts + basis) @ cell).reshape(-1, 3)
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(positions.shape)
    return {
        "positions": positions + rng.normal(0.0, RATTLE, positions.shape),
        "direction": direction / np.linalg.norm(direction),
        "velocities": rng.normal(0.0, 4e-3, positions.shape),
        "cell": cell * np.array(repeats)[:, None],
        "numbers": np.tile(np.array(numbers, np.int32), len(shifts)),
        "masses": np.tile(np.array(masses, float), len(shifts)),
    }
