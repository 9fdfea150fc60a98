"""The package as a whole: imports cost nothing and point one way; README, Makefile and pins agree."""

from __future__ import annotations

import ast
import os
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxmd_thermal

# The order of architecture.md: a module imports only what stands before it.
ORDER = [
    "units", "errors", "_backend", "_arrays", "system", "graph", "_cell_search", "neighbors", "potentials", "sites", "_routes",
    "derivatives", "check",
    "dynamics", "observables", "transport", "lattice", "defects", "training", "io", "report", "cli",
]  # fmt: skip
# Functions may reach down to io (a path instead of atoms, output of a run) when they are called, never at import.
DELEGATES_TO_IO = {"system", "derivatives", "check", "dynamics", "observables", "transport", "lattice", "training"}
ONLY_OUTSIDE_WORLD = {"ase", "h5py", "orbax", "matplotlib", "rich", "cyclopts", "pydantic", "pooch"}
# Inside functions: names of elements for messages, figures that a result draws of itself.
ALLOWED_IN_FUNCTIONS = {"ase.data", "matplotlib", "matplotlib.figure", "matplotlib.pyplot"}
OUTSIDE_WORLD = {"io", "report", "cli"}
# Crystallography has one door, and one more for its files.
SYMMETRY_DOORS = {"lattice/symmetry.py", "io/phono3py.py", "io/force_sets.py"}
ONLY_THROUGH_DOORS = {"spglib", "phonopy", "phono3py", "symfc", "seekpath"}

PACKAGE = Path(jaxmd_thermal.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def entry(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def imports(path: Path):
    """(dotted module, 'module' | 'function' | 'typing', line) of every import of a file, relative ones resolved."""
    package = ("jaxmd_thermal", *path.relative_to(PACKAGE).parts[:-1])

    def walk(node, where):
        for child in ast.iter_child_nodes(node):
            here = where
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                here = "function"
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                here = "typing"
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, here, child.lineno
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else ()
                module = ".".join([*base, *((child.module,) if child.module else ())])
                if module == "jaxmd_thermal":
                    for alias in child.names:
                        yield f"jaxmd_thermal.{alias.name}", here, child.lineno
                else:
                    yield module, here, child.lineno
            yield from walk(child, here)

    yield from walk(ast.parse(path.read_text()), "module")


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=60)


def cpu_seconds(command) -> float:
    """Of one process, the best of three tries: what it costs, and not what else the machine does."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    times = []
    for _ in range(3):
        before = used()
        subprocess.run(command, capture_output=True, cwd=PACKAGE.parent)
        times.append(used() - before)
    return min(times)


def test_import_touches_no_device_and_is_quick():
    code = (
        "import time; t = time.process_time(); import jaxmd_thermal; d = time.process_time() - t\n"
        "import sys; heavy = {'jax', 'jaxlib', 'jax_md', 'ase', 'flax', 'h5py', 'matplotlib'} & set(sys.modules)\n"
        "print(d, sorted(heavy))"
    )
    outputs = [run_python(code) for _ in range(3)]
    assert all(o.returncode == 0 for o in outputs), outputs[0].stderr
    assert all(o.stdout.split(maxsplit=1)[1].strip() == "[]" for o in outputs), outputs[0].stdout
    assert min(float(o.stdout.split()[0]) for o in outputs) < 0.5


def test_help_is_quick_and_does_not_import_jax():
    command = [sys.executable, "-m", "jaxmd_thermal.cli", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, timeout=60)
    assert result.returncode == 0, result.stderr
    for verb in ("green-kubo", "hnemd", "md", "check-heat-flux", "models", "resume", "report"):
        assert verb in result.stdout
    assert cpu_seconds(command) < 1.0
    loaded = run_python(
        "import sys\nfrom jaxmd_thermal.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print('LOADED', sorted({'jax', 'jax_md', 'ase', 'h5py', 'matplotlib', 'scipy', 'pooch'} & set(sys.modules)))"
    )
    assert "LOADED []" in loaded.stdout, loaded.stdout + loaded.stderr


def test_public_names():
    wanted = {
        "System",
        "load_potential",
        "save_potential",
        "Calculator",
        "evaluate",
        "simulate",
        "green_kubo",
        "hnemd",
        "green_kubo_from_flux",
    }
    assert wanted | {"check_heat_flux", "potentials", "__version__"} <= set(jaxmd_thermal.__all__)
    for name in jaxmd_thermal.__all__:
        assert getattr(jaxmd_thermal, name) is not None
    assert set(jaxmd_thermal.__all__) <= set(dir(jaxmd_thermal))
    with pytest.raises(AttributeError, match="green_kubo"):
        _ = jaxmd_thermal.greenkubo


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    if path == PACKAGE / "__init__.py":
        assert all(where == "typing" or not m.startswith("jaxmd_thermal.") or where == "function"
                   for m, where, _ in imports(path))  # fmt: skip
        return
    mine = entry(path)
    assert mine in ORDER, f"{mine} has no place in the order of architecture.md"
    for module, where, line in imports(path):
        at = f"{path.relative_to(PACKAGE)}:{line} imports {module}"
        top, _, rest = module.partition(".")
        if top == "jax_md":
            raise AssertionError(f"{at}: only _backend.jax_md_module loads jax_md")
        allowed = where == "typing" or (where == "function" and module in ALLOWED_IN_FUNCTIONS)
        if top in ONLY_OUTSIDE_WORLD and not allowed:
            assert mine in OUTSIDE_WORLD, f"{at}: only io, report and cli may"
        if top in ONLY_THROUGH_DOORS:
            assert path.relative_to(PACKAGE).as_posix() in SYMMETRY_DOORS, f"{at}: only {sorted(SYMMETRY_DOORS)} may"
            assert where != "module", f"{at} at import: import it in the function that needs it"
        if top != "jaxmd_thermal" or not rest or where == "typing":
            continue
        other = (jaxmd_thermal._HOMES.get(rest) or rest).split(".")[0]  # a public name counts as where it is defined
        if other in {"__version__", mine}:
            continue
        assert other in ORDER, f"{at}: not in the order of architecture.md"
        if where == "function" and other == "io" and mine in DELEGATES_TO_IO:
            continue
        assert ORDER.index(other) < ORDER.index(mine), f"{at}, which stands below it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) < 400, "one concept a file, fewer than 400 lines"


def test_broken_jax_releases_are_excluded(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    pins = [r for group in groups for r in group if re.match(r"jax(lib)?(\[\w+\])?[><=!]", r)]
    assert {re.match(r"jax(?:lib)?", p).group() for p in pins} == {"jax", "jaxlib"}
    for pin in pins:
        assert ">=0.10," in pin and "!=0.10.2" in pin and "!=0.11.1" in pin, pin


def test_development_lists_agree(root):
    data = tomllib.loads((root / "pyproject.toml").read_text())
    assert data["dependency-groups"]["dev"] == data["project"]["optional-dependencies"]["dev"]


@pytest.mark.parametrize("tag, jax_version", [("py311", "0.10.1"), ("py312", None)])
def test_constraints(root, tag, jax_version):
    lines = (root / "constraints" / f"{tag}.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all("://" not in line and "@" not in line and "--" not in line for line in lines)
    assert pins["jax"] == pins["jaxlib"] and pins["jax"] not in ("0.10.2", "0.11.1")
    assert jax_version is None or pins["jax"] == jax_version
    data = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for requirement in data["dependencies"] + data["optional-dependencies"]["dev"]:
        assert re.match(r"[\w.-]+", requirement).group() in pins, requirement


def test_readme_makefile_and_ci_agree(root):
    commands = re.search(r"```\w*\n(.*?)```", (root / "README.md").read_text(), re.S).group(1).split("\n")[:2]
    assert commands == ["make run", "make test"]
    targets = set(re.findall(r"^([a-z][\w-]*):", (root / "Makefile").read_text(), re.M))
    assert {c.split()[1] for c in commands} <= targets
    assert {"install", "run", "test", "test-slow", "lint", "bench", "bench-install"} <= targets
    ci = root / ".ci" / "run"
    assert os.access(ci, os.X_OK)
    assert commands[1] in ci.read_text().splitlines()


def test_version_agrees(root):
    assert f"version: {jaxmd_thermal.__version__}" in (root / "CITATION.cff").read_text()
    assert f"## {jaxmd_thermal.__version__}" in (root / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("module", ["commands", "lattice"])
def test_the_compiler_is_quiet_before_jax_is_imported(module):
    """Afterwards its log could not be hidden, and warnings about cached programs would drown the progress of a run."""
    code = (
        f"import sys; import jaxmd_thermal.cli.{module} as m; "
        "m.quiet_compiler = lambda: sys.exit(40 + ('jax' in sys.modules)); m.run('phonons', {}, None)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 40
