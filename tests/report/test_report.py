"""The report: one file, everything in it, honest about what is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import h5py
import numpy as np
import pytest
from ase.build import bulk

from jaxmd_thermal.errors import InputError, OutputError
from jaxmd_thermal.io.ase import write_structure
from jaxmd_thermal.report import build_report
from jaxmd_thermal.report.comparison import comparable
from jaxmd_thermal.report.curves import traces_of
from jaxmd_thermal.report.data import load_run, with_error, write_flux, write_traces
from jaxmd_thermal.report.figures import thin
from jaxmd_thermal.report.page import command_line

VOID = {"meta", "br", "link", "img", "input", "hr", "use"}


class Balance(HTMLParser):
    """Collects tags, ids, references to outside resources, and checks that elements close."""

    def __init__(self):
        super().__init__()
        self.stack, self.ids, self.outside, self.tags, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.outside.append(value)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        while self.stack and self.stack[-1] in ("tr", "td", "th", "p") and self.stack[-1] != tag:
            self.stack.pop()
        assert self.stack and self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def entry(method="green-kubo", value=0.36, error=0.02, converged=True, text="converged: sigma/kappa = 6 %", **details):
    return {
        "method": method,
        "temperature_K": 50.0,
        "thermal_conductivity_W_mK": {
            "tensor": np.diag([value] * 3).tolist(),
            "tensor_stderr": np.full((3, 3), error).tolist(),
            "isotropic": value,
            "stderr": error,
        },
        "verdict": {"converged": converged, "text": text},
        "details": details,
    }


def write_run(out, results=None, frames=400, replicas=3):
    out.mkdir(parents=True, exist_ok=True)
    atoms = bulk("Ar", "fcc", a=5.3737, cubic=True).repeat(2)
    estimators = {"cepstral": {"value": 0.36, "stderr": 0.02}, "direct": {"value": 0.33, "stderr": 0.05}}
    results = [entry(estimator="cepstral", estimators=estimators)] if results is None else results
    settings = {"structure": "argon", "potential": "lj-argon-gk", "temperature": 50.0, "steps": frames, "timestep": 4.0}
    document = {
        "results": results, "n_atoms": len(atoms), "volume_A3": atoms.get_volume(), "settings": settings,
        "versions": {"jax": "0.10.1"}, "seed": 7,
    }  # fmt: skip
    (out / "results.json").write_text(json.dumps(document))
    (out / "command.json").write_text(
        json.dumps({"verb": "green-kubo", "settings": settings, "line": command_line("green-kubo", settings)})
    )
    write_structure(out / "structure.extxyz", atoms)
    rng = np.random.default_rng(0)
    with h5py.File(out / "run.h5", "w") as file:
        file["time"] = 4.0 * np.arange(frames)
        file["temperature"] = 50 + rng.standard_normal((frames, replicas))
        file["conserved_energy"] = 1e-6 * rng.standard_normal((frames, replicas))
        file["flux/potential"] = rng.standard_normal((frames, replicas, 3))
        file["flux/convective"] = 0.1 * rng.standard_normal((frames, replicas, 3))
        file["flux/time"] = 4.0 * np.arange(frames)
        file.attrs.update(volume_A3=atoms.get_volume(), temperature_K=50.0, timestep_fs=4.0, n_atoms=len(atoms))
        file.attrs["settings"] = json.dumps(settings)
    return document


def parse(out):
    page = (out / "report.html").read_text()
    parser = Balance()
    parser.feed(page)
    assert not parser.stack
    return page, parser, " ".join(parser.text)


def test_a_complete_report(tmp_path):
    write_run(tmp_path)
    assert build_report(tmp_path) == tmp_path / "report.html"
    page, parser, text = parse(tmp_path)
    # Value, error, verdict, method before anything else.
    top = text[: text.index("Simulated cell")]
    for wanted in ("0.360 ± 0.020", "W/(m K)", "✓ converged", "Green-Kubo", "50 K", "sigma/kappa = 6 %"):
        assert wanted in top
    for wanted in ("Conductivity", "Can it be trusted?", "Autocorrelation", "Spectrum", "Tensor", "Temperature",
                   "Energy conservation", "Ar32", "1.710 g cm⁻³", "lj-argon-gk", "0.10.1", "argon"):  # fmt: skip
        assert wanted in text, wanted
    assert parser.tags.count("svg") >= 7
    assert parser.outside == [] and "<script" not in page and "@import" not in page
    assert not re.search(r"(src|href)=\"https?:", page) and "url(http" not in page
    assert len(parser.ids) == len(set(parser.ids)), "ids of different figures collide"
    for reference in re.findall(r'(?:href="#|url\(#)([^")]+)', page):
        assert reference in parser.ids
    assert "viewport" in page and "@media print" in page
    assert "Left out" not in text


def test_not_converged_says_so_and_what_to_type(tmp_path):
    text = "not converged: sigma/kappa = 31 %; about 4x longer needed, about 2.1 h here"
    write_run(tmp_path, [entry(error=0.11, converged=False, text=text)])
    build_report(tmp_path)
    page, _, shown = parse(tmp_path)
    assert "! not converged" in shown and "about 2.1 h here" in shown and "31 % standard error" in shown
    assert "card bad" in page
    steps = int(re.search(r"--steps (\d+)", shown).group(1))
    assert steps > 4 * 400 and "-long" in shown, "the suggested run is longer, in another folder"


@pytest.mark.parametrize("other, word", [(0.40, "agree"), (0.60, "DISAGREE")])
def test_two_methods_are_compared(tmp_path, other, word):
    write_run(tmp_path, [entry(), entry("hnemd", other, 0.02)])
    build_report(tmp_path)
    page, _, text = parse(tmp_path)
    sigmas = abs(other - 0.36) / np.hypot(0.02, 0.02)
    assert f"Green-Kubo and HNEMD {word}: they differ by {sigmas:.1f} combined standard errors." in text
    assert ("contradict" in text) == (word == "DISAGREE") == ('class="lead alarm"' in page)


ANISOTROPIC = {"tensor": np.diag([0.571, 1.464, 1.321]).tolist(), "tensor_stderr": np.diag([0.04, 0.08, 0.07]).tolist(),
               "isotropic": 1.119, "stderr": 0.05}  # fmt: skip


def driven_along_x(value=0.55, error=0.03, direction=(1.0, 0.0, 0.0)):
    one = entry("hnemd", value, error, directions=[list(direction)])
    one["thermal_conductivity_W_mK"]["tensor"] = [[value, None, None]] + [[0.0, None, None]] * 2
    return one


def test_a_force_along_x_is_compared_with_the_same_component(tmp_path):
    """kappa_xx of both: 0.571 and 0.55; one third of the trace would be 11 errors away."""
    equilibrium = entry() | {"thermal_conductivity_W_mK": ANISOTROPIC}
    write_run(tmp_path, [equilibrium, driven_along_x()])
    build_report(tmp_path)
    text = parse(tmp_path)[2]
    sigmas = (0.571 - 0.55) / np.hypot(0.04, 0.03)
    assert f"Green-Kubo and HNEMD agree along x: they differ by {sigmas:.1f} combined standard errors." in text


def test_what_two_results_have_in_common():
    equilibrium = {"thermal_conductivity_W_mK": ANISOTROPIC}
    x, y, name = comparable(equilibrium, driven_along_x(direction=(0.0, 0.6, 0.8)))
    assert x[0] == pytest.approx(0.36 * 1.464 + 0.64 * 1.321) and x[1] == pytest.approx(
        np.hypot(0.36 * 0.08, 0.64 * 0.07)
    )
    assert y == (0.55, 0.03) and name == "along [0.0, 0.6, 0.8]"
    assert comparable(equilibrium, equilibrium) == ((1.119, 0.05), (1.119, 0.05), "")
    plane = {
        "tensor": [[0.8, 0.0, None], [0.0, 1.4, None], [None] * 3],
        "tensor_stderr": None,
        "isotropic": 1.1,
        "stderr": 0.1,
    }
    slab = {"details": {"directions": [[1, 0, 0], [0, 1, 0]]}, "thermal_conductivity_W_mK": plane}
    assert comparable(slab, driven_along_x()) == ((0.8, None), (0.55, 0.03), "along x")
    # A tensor that holds one column only has no mean over the plane.
    assert comparable(slab, driven_along_x(direction=(0.0, 0.0, 1.0))) is None


def test_the_table_beside_lattice_dynamics_names_the_component(tmp_path):
    quantum = entry("rta", 1.2, None) | {"details": {"settings": {"mesh": [3, 3, 3]}}}
    equilibrium = entry() | {"thermal_conductivity_W_mK": ANISOTROPIC}
    write_run(tmp_path, [quantum, equilibrium, driven_along_x(0.6)])
    build_report(tmp_path)
    text = parse(tmp_path)[2]
    assert "HNEMD, classical, along x" in text and "+0.6 σ (+5 %), along x" in text and "+1.6 σ (+7 %)" in text


@pytest.mark.parametrize("missing", ["run.h5", "structure.extxyz", "command.json"])
def test_missing_pieces_are_left_out(tmp_path, missing):
    write_run(tmp_path)
    (tmp_path / missing).unlink()
    build_report(tmp_path)
    _, _, text = parse(tmp_path)
    assert "0.360 ± 0.020" in text
    if missing == "run.h5":
        assert "There is no run.h5 here" in text and "Temperature" not in text and "Can it be trusted?" in text


@pytest.mark.parametrize("damage", ["run.h5", "structure.extxyz", "command.json"])
def test_damaged_pieces_are_named(tmp_path, damage):
    write_run(tmp_path)
    (tmp_path / damage).write_bytes(b"garbage")
    build_report(tmp_path)
    _, _, text = parse(tmp_path)
    assert "0.360 ± 0.020" in text
    if damage != "command.json":
        assert "Left out" in text and damage in text


def test_null_values_of_the_schema(tmp_path):
    nothing = entry()
    nothing["thermal_conductivity_W_mK"] = {
        "tensor": [[None] * 3] * 3,
        "tensor_stderr": None,
        "isotropic": None,
        "stderr": None,
    }
    nothing["verdict"] = {"converged": False, "text": "not converged: kappa = -0.1 W/(m K) is not positive"}
    write_run(tmp_path, [nothing])
    build_report(tmp_path)
    _, _, text = parse(tmp_path)
    assert "not available" in text and "no error bar" in text and "nan" not in text.lower().split()


def test_names_are_escaped(tmp_path):
    document = write_run(tmp_path)
    document["settings"]["potential"] = "<script>alert(1)</script>"
    (tmp_path / "results.json").write_text(json.dumps(document))
    build_report(tmp_path)
    page, _, _ = parse(tmp_path)
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_sub_runs_share_a_report(tmp_path):
    for method in ("green-kubo", "hnemd"):
        write_run(tmp_path / method)
    driven = entry("hnemd", 0.4, running_frames=list(range(10, 510, 10)), running_kappa=[[0.4] * 50, [0.5] * 50],
                   driving_force_per_A=[[0.003, 0.004, 0.0], [0.01, 0.0, 0.0]], kappa_along_force=[0.4, 0.5],
                   kappa_along_force_stderr=[0.01, 0.02],
                   spectral={"frequency_THz": [0.0, 1.0, 2.0], "kappa_per_THz": [0.0, 0.4, 0.0]})  # fmt: skip
    write_run(tmp_path, [entry(), driven])
    (tmp_path / "run.h5").unlink()
    data = load_run(tmp_path)
    assert [s.label for s in data.series] == ["green-kubo", "hnemd"]
    traces = traces_of(data, data.results[1])
    assert traces["running"].shape == (50, 2) and traces["time_fs"][0] == 40.0, "frames times the time step of 4 fs"
    np.testing.assert_allclose(traces["driving_force"], [0.005, 0.01], rtol=1e-12)
    assert len(traces_of(data, data.results[0])["autocorrelation"]) > 10, "computed again from the stored flux"
    build_report(tmp_path)
    text = parse(tmp_path)[2]
    assert "Spectral conductivity" in text and "Linear regime" in text


def test_traces_and_flux_round_trip(tmp_path):
    file = tmp_path / "run.h5"
    flux = np.random.default_rng(0).standard_normal((2, 10, 3))
    write_flux(file, flux, 4.0, 1000.0, 50.0)
    for scale in (1.0, 2.0):  # the second replaces the first
        write_traces(
            file, {"hnemd": {"running": scale * np.arange(3.0), "none": None, "text": "x", "deep": {"a": [1, 2]}}}
        )
    with h5py.File(file) as h5:
        assert sorted(h5["traces/hnemd"]) == ["deep", "running"]
        np.testing.assert_array_equal(h5["traces/hnemd/running"], [0.0, 2.0, 4.0])
        np.testing.assert_array_equal(h5["flux/potential"][:].transpose(1, 0, 2), flux)
        assert dict(h5.attrs) == {"volume_A3": 1000.0, "temperature_K": 50.0, "timestep_fs": 4.0}


def test_folders_without_a_run(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        build_report(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no results\.json"):
        build_report(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results\.json' is damaged.*run the command again"):
        build_report(tmp_path)
    write_run(tmp_path)
    (tmp_path / "results.json").unlink()
    with pytest.raises(InputError, match="not finished: jaxmd-thermal resume"):
        build_report(tmp_path)


def test_full_disk(tmp_path, monkeypatch):
    write_run(tmp_path)

    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", no_space)
    with pytest.raises(OutputError, match=r"report\.html': No space left on device; free space"):
        build_report(tmp_path)


@pytest.mark.parametrize(
    "value, error, text",
    [
        (0.3612, 0.0151, "0.361 ± 0.015"),
        (12.34, 1.2, "12.3 ± 1.2"),
        (148.2, 23.0, "148 ± 23"),
        (-0.0001, 0.03, "0.000 ± 0.030"),
        (0.3612, None, "0.3612"),
        (None, None, "not available"),
        (1e9, 1e7, "1e+09 ± 1e+07"),
    ],
)
def test_value_with_error(value, error, text):
    assert with_error(value, error) == text


@pytest.mark.parametrize("n", [10, 1200, 1201, 50_001])
def test_thinning_keeps_ends_and_spikes(n):
    x, y = np.arange(n, dtype=float), np.sin(np.arange(n))
    y[n // 3] = 50.0
    a, b = thin(x, y)
    assert len(a) <= 1210 and (np.diff(a) > 0).all() and b.max() == 50.0 and b.min() == y.min()
    assert a[-1] >= x[-1] - max(1, 2 * n / 1200) and a[0] <= 2 * n / 1200
    np.testing.assert_array_equal(b, y[a.astype(int)])


def test_runs_of_different_length_share_one_unit_of_time():
    from jaxmd_thermal.report.data import Series
    from jaxmd_thermal.report.figures import temperature

    def series(label, end):
        time = np.linspace(0.0, end, 50)
        return Series(label, {"time": time, "temperature": np.full((50, 1), 50.0)}, None, None, {}, {})

    (axis,) = temperature([series("a", 1500.0), series("b", 8000.0)], 50.0).axes
    assert axis.get_xlabel() == "time (ps)"
    ends = sorted({round(float(line.get_xdata()[-1]), 6) for line in axis.lines if len(line.get_xdata()) > 2})
    assert ends == [1.5, 8.0]


def test_command_line_quotes_and_repeats():
    line = command_line(
        "hnemd", {"structure": "my file.cif", "temperature": 50.0, "driving_force": [[0.01, 0, 0], [0.02, 0, 0]],
                  "supercell": [4, 4, 4], "sizes": [], "volume": None}
    )  # fmt: skip
    assert line == (
        "jaxmd-thermal hnemd 'my file.cif' --temperature 50 --driving-force 0.01 0 0 --driving-force 0.02 0 0 "
        "--supercell 4 4 4"
    )


def test_switches_and_positions_of_a_command_line():
    assert command_line(
        "wigner", {"isotopes": False, "ad": True, "nac": False, "structure": "si.cif", "mesh": [3, 3, 3]}
    ) == ("jaxmd-thermal wigner si.cif --no-isotopes --ad --no-nac --mesh 3 3 3")
    assert command_line("campaign", {"name": "phonondb103", "compounds": ["NaCl", "LiBr"], "isotopes": True}) == (
        "jaxmd-thermal campaign phonondb103 --compounds NaCl LiBr --isotopes"
    )
