"""Fixtures shared by all tests. Nothing here changes JAX's configuration: the package must work whatever it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Commands called in a test would keep their programs in the user's cache, and everything compiled after them as well.
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""

MAPS, SOME_MAPS = Path("/proc/self/maps"), 20_000

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forget compiled programs before they use up the memory maps of the process.

    Every program of XLA on CPU holds several. Linux allows a process 65,530; beyond that the compiler dies of a segmentation
    fault, and a worker that runs half of the suite gets there.
    """
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > SOME_MAPS:
        import jax

        jax.clear_caches()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with reference data: $JAXMD_THERMAL_SHARED or ../shared; the test is skipped where there is none."""
    path = Path(os.environ.get("JAXMD_THERMAL_SHARED") or ROOT.parent / "shared")
    if not path.is_dir():
        pytest.skip(f"no reference data at {path} (set JAXMD_THERMAL_SHARED)")
    return path
