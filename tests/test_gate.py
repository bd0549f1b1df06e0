"""The gate and the probe: what is refused, and that what is asked for is read all the same."""

from __future__ import annotations

import os
import pickle
import time

import h5py
import numpy as np
import pytest
from test_hostile_inputs import counts, virtual

from xrddiff.config.plan import compose_plan
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.headers import gate, open_in_subprocess
from xrddiff.judge.views.inspection import inspect_file
from xrddiff.learn.loading.catalog import simulate_to
from xrddiff.learn.loading.datasets import open_planned

KNOWN = {"wavelength": 1.3, "distance": 0.1, "pixel_size": 1e-4, "beam_center": (16, 12)}


@pytest.fixture
def places(tmp_path):
    """A file with frames, and the folder beside its own."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "here").mkdir()
    with h5py.File(tmp_path / "raw" / "b.h5", "w") as f:
        f["data"] = counts()
    counts().tofile(tmp_path / "raw" / "b.raw")
    return tmp_path / "raw", tmp_path / "here" / "a.h5"


def link(f, raw):
    f["data"] = h5py.ExternalLink(str(raw / "b.h5"), "/data")


def source(f, raw):
    virtual(f, "data", "../raw/b.h5")


def storage(f, raw):
    f.create_dataset("data", (3, 24, 32), "u2", external=[(str(raw / "b.raw"), 0, 3 * 24 * 32 * 2)])


@pytest.mark.parametrize("build", [link, source, storage])
def test_files_outside_are_read_only_if_asked_for(build, places):
    raw, path = places
    with h5py.File(path, "w") as f:
        build(f, raw)
    with pytest.raises(BadInput, match=f"leads to {raw}/b.*, outside the folder of the file; outside=true reads it"):
        open_frames(path, **KNOWN)
    ds = open_frames(path, outside=True, **KNOWN)
    assert np.array_equal(ds["intensity"].values, counts())
    # in another process, which was not told
    gate._outside.clear()
    gate._open_files.clear()
    again = pickle.loads(pickle.dumps(ds))
    assert np.array_equal(again["intensity"].values, counts())
    assert inspect_file(path, outside=True)["frames"] == (3, 24, 32)


def test_a_run_can_ask_for_it(places):

    raw, path = places
    with h5py.File(path, "w") as f:
        link(f, raw)
    words = [f"data.data_path={path}", "data.wavelength=1.3", "data.distance=0.1", "data.pixel_size=1e-4"]
    words += ["data.beam_center=[16,12]", "model=vae_kl", "data.avg_pooling=false"]
    with pytest.raises(BadInput, match="outside=true"):
        open_planned(compose_plan(words).data)
    assert open_planned(compose_plan([*words, "data.outside=true"]).data)["intensity"].shape == (3, 24, 32)


def test_links_within_the_folder_are_followed(places):
    raw, path = places
    below = path.parent / "data"
    below.mkdir()
    os.rename(raw / "b.h5", below / "b.h5")
    (path.parent / "c.h5").symlink_to(raw / "c.h5")  # a link that the owner of the folder made
    os.link(below / "b.h5", raw / "c.h5")
    with h5py.File(path, "w") as f:
        f["entry/data/data_000001"] = h5py.ExternalLink("data/b.h5", "/data")
        f["entry/data/data_000002"] = h5py.ExternalLink("c.h5", "/data")
    assert open_frames(path, **KNOWN)["intensity"].shape == (6, 24, 32)


def test_each_file_is_tried_once(places, monkeypatch):
    raw, path = places
    asked = []
    monkeypatch.setattr(open_in_subprocess._Probe, "ask", lambda self, path, outside: asked.append(path))
    for _ in range(3):
        open_frames(raw / "b.h5", **KNOWN)
    assert len(asked) == 1
    time.sleep(0.01)
    os.utime(raw / "b.h5")
    open_frames(raw / "b.h5", **KNOWN)
    assert len(asked) == 2


def test_values_beyond_float32_are_told(tmp_path):
    data = counts().astype("f8")
    data[1, 2, 3] = 1e300
    np.save(tmp_path / "a.npy", data)
    ds = open_frames(tmp_path / "a.npy", **KNOWN)
    with pytest.warns(UserWarning, match="holds values beyond ±3.4e38, the range of float32; they are read as inf"):
        assert np.isinf(ds["intensity"].values).sum() == 1


def test_simulations_that_no_disk_holds(tmp_path):
    with pytest.raises(BadInput, match="999999999999 shots of sim128 take about .* GB; the disk of .* free"):
        simulate_to(tmp_path / "a.h5", "sim128", 999999999999)
    with pytest.raises(BadInput, match="seed is -1"):
        simulate_to(tmp_path / "a.h5", "sim128", 1, seed=-1)
    assert not list(tmp_path.iterdir())
