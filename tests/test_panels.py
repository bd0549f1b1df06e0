"""Condition maps on detectors of several panels: drawn panel by panel, each in its place, and trained on panels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SMALL
from test_run import xrddiff

from xrddiff.config.plan import saved_plan
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import frame_mask, make_frames
from xrddiff.data.frames.geometry import Geometry, PanelGeometry, q_map
from xrddiff.data.frames.selection import select_frames
from xrddiff.data.transforms.spatial import as_images
from xrddiff.judge.inference.generators import open_generator
from xrddiff.judge.inference.sample_jobs import open_sample_job
from xrddiff.learn.loading.catalog import load
from xrddiff.learn.loading.datasets import prepare_planned
from xrddiff.physics.indexing.lattice_maps import LatticeMap

PANELS = """wavelength = 1.24 A
clen = 0.05
res = 2907
adu_per_photon = 1
p0/min_fs = 0
p0/max_fs = 79
p0/min_ss = 0
p0/max_ss = 63
p0/corner_x = -85
p0/corner_y = -30
p0/fs = x
p0/ss = y
p1/min_fs = 0
p1/max_fs = 79
p1/min_ss = 64
p1/max_ss = 127
p1/corner_x = 40
p1/corner_y = -40
p1/fs = -.1x +.995y
p1/ss = -.995x -.1y
"""


@pytest.mark.slow
def test_a_detector_of_panels(runs, tmp_path):
    """Trained on images of 64 x 64 pixels, drawn on two panels of 64 x 80 by two workers, with the bits of this process."""
    (tmp_path / "two.geom").write_text(PANELS)
    run = runs("latent_diff")
    words = [f"inference.detector={tmp_path / 'two.geom'}", "inference.num_samples=3", "inference.batch_size=2"]
    words += ["inference.steps=2"]
    done = xrddiff("sample", str(run), *words, "--name=panels", "--workers=local:2", "--judge", folder=tmp_path)
    made = open_frames(run / "samples" / "panels" / "samples.zarr")
    assert made["intensity"].dims == ("frame", "panel", "ss", "fs") and made["intensity"].shape == (3, 2, 64, 80)
    geometry = PanelGeometry.from_frames(made)
    assert geometry.shape == (2, 64, 80) and geometry.wavelength == 1.24 and "on another detector" in done.stdout
    assert frame_mask(made, 0).shape == (2, 64, 80)
    job = open_sample_job(run, words)
    own, drawn = job.make(slice(2, 3))
    assert (own["intensity"].values[0] == made["intensity"].values[2]).all() and drawn.shape[
        1
    ] == 2 * job.generator.shape[0]
    assert (own["intensity"].values[0, 0] != own["intensity"].values[0, 1]).any()  # noise of its own
    assert own["cell"].sizes["frame"] == 1 and job.latent_stats(np.concatenate([drawn.numpy()] * 3)) is not None
    maps = {
        n: torch.nn.functional.pixel_shuffle(m, 4)[:, 0]
        for n, m in job.generator.scenes.condition_maps([2], job.settings).items()
    }
    np.testing.assert_allclose(maps["q"][:, :64, :80], q_map(geometry) / 2, rtol=1e-5)
    assert maps["lattice"].shape[0] == 2 and (maps["lattice"].amax((1, 2)) > 0.3).all()  # both show the frame's crystal


def test_one_panel_is_a_flat_detector(runs, tmp_path):
    """The same detector as an image and as a stack of one panel: the same bits."""
    flat = select_frames(load("sim128", limit=1), slice(0, 1)).load()
    panel = PanelGeometry.from_flat(Geometry.from_frames(flat))
    stack = make_frames(
        flat["intensity"].values[:, None], mask=flat["mask"].values[None], wavelength=panel.wavelength,
        distance=panel.distance, pixel_size=panel.pixel_size, panels={"origin": panel.origin, "fs": panel.fs, "ss": panel.ss},
    )  # fmt: skip
    paths = [save_frames(ds, tmp_path / f"{name}.h5") for name, ds in (("flat", flat), ("stack", stack))]
    words = ["inference.num_samples=2", "inference.batch_size=2", "inference.steps=2"]
    made = [
        open_sample_job(runs("latent_diff"), [*words, f"inference.detector={p}"]).make(slice(None))[0] for p in paths
    ]
    np.testing.assert_allclose(made[0]["intensity"].values, made[1]["intensity"].values[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_model_of_panels(tmp_path):
    """Trained on the panels of a stack and told where the lattice has its spots on each."""
    frames = load("sim128", limit=24).load()
    flat, four = Geometry.from_frames(frames), np.array([(0, 0), (0, 64), (64, 0), (64, 64)])
    whole = PanelGeometry.from_flat(flat)
    origin = np.array([whole.origin[0] + x * whole.fs[0] + y * whole.ss[0] for y, x in four])
    cut = lambda v: np.stack([v[..., y : y + 64, x : x + 64] for y, x in four], -3)  # noqa: E731
    panels = {"origin": origin, "fs": np.repeat(whole.fs, 4, 0), "ss": np.repeat(whole.ss, 4, 0)}
    stack = make_frames(
        cut(frames["intensity"].values), mask=cut(frames["mask"].values), distance=flat.distance, gain=1.0,
        pixel_size=flat.pixel_size, panels=panels,
    )  # fmt: skip
    known = {n: frames[n] for n in ("cell", "orientation", "wavelength", "shot_group")}
    stack = stack.assign(known).assign_attrs(
        unit_cell=frames.attrs["unit_cell"], space_group=frames.attrs["space_group"]
    )
    path = save_frames(stack, tmp_path / "stack.h5")
    words = ["model=ddpm", *(w for w in SMALL if not w.startswith("data")), f"data.data_path={path}", "data.name=null"]
    words += [
        "model.condition_maps=[lattice,intensity,q]",
        "inference.num_samples=6",
        "inference.steps=2",
        "run_name=panels",
    ]
    xrddiff("run", *words, folder=tmp_path)
    run = next(tmp_path.glob("output/*/panels"))
    made, generator = open_frames(run / "samples" / "samples.zarr"), open_generator(run)
    assert made["intensity"].shape == (6, 64, 64) and len(set(made["frame_panel"].values)) > 1
    job = open_sample_job(run)
    maps, place = generator.scenes.condition_maps([3], job.settings), int(made["frame_panel"][3])
    corner = Geometry.from_frames(frames).crop(*map(int, four[place]), 64, 64)
    np.testing.assert_allclose(maps["q"][0, 0], q_map(corner) / 2, rtol=1e-4)
    prepared = prepare_planned(saved_plan(run))
    assert prepared.frames["intensity"].shape == (96, 64, 64) and as_images(stack)["frame_panel"][5] == 1
    options = dict(zip(("radius", "growth"), (2.4 * v for v in prepared.frames.attrs["reflection_width"]), strict=True))
    whole_map = LatticeMap(flat, **options)(frames["cell"][1], frames["orientation"][1], float(frames["wavelength"][1]))
    from xrddiff.learn.loading.condition_maps import ConditionMaps

    of_panel = ConditionMaps(prepared.frames, ["lattice"])([5])["lattice"][0, 0]
    np.testing.assert_allclose(of_panel[8:-8, 8:-8], whole_map[8:56, 72:120], atol=1e-3)
