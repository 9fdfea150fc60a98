"""The one place that knows JAX's configuration and its broken releases.

Nothing here runs at import. `check_toolchain` runs once per process at the first computation, because a wrong
compiler must be refused before it produces numbers that look plausible.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from .errors import OutputError, ToolchainError

EXCLUDED_JAX = {
    "0.10.2": "wrong results on CPU (jax-ml/jax#39103)",
    "0.11.1": "wrong eager results on some GPUs (jax-ml/jax#40633)",
}
"""Releases that compute wrong numbers; pyproject.toml excludes the same ones."""

PROBES = ((16385, "float64"), (32769, "float32"))
"""Row counts just above the sizes where jax 0.10.2 switches to the broken fused kernel, with the precision."""

_RELATIVE_TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
# A sum of three products and three squares differs from NumPy's by a few units in the last place (2e-16, 1e-7), times
# the cancellation in the matvec; the miscompiled kernel is wrong in the leading digit.

_REMEDY = (
    'Install another release: pip install "jax>=0.10,!=0.10.2,!=0.11.1" "jaxlib>=0.10,!=0.10.2,!=0.11.1" '
    "(on Python 3.11: jax==0.10.1 jaxlib==0.10.1)."
)

_checked: set[str] = set()


def double_precision():
    """Context manager: 64-bit types inside, whatever `jax_enable_x64` is outside; restores the setting at exit.

    A context manager and not a global switch, so that importing or calling this package never changes the
    precision of the user's own JAX code.
    """
    import jax

    return jax.enable_x64(True)


def versions() -> dict[str, str]:
    """Versions that decide the numbers, for results and reports."""
    import jax
    import jaxlib

    from . import __version__

    return {
        "jaxmd_thermal": __version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "numpy": np.__version__,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


def _probe_input(n: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    box = np.diag([1.0, 1.1, 1.2]) + 0.1 * rng.standard_normal((3, 3))
    return box.astype(dtype), rng.uniform(-1.0, 1.0, (n, 3)).astype(dtype)


def _squared_lengths(box: Any, rows: Any) -> Any:
    import jax
    import jax.numpy as jnp

    # The sum must stay inside the vmap: written outside, XLA lays the product out differently and 0.10.2 is right.
    return jax.vmap(lambda row: jnp.sum((box @ row) ** 2))(rows)


def run_probe(n: int, dtype: str, compiled: bool = True) -> np.ndarray:
    """|box @ r_i|^2 of n random rows on the default device: the shape of a pair-distance loop.

    Returns: (n,) in `dtype`.
    """
    import jax

    box, rows = _probe_input(n, dtype)
    with double_precision(), jax.default_matmul_precision("highest"):
        function = jax.jit(_squared_lengths) if compiled else _squared_lengths
        return np.asarray(function(box, rows))


def _expected_probe(n: int, dtype: str) -> np.ndarray:
    box, rows = (a.astype("float64") for a in _probe_input(n, dtype))
    return ((rows @ box.T) ** 2).sum(-1)


def check_toolchain(force: bool = False) -> None:
    """Refuse a JAX that miscompiles the loop all our energies are made of.

    Runs a jitted and an eager matvec-then-reduce in float64 and float32 on the default backend and compares them with
    NumPy. The result is remembered per process and backend, so the call costs nothing after the first (about 0.3 s).

    Raises:
      ToolchainError: names the jax and jaxlib versions, the number of wrong values and the remedy.
    """
    import jax
    import jaxlib

    backend = jax.default_backend()
    if backend in _checked and not force:
        return
    used = f"jax {jax.__version__} with jaxlib {jaxlib.version.__version__} on {backend}"
    for version in (jax.__version__, jaxlib.version.__version__):
        if version in EXCLUDED_JAX:
            raise ToolchainError(f"{used} is not supported: {EXCLUDED_JAX[version]}. {_REMEDY}")
    for n, dtype in PROBES:
        expected = _expected_probe(n, dtype)
        for how, compiled in (("compiled", True), ("eager", False)):
            got = run_probe(n, dtype, compiled)
            tolerance = _RELATIVE_TOLERANCE[dtype]
            # Relative to the largest entry: single small entries suffer from cancellation, not from the compiler.
            bad = ~(np.abs(got - expected) <= tolerance * expected.max())
            if bad.any():
                raise ToolchainError(
                    f"{used} computes wrong numbers: {int(bad.sum())} of {n} squared distances differ from NumPy by "
                    f"more than {tolerance:g} relative ({how}, {dtype}). {_REMEDY}"
                )
    _checked.add(backend)


def quiet_compiler() -> None:
    """Hide XLA's log. For the command line only, and before JAX is imported; `TF_CPP_MIN_LOG_LEVEL` wins if it is set.

    Programs from the compilation cache are loaded with long warnings that name tuning preferences of the compiler as
    missing features of the CPU; they are harmless and would drown the progress of a run. Errors still raise.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _machine_tag() -> str:
    """Name of this kind of CPU: a home directory shared by different nodes must not share their machine code."""
    features = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        features += next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        pass
    return f"{platform.machine() or 'cpu'}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs on disk, so that the second run of a command starts at once. For the command line only.

    `JAX_COMPILATION_CACHE_DIR` wins if it is set (empty: no cache); otherwise the user's cache directory is used
    (`$XDG_CACHE_HOME` or `~/.cache`). A directory that cannot be written is skipped: the cache is a convenience.

    Returns: the directory, or None without a cache.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        chosen = os.environ["JAX_COMPILATION_CACHE_DIR"]
        if not chosen:
            return None
        path = Path(chosen).expanduser()
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = base / "jaxmd_thermal" / f"jax-{jax.__version__}" / _machine_tag()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(path, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return path


MAPS, SOME_MAPS = Path("/proc/self/maps"), 20_000


def forget_programs() -> None:
    """Let go of compiled programs before they use up the memory maps of the process; nothing happens while there is room.

    Every program of XLA on CPU holds several. Linux allows a process 65,530; beyond that the compiler fails or dies of a
    segmentation fault, which work on many structures of different sizes reaches.
    """
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > SOME_MAPS:
        import jax

        jax.clear_caches()


def use_all_cores() -> None:
    """Make every CPU core a device, so that replicas are shared out over them. For the command line only.

    XLA runs the small kernels of one replica on one core. Has no effect once JAX is in use, or where the user has said
    otherwise (`XLA_FLAGS`, `JAX_NUM_CPU_DEVICES`).
    """
    import jax

    if "device_count" in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:  # the backend is up already
        pass


def writable_directory(path: str | Path) -> Path:
    """Create `path` if needed and make sure that files can be written there.

    Raises:
      OutputError: names the path and the reason.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write_test"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write to '{path}': {error.strerror or error}; choose another --out") from error
    return path


def available_memory() -> float:
    """Bytes that the default device can still allocate; for CPUs the host's free memory, its whole where only that is known."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        with open("/proc/meminfo") as file:
            facts = dict(line.split(":", 1) for line in file)
        free, whole = (1024.0 * int(facts[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
        # With what the cache of files would give back; swap, and what this process has already, are not in it.
        return min(free + 2e9, whole)
    except (OSError, KeyError, ValueError):
        known = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if known else float("inf")
