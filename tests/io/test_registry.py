"""Published weights: entries, where files are looked for, checksums, downloads from a server of our own, commands."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import socket
import threading
from dataclasses import replace
from functools import partial

import pytest

from jaxmd_thermal import load_potential
from jaxmd_thermal.cli import main
from jaxmd_thermal.errors import DownloadError, InputError, OutputError
from jaxmd_thermal.io.download import download
from jaxmd_thermal.io.registry import MODELS, Model, WeightFile, checked, home_of, locate, sha256_of

DATA_FOLDERS = {"nequix": "nequix", "so3krates": "so3krates_snse"}


def weights(name, content, url=None):
    return WeightFile(name, len(content), hashlib.sha256(content).hexdigest(), url)


def small_model(name="small", contents=None, url=None):
    """A model whose files are a few bytes."""
    contents = {"small.nqx": b"weights"} if contents is None else contents
    files = tuple(weights(n, c, url and f"{url}/{n}") for n, c in contents.items())
    return Model(name, "nequix", files, (18,), 5.0, 2, "nothing", "MIT", "nobody", "a test")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty user's cache, and no other folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXMD_THERMAL_MODELS", raising=False)
    return tmp_path / "cache" / "jaxmd_thermal"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(folder, address, requests): a server on this machine for the files of a folder."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    served, asked = tmp_path / "served", []
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=served)) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served, f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


@pytest.fixture
def nowhere(monkeypatch):
    """An address where nothing answers."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def put(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def call(*arguments):
    with pytest.raises(SystemExit) as exit:
        main([str(a) for a in arguments])
    return exit.value.code or 0


# Entries


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda m: m.name)
def test_entries_are_complete(model):
    assert MODELS[model.name] is model and model.kind in DATA_FOLDERS
    assert model.cutoff > 0 and 1 <= model.steps <= 8 and len(set(model.elements)) == len(model.elements)
    assert model.licence and model.citation and model.training and model.source
    for file in model.files:
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256) and file.size > 0
        # A branch would change under the checksum: addresses name a commit.
        assert file.url is None or re.match(r"https://\S+/[0-9a-f]{40}/\S+" + re.escape(f"/{file.name}"), file.url)


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda m: m.name)
def test_checksums_are_those_of_the_files(model, shared):
    folder = shared / "data" / DATA_FOLDERS[model.kind]
    for file in model.files:
        assert (folder / file.name).stat().st_size == file.size
        assert sha256_of(folder / file.name) == file.sha256


@pytest.mark.parametrize("name", ["nequix-mp-1", "so3krates-snse"])
def test_published_weights_load_by_name(name, shared, cache, monkeypatch):
    monkeypatch.setenv("JAXMD_THERMAL_MODELS", str(shared / "data"))
    potential, model = load_potential(name), MODELS[name]
    assert potential.cutoff == model.cutoff and potential.interaction_steps == model.steps
    assert sorted(potential.species) == sorted(model.elements)


def test_unchecked_weights_beside_the_published_ones(shared, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMD_THERMAL_MODELS", str(tmp_path))
    for file in MODELS["so3krates-snse"].files:
        (tmp_path / file.name).symlink_to(shared / "data" / "so3krates_snse" / file.name)
    put(tmp_path, {"checkpoint_loss_999999": b"other"})
    with pytest.raises(InputError, match="also holds checkpoint_loss_999999"):
        load_potential("so3krates-snse")
    (tmp_path / "checkpoint_loss_999999").unlink()
    assert load_potential("so3krates-snse").interaction_steps == 1


# Where files are looked for


@pytest.mark.parametrize("place", ["", "two-files", "two_files", "nequix"])
@pytest.mark.parametrize("where", ["variable", "cache"])
def test_accepted_places(place, where, cache, tmp_path, monkeypatch):
    contents = {"a.bin": b"1", "b.bin": b"22"}
    model = small_model("two-files", contents)
    root = cache
    if where == "variable":
        root = tmp_path / "mine"
        root.mkdir()
        monkeypatch.setenv("JAXMD_THERMAL_MODELS", str(root))
    assert locate(model) is None
    put(root / place, {"a.bin": b"1"})
    assert locate(model) is None  # half a model is none
    put(root / place, contents)
    assert locate(model) == root / place == checked(model)


def test_the_variable_comes_before_the_cache(cache, tmp_path, monkeypatch):
    model = small_model()
    put(cache, {"small.nqx": b"weights"})
    put(tmp_path / "mine", {"small.nqx": b"weights"})
    monkeypatch.setenv("JAXMD_THERMAL_MODELS", str(tmp_path / "mine"))
    assert locate(model) == tmp_path / "mine"
    (tmp_path / "mine" / "small.nqx").unlink()
    assert locate(model) == cache
    monkeypatch.setenv("JAXMD_THERMAL_MODELS", str(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"JAXMD_THERMAL_MODELS is '.*absent', which is no folder"):
        locate(model)


@pytest.mark.parametrize("name", ["nequix-oam-1", "so3krates-snse"])
def test_missing_weights_say_how_to_get_them(name, cache):
    with pytest.raises(InputError) as error:
        load_potential(name)
    text, model = str(error.value), MODELS[name]
    assert f"jaxmd-thermal models get {name}" in text and str(home_of(model, cache)) in text
    for file in model.files:
        assert file.url in text and f"{file.size} bytes" in text


def test_unknown_address_is_admitted(cache):
    with pytest.raises(InputError, match=r"No public address of small\.nqx is known \(a test\): ask its authors"):
        checked(small_model())
    with pytest.raises(DownloadError, match=r"cannot be downloaded\. No public address"):
        download(small_model())


@pytest.mark.parametrize("content, what", [(b"weight", "6 bytes instead of 7"), (b"weightz", "of the right size")])
def test_damaged_weights_are_refused_before_they_are_read(content, what, cache, monkeypatch):
    model = small_model()
    monkeypatch.setitem(MODELS, "small", model)
    monkeypatch.setattr("jaxmd_thermal.io.nqx.read_nqx", lambda path: pytest.fail("read"))
    put(cache, {"small.nqx": content})
    with pytest.raises(InputError, match=f"not the published file of 'small' .{what}") as error:
        load_potential("small")
    for part in (model.files[0].sha256, hashlib.sha256(content).hexdigest(), "models get small"):
        assert part in str(error.value)


def test_a_truncated_file_of_the_real_model(shared, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMD_THERMAL_MODELS", str(tmp_path))
    whole = (shared / "data" / "nequix" / "nequix-mp-1.nqx").read_bytes()
    put(tmp_path, {"nequix-mp-1.nqx": whole[:2_000_000]})
    with pytest.raises(InputError, match="2000000 bytes instead of 2842366"):
        load_potential("nequix-mp-1")
    with pytest.raises(InputError, match="damaged"):
        load_potential(tmp_path / "nequix-mp-1.nqx")


# Downloads


def test_download(cache, server):
    served, address, asked = server
    contents = {"a.bin": b"1" * 200_000, "b.bin": b"22"}
    put(served, contents)
    model = small_model("two-files", contents, address)
    seen = []
    folder = download(model, progress=lambda file, done: seen.append((file.name, done)))
    assert folder == cache / "two-files" == checked(model)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == contents
    assert ("a.bin", 200_000) in seen and ("b.bin", 2) in seen and max(done for _, done in seen) == 200_000
    before = len(asked)
    download(model)
    assert len(asked) == before  # what is right is not fetched again
    (folder / "b.bin").write_bytes(b"damaged")
    download(model)
    assert (folder / "b.bin").read_bytes() == contents["b.bin"] and len(asked) == before + 1


def test_a_single_file_lies_in_the_folder_itself(cache, server, tmp_path):
    served, address, _ = server
    put(served, {"small.nqx": b"weights"})
    assert download(small_model(url=address), tmp_path / "to") == tmp_path / "to"
    assert (tmp_path / "to" / "small.nqx").read_bytes() == b"weights" and locate(small_model()) is None


def test_other_weights_from_the_server_are_not_kept(cache, server):
    served, address, _ = server
    put(served, {"small.nqx": b"other weights"})
    model = small_model(url=address)
    with pytest.raises(DownloadError, match="not the file that 'small' was checked with") as error:
        download(model)
    assert model.files[0].sha256 in str(error.value) and "By hand" in str(error.value)
    assert list(cache.iterdir()) == []
    put(cache, {"small.nqx": b"weights"})  # nor do they replace what is there
    bad = replace(model, files=(replace(model.files[0], sha256="0" * 64),))
    with pytest.raises(DownloadError):
        download(bad)
    assert [p.read_bytes() for p in cache.iterdir()] == [b"weights"]


def test_no_such_file_on_the_server(cache, server):
    _, address, _ = server
    with pytest.raises(DownloadError, match=r"404.*By hand: fetch http.*small\.nqx \(7 bytes\)"):
        download(small_model(url=address))


def test_no_network(cache, nowhere):
    with pytest.raises(DownloadError, match=r"check the network and try again\. By hand"):
        download(small_model(url=nowhere))
    assert list(cache.iterdir()) == []


def test_folder_that_cannot_be_made(cache, tmp_path, nowhere):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another --to"):
        download(small_model(url=nowhere), tmp_path / "file" / "below")


# Commands


def test_models_get(cache, server, monkeypatch, tmp_path, capsys):
    served, address, _ = server
    put(served, {"small.nqx": b"weights"})
    monkeypatch.setitem(MODELS, "small", small_model(url=address))
    assert call("models", "get", "small", "--to", tmp_path / "to") == 0
    out = capsys.readouterr().out
    assert f"in {tmp_path / 'to'}, checksums right. Cite: nobody" in out and f"JAXMD_THERMAL_MODELS={tmp_path}" in out
    assert call("models", "get", "small") == 0
    assert (cache / "small.nqx").read_bytes() == b"weights" and "JAXMD" not in capsys.readouterr().out


def test_models_get_fails_like_other_commands(cache, nowhere, monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "small", small_model(url=nowhere))
    assert call("models", "get", "small") == 2
    assert "error: cannot download 'small.nqx'" in capsys.readouterr().err
    assert call("models", "get", "smal") == 2
    assert "no published weights named 'smal', did you mean 'small'?" in capsys.readouterr().err
    assert call("models", "get", "lj-argon-gk") == 2
    assert "'lj-argon-gk' is built in" in capsys.readouterr().err
    assert not cache.exists() or list(cache.iterdir()) == []


def test_models_list(cache, monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "small", small_model())
    put(cache, {"small.nqx": b"weights"})
    monkeypatch.setitem(MODELS, "hurt", small_model("hurt", {"hurt.nqx": b"weights"}))
    put(cache, {"hurt.nqx": b"weightz"})
    assert call("models", "list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"lj-argon-gk", "sw-silicon", *MODELS} <= set(rows)
    states = {name: rows[name]["here"] for name in ("lj-argon-gk", "small", "hurt", "nequix-mp-1")}
    assert states == {"lj-argon-gk": "built in", "small": "yes", "hurt": "damaged", "nequix-mp-1": "no"}
    assert rows["small"]["path"] == str(cache) and rows["so3krates-snse"]["elements"] == [34, 50]
    assert call("models", "list") == 0
    table = capsys.readouterr().out
    lines = {line.split()[0]: line for line in table.splitlines() if line.strip()}
    assert re.search(r"no +89 elements +6 +4 +MIT", lines["nequix-oam-1-pft"])
    assert "Se, Sn" in lines["so3krates-snse"] and " Ar " in lines["lj-argon-gk"] and "damaged" in lines["hurt"]


def test_models_export(cache, tmp_path, capsys):
    assert call("models", "export", "lj-argon-gk", "--out", tmp_path / "argon") == 0
    assert load_potential(tmp_path / "argon").cutoff == load_potential("lj-argon-gk").cutoff
    assert call("models", "export", "lj-argon-gk", "--out", tmp_path / "argon") == 2
    assert "exists already" in capsys.readouterr().err
