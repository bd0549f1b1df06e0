"""Named data: the cache of simulated shots under many processes, kills and full disks; fetched measurements against their published numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import venv
from pathlib import Path

import numpy as np
import pytest
from conftest import missing

from xrddiff.config.words.data_sets import CATALOG, find_data_set
from xrddiff.core.errors import BadInput
from xrddiff.core.files import CannotSave
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.frames.frames import frame_mask, peaks_table, validate_frames
from xrddiff.data.frames.rows import is_lazy
from xrddiff.learn.loading import cache as cache_module
from xrddiff.learn.loading.cache import (
    CannotFetch,
    code_digest,
    download_package,
    simulated_frames,
    simulation_folder,
    simulation_key,
)
from xrddiff.learn.loading.catalog import convert, fetch, list_data, load, simulate_to
from xrddiff.physics.simulation.experiments import find_experiment
from xrddiff.physics.simulation.simulate import simulate


@pytest.fixture(scope="module")
def small():
    whole = find_experiment("sim128")
    detector = dataclasses.replace(whole.detector, shape=(40, 48), beam_center=(24.0, 20.0))
    return dataclasses.replace(whole, name="small", detector=detector)


@pytest.fixture
def blocks_of_8(monkeypatch):
    monkeypatch.setattr(cache_module, "block_size", lambda shape: 8)


def test_list_is_a_table_of_everything():
    table = list_data()
    assert list(table.index) == [
        "sim-422",
        "sim-522",
        "sim128",
        "demo",
        "cspad-lysozyme",
        "pilatus-reflectivity",
        "laue-ge",
    ]
    assert set(table.columns) == {"title", "frames", "shape", "units", "kind", "MB", "source", "licence", "sha256"}
    assert all(len(e.sha256) == 64 for e in CATALOG.values() if e.kind != "simulated")
    assert (table["frames"][:3] >= 2000).all()


def test_unknown_names_and_limits():
    with pytest.raises(BadInput, match="no data set 'sim-442' in the catalog; did you mean 'sim-422'"):
        load("sim-442")
    for limit in (0, -3, 2.5, True):
        with pytest.raises(BadInput, match="limit is"):
            load("sim128", limit)
    with pytest.raises(BadInput, match="is a measurement; expected no seed"):
        load("cspad-lysozyme", seed=3)


def test_builtin_shot_is_unchanged():
    from xrddiff.core.files import sha256

    path = fetch("cspad-lysozyme")
    assert sha256(path) == find_data_set("cspad-lysozyme").sha256
    ds = load("cspad-lysozyme", limit=5)
    assert ds.sizes["frame"] == 1 and ds.attrs["unit_cell"][0] == 79.1
    notice = (path.parent / "NOTICE.md").read_text()
    assert "LGPL-2.1" in notice and sha256(path) in notice


# ---------------------------------------------------------------- simulated shots


def test_a_larger_limit_extends_and_a_smaller_one_reads(tmp_path, small, blocks_of_8):
    few = simulated_frames(small, 5, cache=tmp_path)
    folder = simulation_folder(small, 0, tmp_path)
    assert sorted(p.name for p in folder.glob("*.h5")) == ["block-000000.h5"] and is_lazy(few["intensity"])
    stamp = os.stat(folder / "block-000000.h5").st_mtime_ns
    more = simulated_frames(small, 20, cache=tmp_path)
    assert len(list(folder.glob("*.h5"))) == 3 and os.stat(folder / "block-000000.h5").st_mtime_ns == stamp
    assert np.array_equal(more["intensity"][:5], few["intensity"])
    assert more["shot"].values.tolist() == list(range(20))
    # the same as without a cache, peaks and truth included
    alone = simulate(small, range(20))
    assert np.array_equal(alone["intensity"], more["intensity"]) and np.array_equal(alone["mask"], more["mask"])
    a, b = peaks_table(alone), peaks_table(more)
    assert len(a) == len(b) and all(np.array_equal(a[c], b[c]) for c in a)
    assert np.array_equal(alone["orientation"], more["orientation"], equal_nan=True)
    assert np.array_equal(alone["wavelength"], more["wavelength"])
    assert validate_frames(more, values=True) is more


def test_the_cache_knows_parameters_seed_and_code(tmp_path, small):
    folders = {
        simulation_folder(small, 0, tmp_path),
        simulation_folder(small, 1, tmp_path),
        simulation_folder(dataclasses.replace(small, beam=dataclasses.replace(small.beam, fluence=1e9)), 0, tmp_path),
        simulation_folder(dataclasses.replace(small, group_size=10), 0, tmp_path),
    }
    assert len(folders) == 4 and simulation_folder(small, 0, tmp_path) in folders
    assert set(simulation_key(small, 0)) == {"experiment", "seed", "code", "versions"}


def test_code_digest_sees_code_and_no_comments(tmp_path):
    module = tmp_path / "toy_module.py"

    def digest(text):
        module.write_text(text)
        return code_digest([module])

    plain = digest('def f(x):\n    "Doc."\n    return x + 1\n')
    assert plain == digest('"""Module."""\n# why\ndef f(x):\n    """Another text."""\n    return x + 1  # here\n')
    assert plain != digest('def f(x):\n    "Doc."\n    return x + 2\n')


LOAD = """
import dataclasses, hashlib, sys
from xrddiff.learn.loading import cache
cache.block_size = lambda shape: 8
from xrddiff.physics.simulation.experiments import find_experiment
whole = find_experiment("sim128")
small = dataclasses.replace(whole, name="small", detector=dataclasses.replace(whole.detector, shape=(40, 48), beam_center=(24.0, 20.0)))
if len(sys.argv) > 2:
    exec(sys.argv[2])
ds = cache.simulated_frames(small, 32, cache=sys.argv[1])
print(hashlib.sha256(ds["intensity"].values.tobytes()).hexdigest(), ds.sizes["peak"])
"""


def start(folder, *more):
    words = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, str(folder), *more], **words, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


@pytest.mark.slow
def test_many_processes_make_one_cache(tmp_path):
    ranks = [start(tmp_path) for _ in range(3)]
    said = [r.communicate(timeout=300) for r in ranks]
    assert [r.returncode for r in ranks] == [0] * 3, said
    assert len({out for out, _ in said}) == 1
    (folder,) = (tmp_path / "simulated").iterdir()
    assert len(list(folder.glob("block-*.h5"))) == 4 and not list(folder.rglob("*.part"))


@pytest.mark.slow
def test_a_killed_maker_costs_its_block_only(tmp_path, small):
    victim = start(tmp_path)
    for _ in range(600):
        found = list(tmp_path.glob("simulated/*/block-*.h5"))
        if found or victim.poll() is not None:
            break
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    done = start(tmp_path)
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    assert out.split()[0] == hashlib.sha256(simulate(small, range(32))["intensity"].values.tobytes()).hexdigest()
    assert all(p.stat().st_size for p in tmp_path.glob("simulated/*/block-*.h5"))


def test_a_full_cache_disk_says_so(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    tight = start(
        tmp_path,
        limit
        + "\nfrom xrddiff.core.errors import XrddiffError\nsys.excepthook = lambda k, e, t: print(issubclass(k, XrddiffError), e)",
    )
    out, _ = tight.communicate(timeout=300)
    assert out.startswith("True cannot save") and "larger than the limit" in out
    assert not list(tmp_path.glob("simulated/*/*.h5")) and not list(tmp_path.rglob("*.part"))


def test_a_cache_that_cannot_be_written(tmp_path, small):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotSave, match="cannot (save|write)"):
        simulated_frames(small, 2, cache=tmp_path / "file")


def test_simulate_to_and_convert(tmp_path, small, blocks_of_8, monkeypatch):
    monkeypatch.setattr("xrddiff.learn.loading.catalog.block_size", lambda shape: 8)
    for n in (5, 21):
        for name in ("a.h5", "a.zarr"):
            ds = open_frames(simulate_to(tmp_path / name, small, n, seed=3, overwrite=True))
            alone = simulate(small, range(n), 3)
            assert np.array_equal(ds["intensity"], alone["intensity"]) and len(peaks_table(ds)) == len(
                peaks_table(alone)
            )
    convert(tmp_path / "a.h5", tmp_path / "b.zarr")
    assert np.array_equal(open_frames(tmp_path / "b.zarr")["intensity"], ds["intensity"])
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "a.zarr", "b.zarr"]
    with pytest.raises(BadInput, match="both read and written"):
        convert(tmp_path / "a.h5", tmp_path / "a.h5")
    with pytest.raises(BadInput, match="ends in .cxi or .nxs or .h5 or .zarr"):
        convert(tmp_path / "a.h5", tmp_path / "a.tif")
    with pytest.raises(BadInput, match="n is 0"):
        simulate_to(tmp_path / "c.h5", small, 0)
    np.save(tmp_path / "x.npy", np.ones((2, 16, 16), "f4"))
    with pytest.warns(UserWarning, match="x.npy does not say its wavelength .* written without"):
        convert(tmp_path / "x.npy", tmp_path / "x.h5")  # a run trains on it as well
    assert open_frames(tmp_path / "x.h5").sizes["frame"] == 2  # pictures, which are complete


# ---------------------------------------------------------------- fetched measurements


def fetched(name):
    try:
        return load(name)
    except CannotFetch as error:
        missing(str(error))


def test_offline_wrong_checksum_and_no_pip(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(CannotFetch, match="islatu 0.1.0 could not be fetched: this machine may be offline") as caught:
        load("pilatus-reflectivity", cache=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    # a package of that name with other content
    wheel = tmp_path / "lauetools-3.2.8-py3-none-any.whl"
    import zipfile

    with zipfile.ZipFile(wheel, "w") as z:
        z.writestr("lauetools-3.2.8.dist-info/METADATA", "Metadata-Version: 2.1\nName: lauetools\nVersion: 3.2.8\n")
        z.writestr("lauetools-3.2.8.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr("lauetools-3.2.8.dist-info/RECORD", "")
    with pytest.raises(CannotFetch, match="has another checksum"):
        load("laue-ge", cache=tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.parent.name != "locks"]
    venv.create(tmp_path / "without pip", symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "without pip" / "bin" / "python"))
    with pytest.raises(CannotFetch, match="fetched with pip, which this Python"):
        download_package("islatu", "0.1.0", "0" * 64, 23.5, wheel=False, cache=tmp_path / "cache")


def test_a_finished_download_is_used_again(tmp_path, monkeypatch):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "thing-1.0.whl").write_bytes(b"content")
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # nothing can be fetched
    digest = hashlib.sha256(b"content").hexdigest()
    assert download_package("thing", "1.0", digest, 0.1, wheel=True, cache=tmp_path).read_bytes() == b"content"


def test_pilatus_reflectivity():
    ds = fetched("pilatus-reflectivity")
    assert ds["intensity"].shape == (647, 195, 487) and ds["intensity"].dtype == np.int32 and is_lazy(ds["intensity"])
    validate_frames(ds, values=True)
    zeros = total = 0
    top = 0
    for a in range(0, 647, 64):
        part = ds.isel(frame=slice(a, a + 64))
        v, m = part["intensity"].values, part["mask"].values
        assert v.min() >= 0 and v[m].max() <= 1_380_198
        zeros, total, top = zeros + (v == 0).sum(), total + v.size, max(top, int(v.max()))
    assert round(zeros / total, 2) == 0.71 and top == 1_411_196
    assert not frame_mask(ds, 600)[83, 233] and frame_mask(ds, 200).all()
    # groups are runs of neighbours within one scan
    group, scan = ds["shot_group"].values, ds["scan"].values
    assert len(np.unique(scan)) == 11 and (np.diff(group) >= 0).all() and (np.diff(group) <= 1).all()
    assert all(len(set(scan[group == g])) == 1 for g in np.unique(group)) and np.bincount(group).max() <= 30
    assert set(np.round(ds["wavelength"].values, 4)) == {0.8856, 0.9919}
    assert load("pilatus-reflectivity", limit=10).sizes["frame"] == 10


def test_laue_germanium():
    ds = fetched("laue-ge")
    assert ds["intensity"].shape == (1, 2048, 2048) and ds["intensity"].values.max() == 28899
    validate_frames(ds, values=True)
    peaks = peaks_table(ds)
    assert len(peaks) == 95 and (peaks[["h", "k", "l"]].iloc[0].tolist()) == [4, 2, 2]
    # positions are of our pixels: the centroid of each strong spot is where the table puts it
    image = ds["intensity"].values[0].astype(float)
    for p in peaks[:40].itertuples():
        y, x = int(p.ss), int(p.fs)
        box = np.clip(image[y - 3 : y + 4, x - 3 : x + 4] - p.background, 0, None)
        rows, columns = np.mgrid[y - 3 : y + 4, x - 3 : x + 4] + 0.5
        assert abs((box * columns).sum() / box.sum() - p.fs) < 0.4 and abs((box * rows).sum() / box.sum() - p.ss) < 0.4
    # every spot reflects in the band, at the wavelength that its d-spacing and angle demand
    low, high = ds.attrs["wavelength_range"]
    assert (
        peaks["wavelength"].between(low, high).all()
        and frame_mask(ds)[peaks["ss"].astype(int), peaks["fs"].astype(int)].all()
    )


def test_the_two_downloads_are_let_go():
    fetched("pilatus-reflectivity")
    assert not (cache_module.cache_dir() / "downloads" / "islatu-0.1.0.tar.gz").exists()


@pytest.mark.slow
def test_command_line_convert_and_inspect(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).poisson(3, (3, 24, 24)).astype("i4"))
    code = textwrap.dedent(
        """
        import sys
        from xrddiff.app.verbs.main import main
        sys.exit(main(sys.argv[1:]))
        """
    )

    def run(*words):
        return subprocess.run(
            [sys.executable, "-c", code, "data", *words], capture_output=True, text=True, cwd=tmp_path
        )

    done = run("convert", "x.npy", "x.h5", "units=photon")
    assert done.returncode == 0 and "x.npy does not say its wavelength" in done.stderr
    (tmp_path / "x.h5").unlink()
    words = ["units=photon", "wavelength=1.3", "distance=0.1", "pixel_size=75e-6", "beam_center=[12, 12]"]
    done = run("convert", "x.npy", "x.h5", *words)
    assert done.returncode == 0, done.stderr
    done = run("inspect", "x.h5", "--png", "x.png")
    assert done.returncode == 0 and "3 × 24 × 24" in done.stdout and (tmp_path / "x.png").exists(), done.stderr


# ---------------------------------------------------------------- measured sets of dials-data


def test_measured_sets_come_from_a_folder_by_name_and_by_checksum(tmp_path, monkeypatch, capsys):
    from dials_data.datasets import definition

    from xrddiff.app.verbs.main import main

    url = {"url": "https://example.org/files/first.cbf"}
    known = {"size": 6, "hash": hashlib.sha256(b"pixels").hexdigest()}
    monkeypatch.setitem(definition, "toy_set", {"data": [url], "hashinfo": {"verify": [known]}})
    for name, content in {
        "first.cbf": b"of this name", "toy_set_2.cbf": b"of the set", "copied.cbf": b"pixels", "other.cbf": b"PIXELS",
        "toy_settings.txt": b"no",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    (tmp_path / "toy_set").mkdir()
    (tmp_path / "toy_set" / "more.h5").write_bytes(b"in its folder")
    monkeypatch.setenv("XRDDIFF_DATA", str(tmp_path))
    assert main(["data", "fetch", "toy_set"]) == 0
    found = [os.path.relpath(p, tmp_path) for p in capsys.readouterr().out.split()]
    assert found == ["toy_set/more.h5", "copied.cbf", "first.cbf", "toy_set_2.cbf"]
    monkeypatch.setenv("XRDDIFF_DATA", str(tmp_path / "nowhere"))
    assert main(["data", "fetch", "toy_set"]) == 2
    assert "which is not a folder" in capsys.readouterr().err


def test_a_measured_set_is_downloaded_once_and_compared_with_its_checksum(tmp_path, monkeypatch, capsys):
    import http.server
    import threading
    from functools import partial

    from dials_data.datasets import definition

    from xrddiff.app.verbs.main import main

    monkeypatch.delenv("XRDDIFF_DATA", raising=False)
    for word in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(word, raising=False)
    monkeypatch.setenv("DIALS_DATA", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "first.cbf").write_bytes(b"pixels")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = {"url": f"http://127.0.0.1:{server.server_port}/first.cbf"}
        for name, content in (("toy_set", b"pixels"), ("broken_set", b"PIXELS")):
            verify = [{"size": 6, "hash": hashlib.sha256(content).hexdigest()}]
            about = {"name": name, "data": [url], "hashinfo": {"verify": verify}}
            monkeypatch.setitem(definition, name, about)
        assert main(["data", "fetch", "toy_set"]) == 0
        out = capsys.readouterr().out
        assert main(["data", "fetch", "broken_set"]) == 2
        err = capsys.readouterr().err
        assert "checksum" in err or "hash" in err.lower(), err
        gone = {"url": url["url"].replace("first", "gone")}
        monkeypatch.setitem(
            definition, "gone_set", {"name": "gone_set", "data": [gone], "hashinfo": {"verify": verify}}
        )
        assert main(["data", "fetch", "gone_set"]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert "gone_set could not be fetched: this machine may be offline (dials-data said: 404" in last
        server.shutdown()
    assert Path(out.strip()).read_bytes() == b"pixels" and Path(out.strip()).is_relative_to(tmp_path / "cache")
    assert main(["data", "fetch", "toy_set"]) == 0 and capsys.readouterr().out == out  # the server is gone
    assert main(["data", "fetch", "toy_sett"]) == 2 and "did you mean 'toy_set'?" in capsys.readouterr().err
