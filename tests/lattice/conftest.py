"""Helpers of this folder can be imported by name."""

import sys
from pathlib import Path

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def rule_of_phono3py_3(monkeypatch):
    """Tetrahedra with a vertex at the frequency itself are left out, of isotopes too, as in the version that made the references.

    phono3py 4 counts them, and so do we: conductivities of NaCl on 9^3 are 0.5 % smaller then.
    """
    from jaxmd_thermal.lattice import isotopes, tetrahedron

    monkeypatch.setattr(tetrahedron, "between", lambda low, high: (low > 0) & (high < 0))
    monkeypatch.setattr(isotopes, "EITHER_SIDE", 0.0)
    jax.clear_caches()
    yield
    jax.clear_caches()
