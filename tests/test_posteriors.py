"""`xrddiff posterior pixels` on small trained runs: what each method leaves, that a draw is its number, and refusals that leave nothing."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from xrddiff.app.verbs.main import main
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import make_frames, validate_frames
from xrddiff.judge.inference.posterior import Draws, Posterior, open_posterior
from xrddiff.judge.posteriors.likelihoods import Poisson
from xrddiff.learn.loading.catalog import load
from xrddiff.run.slurm.job import REQUEUE

pytestmark = pytest.mark.slow

torch.set_num_threads(1)
FAST = ["inference.steps=3", "threads=1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Two frames of the experiment that the runs were trained on, with a mask of a dead panel; and some that are wrong."""
    folder = tmp_path_factory.mktemp("frames")
    frames = load("sim-422", limit=2).load()
    save_frames(frames, folder / "frames.h5")
    panel = np.ones(frames["intensity"].shape[1:], bool)
    panel[100:220, 60:300] = False
    np.save(folder / "panel.npy", panel)
    np.save(folder / "nothing.npy", np.zeros_like(panel))
    intensity = frames["intensity"].copy()
    del intensity.attrs["gain"]
    save_frames(frames.assign(intensity=intensity), folder / "no-gain.h5")
    save_frames(load("sim128", limit=1).load(), folder / "small.h5")
    return folder


def test_draws_from_the_command_line(runs, files):
    """Frames of mean, uncertainty and interval; the hidden pixels are judged, and the panel is drawn; a draw knows its number alone."""
    run = runs("latent_diff")
    words = [
        "--frames",
        str(files / "frames.h5"),
        "--mask",
        str(files / "panel.npy"),
        "--limit",
        "1",
        "--hold-out",
        "0.2",
    ]
    words += ["--method", "replacement"]
    assert main(["posterior", "pixels", str(run), *words, "--draws", "9", "--name", "panel", *FAST]) == 0
    folder = run / "samples" / "panel"
    drawn, found = (validate_frames(open_frames(folder / f"{n}.zarr"), values=True) for n in ("samples", "posterior"))
    image, mean = drawn["intensity"].values, found["intensity"].values[0]
    assert drawn.sizes["frame"] == 9 and found.sizes["frame"] == 1 and drawn.attrs["samples_are"] == "expected values"
    assert np.allclose(image.mean(0), mean, rtol=1e-4) and found["intensity"].attrs["units"] == "ADU"
    measured, hidden, spread = (found[n].values[0] for n in ("measured", "held_out", "uncertainty"))
    assert hidden.any() and (measured[hidden]).all() and not measured[14:26, 9:36].any()
    assert (spread[found["mask"].values] > 0).all() and (found["low"].values <= found["high"].values).all()
    assert np.allclose(image.std(0), spread, rtol=1e-2, atol=1e-2)
    table = pd.read_csv(folder / "metrics" / "frames.csv", index_col=0)
    assert table.loc["frame 0", "held out"] == hidden.sum() and 0 < table.loc["frame 0", "in their 80% interval"] <= 1
    assert "held-out pixels in their 80% interval" in json.loads((folder / "metrics" / "summary.json").read_text())
    text = (folder / "report.md").read_text()
    assert "standard error over frames" in text and (folder / "plots" / "frame-0.png").exists()

    job = open_posterior(
        run,
        FAST,
        frames=files / "frames.h5",
        mask=files / "panel.npy",
        limit=1,
        hold_out=0.2,
        draws=3,
        method="replacement",
    )
    assert (job.held_out[0] == hidden).all() and not job.network.valid[0, 0][hidden].any()
    assert (job.make().samples["intensity"].values == image[:3]).all()


def test_hidden_pixels_have_no_part_in_their_draws(runs, files, tmp_path):
    """Whatever is in them, the draws are the same to the last bit."""
    frames = open_frames(files / "frames.h5").load()
    words = dict(hold_out=0.2, draws=2, limit=1, method="replacement")
    job = open_posterior(runs("latent_diff"), FAST, frames=files / "frames.h5", **words)
    hidden = np.kron(job.held_out[0], np.ones((8, 8), bool))[: frames.sizes["y"], : frames.sizes["x"]]
    values = frames["intensity"].values.copy()
    values[0][hidden] = 30000
    save_frames(
        frames.assign(intensity=(("frame", "y", "x"), values, frames["intensity"].attrs)), tmp_path / "other.h5"
    )
    other = open_posterior(runs("latent_diff"), FAST, frames=tmp_path / "other.h5", **words)
    assert (other.whole.counts != job.whole.counts).any()
    assert (other.make().samples["intensity"].values == job.make().samples["intensity"].values).all()


def test_full_pixels_are_not_measurements(runs, files, tmp_path):
    """Whatever stands in pixels at the saturation of the file, the draws are the same; and they stay finite."""
    frames, found = open_frames(files / "frames.h5").load(), []
    values = frames["intensity"].values.copy()
    values[0, 100:104, 200:204] = 30000
    for number, ceiling in enumerate((30000, 20000)):
        values[0, 100:104, 200:204] = ceiling + number  # at it, and above
        path = tmp_path / f"{number}.h5"
        intensity = (("frame", "y", "x"), values, frames["intensity"].attrs)
        save_frames(frames.assign(intensity=intensity).assign_attrs(saturation=ceiling), path)
        job = open_posterior(runs("latent_diff"), FAST, frames=path, draws=3, limit=1)
        assert job.method == "counts" and not job.measured[0, 12, 25]
        found.append(job.make().samples["intensity"].values)
    assert (found[0] == found[1]).all() and found[0].max() < 30000


def test_what_is_wrong_is_said():
    """Spots that are missed, beside draws that are right."""
    rng, shape = np.random.default_rng(0), (4, 64, 64)
    mean = np.full(shape, 2.0)
    y, x = np.mgrid[:64, :64]
    for row, column in itertools.product(range(8, 64, 16), repeat=2):
        mean += 60 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 2)
    counts = rng.poisson(mean).astype(np.float32)
    hidden = np.zeros(shape, bool)
    hidden[:, 2:-2, 2:40] = True
    frames = make_frames(counts.astype(np.uint16), wavelength=1.3, beam_center=(32, 32), gain=1.0)

    def judged(expected):
        drawn = rng.poisson(np.broadcast_to(expected, (19, *shape))).astype(np.float32)
        job = SimpleNamespace(
            draws=19, held_out=hidden, measured=np.ones(shape, bool), frames=frames, likelihood=Poisson(),
            whole=SimpleNamespace(counts=counts), generator=SimpleNamespace(template=frames),
        )  # fmt: skip
        found = [Draws(np.broadcast_to(expected[i], (19, 64, 64)), drawn[:, i]) for i in range(4)]
        return Posterior(job, found)

    right = judged(mean)
    assert right.verdict() == [] and 0.8 < right.by_brightness["spots"].found <= 1
    blind = judged(np.full(shape, 2.0))
    assert len(blind.verdict()) == 1 and blind.verdict()[0].startswith(
        "Bragg spots are not covered: 0% of the hidden spots"
    )
    assert blind.coverage().found > 0.7  # what a share of all pixels does not tell


@pytest.mark.parametrize(
    ("model", "method"),
    [("ddpm", "replacement"), ("latent_diff", "replacement"), ("ddpm", "counts"), ("latent_diff", "counts"), ("ddpm", "interpolation")],
)  # fmt: skip
def test_other_methods(runs, files, model, method):
    words = dict(frames=files / "frames.h5", limit=1, hold_out=0.1, method=method)
    few, more = (open_posterior(runs(model), FAST, draws=n, **words).make() for n in (3, 9))
    assert (few.samples["intensity"].values == more.samples["intensity"].values[:3]).all()
    assert 0 < more.coverage().found <= 1 and np.isfinite(more.table["error"]).all()


def test_the_same_command_goes_on_where_it_was_stopped(runs, files, monkeypatch):
    """Frames that are done are not drawn again, those that are not are the same as without the stop, and the state goes with the end."""
    run = runs("ddpm")
    words = ["posterior", "pixels", str(run), "--frames", str(files / "frames.h5"), "--draws", "3", *FAST]
    words += ["--method", "replacement", "--name"]
    assert main([*words, "whole"]) == 0

    write, written = Draws.write, []

    def stop_after(draws, path):
        write(draws, path)
        written.append(path.name)
        if len(written) == 1:
            os.kill(os.getpid(), signal.SIGUSR2)

    monkeypatch.setattr(Draws, "write", stop_after)
    folder = run / "samples" / "cut"
    assert main([*words, "cut"]) == REQUEUE and written == ["frame-000000.npz"]
    assert (folder / "stopped.json").exists() and not (folder / "report.html").exists()
    assert main([*words, "cut"]) == 0 and written[1:] == ["frame-000001.npz"]
    assert not (folder / "state").exists() and not (folder / "stopped.json").exists()
    assert not (run / "samples" / "cut-2").exists()
    for name in ("samples", "posterior"):
        whole, cut = (open_frames(run / "samples" / part / f"{name}.zarr").load() for part in ("whole", "cut"))
        assert whole.equals(cut)

    assert main([*words, "cut"]) == 0 and (run / "samples" / "cut-2").exists()  # what is finished stays


def test_a_damaged_state_is_drawn_again(tmp_path):
    kept = tmp_path / "frame-000000.npz"
    Draws(np.ones((3, 4, 4)), np.zeros((3, 4, 4)), {"dispersion": 1.25}).write(kept)
    found = Draws.read(kept)
    assert (found.expected == 1).all() and found.measured.shape == (3, 4, 4) and found.about == {"dispersion": 1.25}
    whole = kept.read_bytes()
    for part in (whole[:-50], whole[: len(whole) // 2], b"", whole[:200] + b"\xff" * 8 + whole[208:]):
        kept.write_bytes(part)
        assert Draws.read(kept) is None
    assert Draws.read(tmp_path / "none.npz") is None


def test_the_gain_may_be_given(runs, files):
    """Frames that do not say it are then as those that do: in units of the file, whose pixels the model sees binned."""
    gain = open_frames(files / "frames.h5")["intensity"].attrs["gain"]
    words = dict(limit=1, hold_out=0.1, method="interpolation", draws=3)
    told = open_posterior(runs("ddpm"), FAST, frames=files / "no-gain.h5", gain=gain, read_noise=3.0, **words)
    known = open_posterior(runs("ddpm"), FAST, frames=files / "frames.h5", read_noise=3.0, **words)
    assert told.likelihood == known.likelihood and told.make().found[0].measured.std() > 0
    assert (told.make().found[0].measured == known.make().found[0].measured).all()
    other = open_posterior(runs("ddpm"), FAST, frames=files / "frames.h5", gain=2 * gain, **words)
    assert other.likelihood.gain == 2 * known.likelihood.gain and known.likelihood.read_noise == 3 / 8
    assert other.record != known.record


@pytest.mark.parametrize(
    ("model", "words", "sentence"),
    [
        ("latent_diff", ["--frames", "{files}/small.h5"], "expected 64 x 64, as the model draws"),
        ("latent_diff", ["--frames", "{files}/frames.h5", "--draws", "0"], "0 draws of"),
        ("latent_diff", ["--frames", "{files}/frames.h5", "--hold-out", "1.5"], "the share of pixels to hide is 1.5"),
        ("latent_diff", ["--frames", "{files}/frames.h5", "--mask", "{files}/nothing.npy"], "has no valid pixel"),
        ("latent_diff", ["--frames", "{files}/no-gain.h5"], "expected gain=… or --gain, in ADU"),
        ("latent_diff", ["--frames", "{files}/frames.h5", "--gain", "-1"], "gain is -1.0"),
        (
            "latent_diff",
            ["--frames", "{files}/frames.h5", "--read-noise", "-1"],
            "the read noise is -1.0; expected 0 or more",
        ),
        ("latent_diff", ["--frames", "{files}/frames.h5", "--method", "count"], "did you mean 'counts'"),
        ("ddpm", ["--frames", "{files}/frames.h5", "--option", "sampler=hmc"], "has no option 'sampler'"),
        ("vae_kl", ["--frames", "{files}/frames.h5"], "has no diffusion model; expected a run of ddpm or latent_diff"),
        ("vq", ["--frames", "{files}/frames.h5"], "has no diffusion model; expected a run of ddpm or latent_diff"),
        ("diff", ["--frames", "{files}/frames.h5"], "draws patch by patch"),
        ("latent_diff", ["--frames", "{files}/frames.h5", "--option", "rounds=0"], "rounds"),
    ],
)
def test_refusals_leave_nothing(runs, files, capsys, model, words, sentence):
    run = runs(model)
    before = sorted((run / "samples").iterdir())
    assert main(["posterior", "pixels", str(run), *(w.format(files=files) for w in words), "threads=1"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and sentence in said[0] and sorted((run / "samples").iterdir()) == before
