"""Frames of more than a million pixels: read in tiles, trained on and judged by windows, refused where memory ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fabio.cbfimage import CbfImage
from test_run import xrddiff

from xrddiff.config.composition import compose_config
from xrddiff.config.plan import compose_plan
from xrddiff.core.errors import BadInput
from xrddiff.core.files import cache_dir
from xrddiff.data.formats.tiled import TiledRows, keep_in_tiles
from xrddiff.data.frames.exposures import find_exposures
from xrddiff.data.frames.geometry import tile_geometry
from xrddiff.data.frames.rows import lazy_frames, rows_behind
from xrddiff.learn.loading.datasets import open_planned, prepare_planned

SHAPE, COUNT = (1056, 1040), 5
GEOMETRY = ["data.wavelength=1.0", "data.distance=0.2", "data.pixel_size=1.72e-4", "data.beam_center=[500.5,520.5]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five CBF files of 1.1 Mpx: a background, spots, and a gap between two modules."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(3)
    y, x = np.indices(SHAPE)
    background = 4 * np.exp(-np.hypot(y - 520, x - 500) / 400)
    for k in range(COUNT):
        image = rng.poisson(background).astype(np.int32)
        for py, px in rng.integers(20, 1020, (150, 2)):
            image[py - 1 : py + 2, px - 1 : px + 2] += rng.poisson(40, (3, 3))
        image[:, 515:522] = -1
        CbfImage(data=image).write(str(folder / f"scan_{k:04d}.cbf"))
    return folder


def words(folder, *more):
    return [f"data.data_path={folder}/scan_*.cbf", *GEOMETRY, "threads=1", *more]


def configured(folder, *more):
    return compose_plan(["model=vae_kl", "size=tiny", *words(folder, *more)])


def test_windows_stand_for_large_frames(folder):
    plan = configured(folder, "data.window=64", "data.windows=300")
    prepared, whole = prepare_planned(plan), open_planned(configured(folder).data)
    images = prepared.frames
    assert images["intensity"].shape == (300, 64, 64) and len(prepared.train) + len(prepared.held_out) == 300
    source = images["frame_source"].values
    assert not set(source[prepared.train]) & set(source[prepared.held_out])  # no exposure on both sides
    assert not (np.diff(prepared.held_out) > 0).all()  # in no order, so that the first hundred stand for all
    place = prepared.regions.transforms[-1].corners(SHAPE)
    for j in (0, 7, 299):
        y, x = place[images["frame_panel"].values[j]]
        part = (int(source[j]), slice(y, y + 64), slice(x, x + 64))
        assert np.array_equal(images["intensity"][j], whole["intensity"][part])
        assert np.array_equal(images["mask"][j], whole["mask"][part])
        corner = tile_geometry(images, j).to_lab(0, np.zeros(1), np.zeros(1))
        assert np.allclose([float(c[0]) for c in corner[:2]], [(x - 500.5) * 1.72e-4, (y - 520.5) * 1.72e-4])
    assert prepare_planned(plan).transform.state() == prepared.transform.state()


def test_each_frame_is_decoded_once(folder):
    value, decoded = open_planned(configured(folder).data)["intensity"].variable, []
    frames = value.values
    lazy = lazy_frames(lambda i: decoded.append(i) or frames[i], frames.shape, frames.dtype)
    ds = open_planned(configured(folder).data).drop_vars("mask").assign(intensity=(value.dims, lazy))
    kept = keep_in_tiles(ds, ["a test", str(folder)])
    rng = np.random.default_rng(0)
    for _ in range(40):
        i, y, x = rng.integers([COUNT, SHAPE[0] - 64, SHAPE[1] - 64])
        part = np.s_[i, y : y + 64, x : x + 64]
        assert np.array_equal(kept["intensity"].variable[part].values, frames[part])
    assert sorted(decoded) == list(range(COUNT))
    again = keep_in_tiles(ds, ["a test", str(folder)])  # as another rank or the next job does
    assert np.array_equal(again["intensity"].values, frames) and len(decoded) == COUNT
    assert find_exposures(kept).number.tolist() == list(range(COUNT))


def test_where_no_tiles_can_be_written(folder, monkeypatch, tmp_path):
    blocked = tmp_path / "cache"
    blocked.write_text("a file where a folder should be")
    monkeypatch.setenv("XRDDIFF_CACHE", str(blocked))
    frames = open_planned(configured(folder, "data.window=64").data)
    assert isinstance(rows_behind(frames["intensity"]), TiledRows)
    assert np.array_equal(
        frames["intensity"][1, 5:9, 5:9], open_planned(configured(folder).data)["intensity"][1, 5:9, 5:9]
    )


def test_a_change_of_a_file_is_seen(folder, tmp_path):
    own = tmp_path / "scan_0000.cbf"
    own.write_bytes((folder / "scan_0000.cbf").read_bytes())
    words = ["data.window=64", f"data.data_path={own}"]
    first = open_planned(configured(folder, *words).data)["intensity"][0, :8, :8].values
    CbfImage(data=np.full(SHAPE, 9, np.int32)).write(str(own))
    assert (open_planned(configured(folder, *words).data)["intensity"][0, :8, :8] == 9).all() and not (first == 9).all()
    assert (cache_dir() / "tiles").is_dir()


def test_small_frames_are_drawn_whole():
    prepared = prepare_planned(compose_plan(["model=vae_kl", "data=sim128", "data.limit=12", "data.window=64"]))
    assert prepared.frames["intensity"].shape == (12, 128, 128)
    asked = prepare_planned(
        compose_plan(["model=vae_kl", "data=sim128", "data.limit=12", "data.window=64", "data.windows=90"])
    )
    assert asked.frames["intensity"].shape == (90, 64, 64)


@pytest.mark.parametrize(
    "given, batch",
    [(["data.window=128"], 16), (["data.window=256"], 4), (["data.patch=64"], 32), (["data.window=512"], 2), ([], 2),
     (["data.window=128", "training.batch_size=3"], 3), (["data.window=128", "experiment_type=scratch"], 8)],
)  # fmt: skip
def test_a_batch_has_as_many_pixels_whatever_the_window(given, batch):
    assert compose_config(["model=vae_kl", *given]).training.batch_size == batch


@pytest.mark.slow
def test_a_model_of_windows_of_large_frames(folder, tmp_path):
    more = ["data.window=64", "data.windows=120", "training.max_steps=3", "training.validate_every=3", "inference.steps=2",
            "inference.num_samples=24", "inference.limit=24", "experiment_type=test", "run_name=windows"]  # fmt: skip
    done = xrddiff("run", "model=ddpm", "size=tiny", *words(folder, *more), folder=tmp_path)
    run = next(tmp_path.glob("output/*/windows"))
    assert "(64, 64) pixels" in (run / "notebook.ipynb").read_text() and "Do not use" in done.stdout
    assert (run / "report.html").is_file()


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_refused_before_it_is_tried(folder, tmp_path, monkeypatch):
    from accelerate import Accelerator

    from xrddiff.learn.recipes import setup
    from xrddiff.learn.recipes.autoencoders import autoencoder_objective, build_autoencoder

    plan = configured(folder)
    prepared, net, accelerator = prepare_planned(plan), build_autoencoder(plan.model.autoencoder), Accelerator(cpu=True)
    loaders = setup.run_loaders(prepared, plan, accelerator, net.downsampling)
    objective = autoencoder_objective(net, prepared, plan.model.autoencoder, len(loaders[0]))
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    monkeypatch.setattr(setup, "free_bytes", lambda device: 1 << 30)
    with pytest.raises(BadInput) as said:
        setup.run_trainer(objective, loaders, tmp_path, plan, accelerator, {})
    text = str(said.value)
    assert "2 frames of 1056 x 1040 pixels takes about 2 GB, and 1 GB are free" in text and "\n" not in text
    assert "data.window=512" in text and "data.pool=2" in text
    assert all(torch.equal(v, before[k]) for k, v in objective.state_dict().items()) and not any(tmp_path.iterdir())
    monkeypatch.setattr(setup, "free_bytes", lambda device: 64 << 30)
    setup.check_run_memory(objective, loaders[0], accelerator, 2)
