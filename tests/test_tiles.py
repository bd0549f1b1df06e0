"""Frames larger than those of the training: another detector, tiles, windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xrddiff.config.plan import compose_plan
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.frames.frames import frame_mask
from xrddiff.data.frames.geometry import Geometry
from xrddiff.judge.inference.generators import open_generator
from xrddiff.judge.inference.sample_jobs import open_sample_job
from xrddiff.learn.loading.catalog import load
from xrddiff.learn.loading.loader import FrameLoader
from xrddiff.learn.loading.windows import WindowLoader
from xrddiff.learn.models.autoencoder import make_autoencoder
from xrddiff.learn.models.layers import ResnetBlock
from xrddiff.learn.recipes.latents import LatentLoader

FAR = ["inference.detector=sim128", "inference.num_samples=3", "inference.batch_size=2", "inference.steps=2"]


@pytest.mark.slow
def test_a_detector_that_was_never_seen(runs, tmp_path):
    """Trained on 64 x 64 pixels of one detector, drawn on 128 x 128 of another, by two workers with the bits of this process."""
    from test_run import xrddiff

    run = runs("latent_diff")
    done = xrddiff("sample", str(run), *FAR, "--name=far", "--judge", "--workers=local:2", folder=tmp_path)
    made, there = open_frames(run / "samples" / "far" / "samples.zarr"), load("sim128", limit=1)
    assert made["intensity"].shape == (3, 128, 128) and made["intensity"].attrs["units"] == "ADU"
    assert Geometry.from_frames(made) == Geometry.from_frames(there.drop_vars("wavelength"))
    assert (frame_mask(made, 0) == frame_mask(there, 0)).all()
    assert "the samples are on another detector" in done.stdout and "--reference" in done.stdout
    job = open_sample_job(run, FAR)
    assert (job.settings.tile, job.settings.overlap) == (16, 4) and job.generator.shape[1:] == (32, 32)
    own, _ = job.make(slice(2, 3))
    assert (own["intensity"].values[0] == made["intensity"].values[2]).all()
    maps = job.generator.scenes.condition_maps([0], job.settings)
    q = torch.nn.functional.pixel_shuffle(maps["q"], 4)[0, 0].numpy()
    assert abs(q[0, 0] - np.pi / 1.24 * 2 * np.sin(np.arctan(0.000344 / 0.05 * np.hypot(64.1, 62.7)) / 2)) < 1e-3


@pytest.mark.slow
def test_one_tile_is_the_frame_itself(runs):
    """At the trained size nothing is cut; a tile as large as the frame gives the bits of the frame at once."""
    run, words = runs("latent_diff"), ["inference.num_samples=1", "inference.batch_size=1", "inference.steps=2"]
    plain, tile, large, whole = (
        open_sample_job(run, [*words, *more])
        for more in ([], ["inference.tile=64"], [*FAR[:1], "inference.tile=128"], [*FAR[:1], "inference.tile=0"])
    )
    assert plain.settings.tile is None
    for a, b in ((plain, tile), (large, whole)):
        assert (a.make(slice(0, 1))[0]["intensity"].values == b.make(slice(0, 1))[0]["intensity"].values).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["detector=sim12"], "sim12 does not exist"),
        (["detector=sim128", "tile=40"], "expected a multiple of 16"),
        (["detector=sim128", "tile=48"], "the range of the network"),
        (["detector=sim128", "tile=64", "overlap=40"], "at most half of inference.tile, 32"),
        (["detector=sim128", "overlap=40"], "at most 32, half of a tile"),
        (["tile=-1"], "inference.tile"),
    ],
)
def test_what_cannot_be_drawn(runs, words, sentence):
    with pytest.raises(BadInput, match=sentence):
        open_sample_job(runs("latent_diff"), [f"inference.{word}" for word in words])


@pytest.mark.slow
def test_an_autoregressive_model_has_one_size(runs):
    with pytest.raises(BadInput, match="patch by patch"):
        open_sample_job(runs("diff"), ["inference.detector=sim128"])


@pytest.mark.slow
def test_windows_of_latents(runs):
    """They are windows of the latents and maps of whole frames, at the place of their frame and epoch."""
    space = open_generator(runs("latent_diff")).space
    frames = load("sim128", limit=6)
    from xrddiff.data.transforms.pipelines import make_transform

    transform = make_transform("asinh").fit(frames)
    loader = FrameLoader(frames, transform, batch_size=3, seed=2, maps=["q"], prefetch=0)
    latents = LatentLoader(loader, space)
    windows = WindowLoader(latents, 16, align=4)
    for epoch in (0, 1):
        whole = [latents.batch([i], epoch) for i in range(6)]
        for batch in windows.batches(epoch):
            for j, i in enumerate(batch["index"].tolist()):
                y, x = windows.place(i, epoch)
                area = (slice(None), slice(y, y + 16), slice(x, x + 16))
                assert torch.equal(batch["x"][j], whole[i]["x"][0][area])
                assert torch.equal(batch["cond"]["q"][j], whole[i]["cond"]["q"][0][area])


@pytest.mark.slow
def test_a_model_of_windows_draws_whole_frames(tmp_path):
    """Trained on 32 x 32 pixels of frames of 64 x 64."""
    from conftest import SMALL
    from test_run import xrddiff

    words = [
        "model=ddpm",
        *SMALL,
        "data.window=32",
        "model.condition_maps=[q]",
        "inference.num_samples=4",
        "run_name=windows",
    ]
    words += ["inference.steps=2", "inference.index_frames=0"]
    xrddiff("run", *words, folder=tmp_path)
    run = next(tmp_path.glob("output/*/windows"))
    made, generator = open_frames(run / "samples" / "samples.zarr"), open_generator(run)
    assert made["intensity"].shape == (4, 64, 64) and generator.trained == (32, 32)
    assert open_sample_job(run).settings.tile == 32


def test_words_of_windows():
    from xrddiff.config.composition import compose_config

    for words, sentence in (
        (["model=ddpm", "data.window=32", "data.patch=32"], "both cut frames"),
        (["model=ddpm", "data=sim128", "data.window=256"], "at most the frame's 128 x 128"),
        (["model=diff", "data.window=32"], "patch by patch"),
        (["model=diff", "inference.tile=32"], "patch by patch"),
    ):
        with pytest.raises(BadInput, match=sentence):
            compose_config(words)


def test_what_is_said_before_a_training(tmp_path, monkeypatch):
    from conftest import SMALL

    from xrddiff.run.execution.checks import check_run
    from xrddiff.run.execution.phases import execute_run

    for words, sentence in (
        (["model=latent_diff", "data.window=40"], "data.window: found 40, expected a multiple of 16"),
        (["model=vae_kl", "data.window=42"], "data.window: found 42, expected a multiple of 4"),
        (["model=ddpm", "inference.detector=sim128"], "use this word with `xrddiff sample`"),
        (
            ["model=ddpm", "model.network_options={widths: [64, 64]}"],
            "model.network_options: the U-Net has 2 widths and 3 entries of",
        ),
        (
            ["model=latent_diff", "model.network_options={widths: [64, 50, 96]}"],
            "model.network_options: 50 channels do not divide into",
        ),
        (["model=ddpm", "model.network=dit", "model.network_options={head_dim: 7}"], "model.network_options: "),
        (
            ["model=ddpm", "size=small", "size.widths=[64, 48, 96]"],
            "size.widths: 48 channels do not divide into 32 groups",
        ),
        (["model=vae_kl", "size.widths=[16, 30]"], "size.widths: 30 channels do not divide into 8 groups"),
        (["model=vae_kl", "size.widths=[16, 32, 64]"], "expected 2 widths for the requested downsampling 4"),
        (
            ["model=latent_diff", "size.widths=[64, 64]"],
            "size.widths: the U-Net has 2 widths and 3 entries of attention",
        ),
        (
            ["model=vq", "model.quantizer=fsq", "model.quantizer_options={levels: [8, 8]}"],
            "model.quantizer_options: fsq has 2 levels for 4",
        ),
    ):
        with pytest.raises(BadInput, match=sentence):
            check_run(compose_plan([*SMALL, *words]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="model.network_options: "):
        execute_run([*SMALL, "model=ddpm", "model.network_options={widths: [64, 50, 96]}"], terminal=False)
    assert not [*tmp_path.iterdir()]  # no run folder was made


@pytest.mark.parametrize(("attention", "size"), [(False, 160), (True, 96)])
def test_autoencoder_in_strips(attention, size, monkeypatch):
    """Encoded and decoded in strips, a frame is the same as at once: norms have the statistics of the whole frame."""
    torch.manual_seed(0)
    net = make_autoencoder("tiny", latent_channels=2, mid_attention=attention).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x = 30 * torch.rand(1, 1, size, size + 32) ** 8
    with torch.no_grad():
        z = net.encode(x).mean
        frame = net.decode(z)
        monkeypatch.setattr(ResnetBlock, "strips_from", 0)
        assert (net.encode(x).mean - z).abs().max() < 1e-4 * z.abs().max()
        assert (net.decode(z) - frame).abs().max() < 1e-4 * frame.abs().max()
