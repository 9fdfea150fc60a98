"""Fixtures shared by all tests. Nothing here changes JAX's configuration: the package must work whatever it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jaxmd_thermal._backend import forget_programs

# Commands called in a test would keep their programs in the user's cache, and everything compiled after them as well.
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """One worker compiles more in a run of the suite than a process can hold."""
    yield
    forget_programs()


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
