"""Augmentations: frames, masks, maps and labels change together, the same in any batch; samples show none, because the network is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import SMALL

from xrddiff.config.plan import compose_plan
from xrddiff.core.errors import BadInput
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.transforms.values import Linear
from xrddiff.learn.diffusion.denoisers import Denoiser
from xrddiff.learn.diffusion.keyed_sampling import Sampler
from xrddiff.learn.diffusion.objectives import DenoisingObjective, drop_conditions
from xrddiff.learn.loading.augmentations import Augmentations
from xrddiff.learn.loading.datasets import prepare_planned
from xrddiff.learn.loading.loader import FrameLoader
from xrddiff.learn.models.autoencoder import make_autoencoder
from xrddiff.learn.models.latent_space import LatentSpace, LatentStatistics
from xrddiff.learn.models.unet import UNet
from xrddiff.learn.recipes.latents import LatentLoader
from xrddiff.learn.recipes.setup import run_accelerator, run_loaders
from xrddiff.run.execution.checks import check_run


@pytest.fixture(scope="module")
def frames() -> xr.Dataset:
    """Frames of 10 x 10 pixels whose beam is not in the middle, with a shared mask."""
    counts = np.random.default_rng(0).poisson(20.0, (24, 10, 10)).astype(np.float32)
    mask = np.ones((10, 10), bool)
    mask[2, :5] = False
    where = dict(wavelength=1.3, distance=0.1, pixel_size=1e-4, beam_center=(3.2, 6.1))
    return make_frames(counts, mask=mask, units="photon", **where)


def loader(frames: xr.Dataset, *names: str, **options) -> FrameLoader:
    augmentations = Augmentations(frames, names, seed=3)
    told = ["augment_" + name for name in names]
    words = dict(batch_size=6, multiple=4, prefetch=0, cond=told, maps=["q"], augmentations=augmentations) | options
    return FrameLoader(augmentations.told(frames), Linear().fit(frames), **words)


def test_frame_mask_and_map_turn_together_and_the_label_says_how(frames):
    """A pixel keeps its value, its q and its mask, wherever it goes; the padding stays where it is."""
    changed = loader(frames, "turns", "flips")
    seen = set()
    for batch in changed.batches(0):
        plain = changed.batch(batch["index"].numpy())
        for j in range(len(batch["index"])):
            k, f = (int(batch["cond"][f"augment_{name}"][j]) for name in ("turns", "flips"))
            seen.add((k, f))
            for a, b in (
                (batch["x"], plain["x"]),
                (batch["mask"], plain["mask"]),
                (batch["cond"]["q"], plain["cond"]["q"]),
            ):
                own = torch.rot90(b[j, :, :10, :10], k, (1, 2))
                own = torch.flip(own, [d for d, on in ((2, f in (1, 3)), (1, f in (2, 3))) if on])
                assert torch.equal(a[j, :, :10, :10], own) and not a[j, :, 10:].any() and not a[j, :, :, 10:].any()
    assert len(seen) > 8


def test_what_is_done_to_a_frame_does_not_depend_on_its_batch(frames):
    names = ("flips", "thinning")
    one = {int(i): x for b in loader(frames, *names).batches(2) for i, x in zip(b["index"], b["x"], strict=True)}
    options = dict(batch_size=5, world_size=2, prefetch=2)
    for rank in range(2):
        for b in loader(frames, *names, rank=rank, **options).batches(2):
            assert all(torch.equal(one[int(i)], x) for i, x in zip(b["index"], b["x"], strict=True))
    other = {int(i): x for b in loader(frames, *names).batches(3) for i, x in zip(b["index"], b["x"], strict=True)}
    assert sum(not torch.equal(one[i], other[i]) for i in one) > 12


def test_without_augmentations_a_batch_is_what_it_was(frames):
    plain = FrameLoader(frames, Linear().fit(frames), batch_size=6, multiple=4, prefetch=0, cond=[], maps=["q"])
    for a, b in zip(plain.batches(0), loader(frames).batches(0), strict=True):
        assert torch.equal(a["x"], b["x"]) and torch.equal(a["mask"], b["mask"]) and list(a["cond"]) == list(b["cond"])


def test_the_loaders_of_a_run_tell_the_denoiser_and_leave_held_out_frames_alone():
    words = [
        "model=ddpm",
        *SMALL,
        "training.augmentations=[flips]",
        "training.augmentation_options={flips: {share: 1}}",
    ]
    plan = compose_plan(words)
    prepared, accelerator = prepare_planned(plan), run_accelerator(plan.training)
    train, held_out = run_loaders(prepared, plan, accelerator, 4, diffusion=True)
    assert next(iter(train.batches(0)))["cond"]["augment_flips"].all()
    assert not next(iter(held_out.batches(0)))["cond"]["augment_flips"].any()
    plan = compose_plan(["model=vae_kl", *words[1:]])
    train, _ = run_loaders(prepared, plan, accelerator, 4)  # an autoencoder reconstructs what it is given
    batch = next(iter(train.batches(0)))
    assert not batch["cond"] and not torch.equal(batch["x"], train.batch(batch["index"].numpy())["x"])


def test_codes_of_augmented_frames_are_kept_in_eight_variants(frames):
    torch.manual_seed(0)
    net = make_autoencoder("tiny").eval()
    zeros, ones = (0.0,) * 4, (1.0,) * 4
    space = LatentSpace(net, LatentStatistics(zeros, ones, zeros, zeros, ones, net.latent_shape(16, 16), 24))
    latents = LatentLoader(loader(frames, "flips", multiple=8), space)
    first = [
        {int(i): z for b in latents.batches(e) for i, z in zip(b["index"], b["x"], strict=True)} for e in (0, 1, 8)
    ]
    assert len(latents._row) == 2 * 24
    assert any(not torch.allclose(first[0][i], first[1][i]) for i in range(24))


def test_what_was_done_is_never_hidden():
    cond = {
        "augment_flips": torch.tensor([1, 2]),
        "augment_gain": torch.tensor([1.0, 1.1]),
        "digit": torch.tensor([1, 2]),
    }
    hidden = drop_conditions(cond, torch.tensor([False, False]))
    assert hidden["digit"].tolist() == [-1, -1] and all(torch.equal(hidden[k], cond[k]) for k in cond if k != "digit")


@pytest.mark.parametrize("told", [True, False])
def test_samples_show_no_augmentation_if_the_network_is_told(told):
    """Every frame is bright on its left; half of the training frames are mirrored. Without being told, so are samples."""
    x = torch.full((1, 1, 4, 4), -1.0)
    x[..., :2] = 1
    torch.manual_seed(0)
    net = UNet(
        widths=(16,),
        layers_per_block=1,
        norm_groups=4,
        mid_attention=False,
        conditions={"augment_flips": 4} if told else {},
    )
    objective = DenoisingObjective(Denoiser(net, "edm", sigma_data=1.0), seed=0).train()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(200):
        done = torch.arange(16) % 2
        batch = {
            "x": torch.where(done.bool()[:, None, None, None], x.flip(3), x),
            "index": torch.arange(16),
            "cond": {"augment_flips": done} if told else {},
        }
        optimiser.zero_grad()
        objective(batch, step)["loss"].mean().backward()
        optimiser.step()
    cond = {"augment_flips": torch.zeros(32, dtype=torch.int64)} if told else None
    drawn = Sampler("heun", 8).sample(objective.denoiser.eval(), (1, 4, 4), range(32), seed=0, cond=cond)
    left = (drawn[..., :2].mean((1, 2, 3)) > drawn[..., 2:].mean((1, 2, 3))).float().mean()
    assert left == 1 if told else 0.2 < left < 0.8


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["training.augmentations=[flip]"], "did you mean 'flips'"),
        (["training.augmentations=flips"], "found 'flips', expected a list of some of flips, turns"),
        (["training.augmentations=[flips,flips]"], "flips is named twice"),
        (["training.augmentation_options={gain: {spread: 0.2}}"], "gain is not in training.augmentations"),
        (["training.augmentations=[flips]", "training.augmentation_options={flips: {share: 2}}"], "share"),
        (["training.augmentations=[flips]", "training.augmentation_options={flips: 1}"], "expected its options"),
        (["training.augmentations=[thinning]"], "in ADU with noise or an unknown gain; expected photon counts"),
        (["training.augmentations=[turns]", "data.crop=[16,8]"], "frames of 16 x 8 pixels; expected square ones"),
    ],
)
def test_augmentations_that_cannot_be_are_refused(words, sentence):
    with pytest.raises(BadInput, match=sentence):
        check_run(compose_plan(["model=ddpm", *SMALL, *words]))


def test_photon_counts_have_no_gain_that_could_differ(frames):
    with pytest.raises(BadInput, match="the augmentation gain: photon counts have no gain"):
        Augmentations(frames, ["gain"])
