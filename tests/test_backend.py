"""The door to JAX: precision is local, a compiler that computes wrong numbers is refused."""

from __future__ import annotations

import os

import numpy as np
import pytest

from jaxmd_thermal import _backend
from jaxmd_thermal.errors import OutputError, ToolchainError


@pytest.fixture(autouse=True)
def forget_earlier_checks(monkeypatch):
    monkeypatch.setattr(_backend, "_checked", set())


def test_probe_passes_here():
    _backend.check_toolchain(force=True)
    assert _backend._checked


@pytest.mark.parametrize("n, dtype", _backend.PROBES)
def test_probe_against_numpy(n, dtype):
    got = _backend.run_probe(n, dtype)
    assert got.dtype == dtype and got.shape == (n,)
    # A few units in the last place of the largest entry.
    np.testing.assert_allclose(got, _backend._expected_probe(n, dtype), atol=20 * np.finfo(dtype).eps * 10, rtol=0)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_one_wrong_row_is_refused(monkeypatch, dtype, compiled):
    # jax 0.10.2 gets as little as the last of 16385 rows wrong: it reads an earlier one.
    original = _backend.run_probe

    def wrong(n, kind, how=True):
        out = original(n, kind, how).copy()
        if kind == dtype and how == compiled:
            out[-1] = out[-17]
        return out

    monkeypatch.setattr(_backend, "run_probe", wrong)
    with pytest.raises(ToolchainError, match=rf"computes wrong numbers: 1 of \d+ .*{dtype}.*pip install") as caught:
        _backend.check_toolchain()
    import jax

    assert jax.__version__ in str(caught.value)
    assert not _backend._checked, "a failed check must not be remembered as passed"


def test_nan_is_refused(monkeypatch):
    monkeypatch.setattr(_backend, "run_probe", lambda n, kind, how=True: np.full(n, np.nan))
    with pytest.raises(ToolchainError, match="16385 of 16385"):
        _backend.check_toolchain()


@pytest.mark.parametrize("package", ["jax", "jaxlib"])
@pytest.mark.parametrize("version", ["0.10.2", "0.11.1"])
def test_broken_releases_are_refused_by_name(monkeypatch, package, version):
    monkeypatch.setattr({"jax": "jax.__version__", "jaxlib": "jaxlib.version.__version__"}[package], version)
    with pytest.raises(ToolchainError, match=rf"{version}.*jax-ml/jax#\d+.*pip install"):
        _backend.check_toolchain()


def test_check_runs_once_per_process(monkeypatch):
    calls = []
    original = _backend.run_probe
    monkeypatch.setattr(_backend, "run_probe", lambda *a: calls.append(a) or original(*a))
    _backend.check_toolchain()
    first = len(calls)
    _backend.check_toolchain()
    assert first == 2 * len(_backend.PROBES) and len(calls) == first


def test_double_precision_is_local():
    import jax
    import jax.numpy as jnp

    before = jnp.asarray(1.0).dtype
    setting = jax.config.jax_enable_x64
    with _backend.double_precision():
        assert jnp.asarray(1.0).dtype == jnp.float64
    assert jnp.asarray(1.0).dtype == before and jax.config.jax_enable_x64 == setting


def test_compilation_cache(monkeypatch, tmp_path):
    import jax

    kept = {}
    monkeypatch.setattr(jax.config, "update", lambda name, value: kept.__setitem__(name, value))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    path = _backend.enable_compilation_cache()
    assert path.is_dir() and path.is_relative_to(tmp_path / "user") and kept["jax_compilation_cache_dir"] == str(path)
    assert jax.__version__ in str(path)

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    assert _backend.enable_compilation_cache() == tmp_path / "mine"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert _backend.enable_compilation_cache() is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file"))
    assert _backend.enable_compilation_cache() is None, "a cache that cannot be written is skipped"


def test_output_directory_that_cannot_be_made(tmp_path):
    assert _backend.writable_directory(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file.*choose another --out"):
        _backend.writable_directory(tmp_path / "file" / "sub")


def test_versions():
    found = _backend.versions()
    assert {"jaxmd_thermal", "python", "jax", "jaxlib", "numpy", "backend", "device"} == set(found)


def test_free_memory_is_not_more_than_there_is():
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < _backend.available_memory() <= whole
