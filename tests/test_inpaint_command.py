"""`xrddiff posterior inpaint` and `xrddiff posterior interpolate` on small trained runs: what they leave, what stays as measured, and refusals that leave nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from xrddiff.app.verbs.main import main
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.mask_files import write_mask
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import frame_mask, validate_frames
from xrddiff.judge.inference.measured import open_inpainting, open_interpolation
from xrddiff.learn.loading.catalog import load
from xrddiff.learn.models.generative import DrawSettings

pytestmark = pytest.mark.slow

torch.set_num_threads(1)
FAST = ["inference.steps=3", "inference.batch_size=3", "threads=1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A file of three frames of the experiment that the runs were trained on, whole and with a hole."""
    folder = tmp_path_factory.mktemp("frames")
    frames = load("sim-422", limit=3).load()
    save_frames(frames, folder / "frames.h5")
    photons = frames["intensity"].assign_attrs(units="photon")
    save_frames(frames.assign(intensity=photons), folder / "photons.h5")
    mask = np.ones(frames["intensity"].shape[1:], bool)
    mask[100:160, 60:300] = False
    np.save(folder / "mask.npy", mask)
    np.save(folder / "small.npy", mask[:9])
    np.save(folder / "letters.npy", np.full(mask.shape, "a"))
    write_mask(folder / "mask.edf", mask)
    return folder


def sets(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "samples").iterdir())


def test_holes_are_filled(runs, files, tmp_path):
    run = runs("ddpm")
    words = ["--frames", str(files / "frames.h5"), "--mask", str(files / "mask.npy"), "--limit", "2", "--draws", "2"]
    assert main(["posterior", "inpaint", str(run), *words, "--name", "gap", *FAST]) == 0
    folder = run / "samples" / "gap"
    made = validate_frames(open_frames(folder / "samples.zarr"), values=True)
    job = open_inpainting(run, FAST, frames=files / "frames.h5", mask=files / "mask.npy", draws=2, limit=2)
    image, hole = made["intensity"].values, job.holes[0]
    assert made["source_frame"].values.tolist() == [0, 0, 1, 1] and (made["filled"].values == hole).all()
    assert hole[13:19, 8:37].any() and 0.02 < hole.mean() < 0.2
    valid = job.network.valid[0, 0].numpy()[: hole.shape[0], : hole.shape[1]]
    assert (image[::2][:, valid] == job.network.counts[:, valid]).all()  # as they were measured, bit for bit
    assert (image[0] != image[1])[hole].mean() > 0.5 and (image[0] == image[1])[valid].all()
    assert (
        made.attrs["frames"].endswith("frames.h5") and made.attrs["method"] == "posterior" and made.attrs["draws"] == 2
    )
    assert len(made.attrs["checkpoint"]) == 64 and json.loads(made.attrs["sampler"])["steps"] == 3
    text = (folder / "report.md").read_text()
    assert "How well the draws fit" in text and "not measured" in text and (folder / "plots" / "frame-0.png").exists()
    assert json.loads((folder / "metrics" / "summary.json").read_text())["residual at valid pixels"] < 1e-5


def test_a_draw_is_its_frame_and_its_number(runs, files):
    """Draws 2 and 3 are those of frame 1, also where fewer frames or draws stand beside them."""
    words = dict(frames=files / "frames.h5", mask=files / "mask.npy", draws=2)
    few, residual = open_inpainting(runs("ddpm"), FAST, **words, limit=2).make()
    more, _ = open_inpainting(runs("ddpm"), FAST, **words).make()
    assert (few["intensity"].values[:3] == more["intensity"].values[:3]).all() and len(residual) == 4
    other, _ = open_inpainting(runs("ddpm"), [*FAST, "inference.seed=1"], **words, limit=1).make()
    assert (other["intensity"].values[0] != few["intensity"].values[0]).any()


def test_masks_come_from_where_users_have_them(runs, files):
    """An EDF (not 0 is bad), the other way round, and a store's own mask: the holes are those of the array of booleans."""
    words = dict(frames=files / "frames.h5", draws=1, limit=1)
    holes = lambda **mask: open_inpainting(runs("ddpm"), FAST, **words, **mask).holes  # noqa: E731
    expected = holes(mask=files / "mask.npy")
    assert (holes(mask=files / "mask.edf") == expected).all() and expected.any()
    np.save(files / "bad.npy", ~np.load(files / "mask.npy"))
    assert (holes(mask=files / "bad.npy", mask_true="bad") == expected).all()


@pytest.mark.parametrize("method", ["repaint", "replacement"])
def test_other_methods(runs, files, method):
    job = open_inpainting(
        runs("ddpm"), [*FAST, "inference.guidance_scale=2"], frames=files / "frames.h5", mask=files / "mask.npy", draws=1, method=method, limit=1
    )  # fmt: skip
    assert np.isfinite(job.make()[0]["intensity"].values).all() and job.guide.scale == 2


def test_holes_are_filled_in_a_latent(runs, files):
    """The pixels stay as measured; the draws agree with them better than samples that were told nothing."""
    words = [*FAST, "inference.steps=6"]
    job = open_inpainting(
        runs("latent_diff"), words, frames=files / "frames.h5", mask=files / "mask.npy", draws=2, limit=1
    )
    made, residual = job.make()
    valid = job.network.valid[0, 0].numpy()[: job.holes.shape[1], : job.holes.shape[2]]
    assert (made["intensity"].values[:, valid] == job.network.counts[0][valid]).all()
    assert {"lattice", "intensity", "q"} == {*job.told[1]} and "orientation" in made  # it is told what the frame shows
    free = job.generator.draw([0, 1], DrawSettings(job.sampler))
    missed = (job.generator.decode(free) - job.network.x)[:, 0, : valid.shape[0], : valid.shape[1]][
        :, torch.from_numpy(valid)
    ]
    assert residual.max() < missed.square().mean(1).sqrt().min() and float(job.floor[0]) > 0


def test_the_way_between_two_frames(runs, files, tmp_path):
    run = runs("ddpm")
    a, b = f"{files / 'frames.h5'}:0", "sim-422:2"
    words = ["++inference.steps=24", "threads=1"]
    assert main(["posterior", "interpolate", str(run), a, b, "-n", "3", "--name", "way", *words]) == 0
    folder = run / "samples" / "way"
    made = validate_frames(open_frames(folder / "samples.zarr"), values=True)
    assert made["fraction"].values.tolist() == [0, 0.5, 1] and made.attrs["first"] == a and made.attrs["last"] == b
    assert not made["intensity"].values[:, ~frame_mask(made, 0)].any()
    job = open_interpolation(run, words, first=a, last=b, steps=2)
    assert job.sampler.steps == 24
    again, missed = job.make()
    assert (again["intensity"].values == made["intensity"].values[[0, 2]]).all()  # the ends, whatever lies between
    assert np.allclose(made.attrs["round_trip"], missed)
    summary = json.loads((folder / "metrics" / "summary.json").read_text())
    assert summary["comes back"] == bool((missed <= 0.02).all()) and "Round trip" in (folder / "report.md").read_text()


def test_the_way_in_a_latent(runs, files):
    words = dict(first=f"{files / 'frames.h5'}:0", last=f"{files / 'frames.h5'}:1", steps=2)
    made, missed = open_interpolation(runs("latent_diff"), ["inference.steps=32", "threads=1"], **words).make()
    assert np.isfinite(made["intensity"].values).all() and missed.shape == (2,) and made.sizes["frame"] == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["posterior", "inpaint", "--frames", "{files}/nothing.h5"], "nothing.h5"),
        (
            ["posterior", "inpaint", "--frames", "{files}/frames.h5", "--mask", "{files}/small.npy"],
            "the mask has shape (9, 512)",
        ),
        (
            ["posterior", "inpaint", "--frames", "{files}/frames.h5", "--mask", "{files}/letters.npy"],
            "expected booleans or numbers",
        ),
        (["posterior", "inpaint", "--frames", "{files}/frames.h5", "--mask", "{files}/none.edf"], "none.edf"),
        (
            [
                "posterior",
                "inpaint",
                "--frames",
                "{files}/frames.h5",
                "--mask",
                "{files}/mask.npy",
                "--mask-true",
                "yes",
            ],
            "good or bad",
        ),
        (["posterior", "inpaint", "--frames", "{files}/frames.h5", "--mask-true", "bad"], "there is no mask"),
        (["posterior", "inpaint", "--frames", "{files}/frames.h5", "--draws", "0"], "0 draws"),
        (
            ["posterior", "inpaint", "--frames", "{files}/frames.h5", "--method", "posteriour"],
            "did you mean 'posterior'",
        ),
        (["posterior", "inpaint", "--frames", "{files}/frames.h5", "--name", "a/b"], "the name of the samples is"),
        (["posterior", "inpaint"], "--frames"),
        (["posterior", "interpolate", "{files}/frames.h5", "sim-422:0"], "expected {files}/frames.h5:INDEX"),
        (["posterior", "interpolate", "{files}/frames.h5:7", "sim-422:0"], "there is no frame 7"),
        (["posterior", "interpolate", "sim-422:0", "{files}/photons.h5:1"], "photons.h5:1 is in photon; expected ADU"),
        (["posterior", "interpolate", "sim-422:0", "sim-422:1", "-n", "1"], "at least 2"),
        (["posterior", "interpolate", "sim-422:0", "sim-422:1", "inference.sampler=unipc"], "only possible for ddim"),
        (["posterior", "interpolate", "sim-422:0", "sim-422:1", "inference.stepz=3"], "inference.stepz"),
    ],
)
def test_refusals_leave_nothing(runs, files, capsys, words, sentence):
    run = runs("ddpm")
    before, (group, kind, *rest) = sets(run), [w.format(files=files) for w in words]
    assert main([group, kind, str(run), *rest]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and sentence.format(files=files) in said[0] and sets(run) == before


def test_frames_without_holes_and_other_units(runs, files, tmp_path):
    with pytest.raises(BadInput, match="is in photon; expected ADU"):
        open_inpainting(runs("ddpm"), FAST, frames=files / "photons.h5")
    whole = open_inpainting(runs("ddpm"), FAST, frames=files / "frames.h5", mask=files / "mask.npy").frames
    save_frames(whole.drop_vars("mask").load(), tmp_path / "whole.h5")  # as large as the model draws
    with pytest.raises(BadInput, match="there is nothing to fill"):
        open_inpainting(runs("ddpm"), FAST, frames=tmp_path / "whole.h5")


def test_models_of_patches_are_refused(runs, files):
    for call in (
        lambda: open_inpainting(runs("diff"), FAST, frames=files / "frames.h5"),
        lambda: open_interpolation(runs("diff"), FAST, first="sim-422:0", last="sim-422:1"),
    ):
        with pytest.raises(BadInput, match="is an autoregressive model, which draws patch by patch"):
            call()
