"""Autoregressive diffusion: the cache, the order, what is known, who shares a batch, sizes, and what is refused."""

import json

import pytest
import torch

from xrddiff.core.errors import BadInput
from xrddiff.learn.diffusion.objectives import AutoregressiveObjective
from xrddiff.learn.models.autoregressive import AutoregressiveDiffusion, TokenDenoiser, generate, make_autoregressive
from xrddiff.learn.models.transformer import Transformer, vit_words

torch.set_num_threads(1)
SMALL = dict(size=(16, 24), patch_size=4, width=32, depth=2, heads=2, head_width=48, conditions={"crystals": 3})


def make(**words):
    """A small model whose head says something."""
    torch.manual_seed(0)
    model = AutoregressiveDiffusion(**SMALL | words)
    for p in (model.denoiser.net.proj_out.weight, *model.condition.parameters(), model.transformer.norm.weight):
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("sampler", [("dpmpp_2m", 6), ("heun", 3), ("ddpm", 3), ("unipc", 4)])
@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_cached_equals_uncached(sampler, scale):
    model = make()
    words = dict(sampler=model.sampler(*sampler), guidance_scale=scale, cond={"crystals": torch.tensor([2, 0, -1])})
    with_cache = generate(model, [0, 7, 3], **words)
    without = generate(model, [0, 7, 3], cache=False, **words)
    assert with_cache.abs().max() > 0.1
    assert (with_cache - without).abs().max() < 1e-5 * with_cache.abs().max()
    model.double()
    frames = [generate(model, [0, 7, 3], cache=cache, **words) for cache in (True, False)]
    assert (frames[0] - frames[1]).abs().max() < 1e-6


def test_transformer_in_any_pieces():
    torch.manual_seed(0)
    model, x = Transformer(48, 3, 4, dim_head=20), torch.randn(3, 23, 48)
    for sizes in ((23,), (1,) * 23, (7, 1, 9, 6)):
        cache = model.make_cache(3, 23)
        pieces = torch.cat([model(piece, cache) for piece in x.split(sizes, 1)], 1)
        assert (pieces - model(x)).abs().max() < 1e-5
    with pytest.raises(BadInput, match="24 tokens; expected at most 23"):
        model(x[:, :1], cache)


@pytest.mark.parametrize("order", ["raster", "random"])
@pytest.mark.parametrize("sampler", [("dpmpp_2m", 4), ("heun", 3)])
def test_a_sample_is_its_seed(order, sampler):
    model = make(order=order)
    numbers = [5, 11, 0, 2, 9]
    cond = torch.tensor([0, 1, 2, -1, 1])
    words = dict(sampler=model.sampler(*sampler), steps=5)
    together = generate(model, numbers, cond={"crystals": cond}, **words)
    for row, (i, kind) in enumerate(zip(numbers, cond, strict=True)):
        alone = generate(model, [i], cond={"crystals": kind[None]}, **words)
        assert (alone[0] - together[row]).abs().max() < 1e-4
    assert torch.equal(together, generate(model, numbers, cond={"crystals": cond}, **words))
    assert not torch.allclose(together, generate(model, numbers, seed=43, cond={"crystals": cond}, **words))


@pytest.mark.parametrize("sampler", [("dpmpp_2m", 4), ("heun", 3)])
def test_a_known_prefix_is_gone_on_from(sampler):
    """A frame that is given its own beginning ends as it did; the beginning is read in one pass."""
    model = make().double()
    words = dict(sampler=model.sampler(*sampler))
    whole = generate(model, [1, 2], **words)
    for n in (1, 5, 6, 13, 24):
        patches = (torch.arange(24) < n).reshape(4, 6)
        assert (
            generate(model, [1, 2], known=whole.double(), known_patches=patches, **words) - whole
        ).abs().max() < 1e-5


@pytest.mark.parametrize("order", ["raster", "random"])
def test_known_patches_stay_and_are_heard(order):
    model, known = make(order=order), torch.randn(1, 1, 16, 24)
    patches = torch.zeros(4, 6, dtype=torch.bool)
    patches[1, 2:4], patches[0, 0] = True, True
    kept = patches.repeat_interleave(4, 0).repeat_interleave(4, 1)
    a = generate(model, [0, 1], known=known, known_patches=patches)
    assert torch.equal(a[:, :, kept], known[:, :, kept].expand(2, -1, -1))
    b = generate(model, [0, 1], known=known + 1, known_patches=patches)
    changed = (a - b).abs()[:, 0, ::4, ::4][:, ~patches] > 0
    assert changed.all()
    assert torch.equal(generate(model, [0], known=known, known_patches=torch.ones(4, 6) > 0), known)


def test_every_patch_is_drawn_once_in_an_order_of_its_own():
    model, seen = make(order="random"), []
    generate(model, [0, 1], steps=6, callback=lambda now: seen.append(now["done"]))
    done = torch.stack(seen)
    assert done[-1].all() and len(seen) == 6
    assert (done[1:] | ~done[:-1]).all()  # what is done stays done
    assert torch.equal(done.sum((2, 3))[:, 0], done.sum((2, 3))[:, 1]) and not torch.equal(done[0, 0], done[0, 1])


def test_masked_pixels_are_zero_and_unheard():
    model = make(mask_channel=True)
    mask = torch.rand(1, 1, 16, 24) > 0.3
    mask[..., :8, 4:12] = False  # whole patches
    frames = generate(model, [0, 1], mask=mask)
    assert (frames.masked_select(~mask) == 0).all()
    assert torch.equal(frames, generate(model, [0, 1], cond={"mask": mask}))
    objective = AutoregressiveObjective(model)
    x = torch.randn(2, 1, 16, 24)
    batch = {"x": x, "mask": mask.expand(2, -1, -1, -1), "index": torch.tensor([3, 4])}
    loss = objective(batch, 1)["loss"]
    for other in (0.0, 1e6, float("nan")):
        assert torch.equal(objective(batch | {"x": torch.where(mask, x, other)}, 1)["loss"], loss)
    loss.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert objective({"x": x[:1], "mask": torch.zeros(1, 1, 16, 24) > 0, "index": [0]}, 0)["loss"].item() == 0


def test_the_clamp_holds_in_sampling_and_not_in_training():
    model = make(diffusion=dict(clamp=[-0.1, 0.2]))
    frames = generate(model, [0, 1], sampler=model.sampler("dpmpp_2m", 4))
    assert -0.1 <= frames.min() and frames.max() <= 0.2 + 1e-6
    off = make(diffusion=dict(clamp=[-0.1, 0.2], clamp_during_sampling=False))
    assert generate(off, [0, 1], sampler=off.sampler("dpmpp_2m", 4)).abs().max() > 0.25
    batch = {"x": torch.randn(1, 1, 16, 24), "index": [0]}
    assert torch.equal(AutoregressiveObjective(model)(batch, 0)["loss"], AutoregressiveObjective(off)(batch, 0)["loss"])


def test_guidance_is_the_formula():
    model = make().double()
    c, u, x = torch.randn(2, 5, 32).double(), torch.randn(2, 5, 32).double(), torch.randn(2, 5, 16).double()
    guided, plain = TokenDenoiser(model, 2.5), TokenDenoiser(model)
    guided.know(torch.cat([c, u]))
    got = guided(x, 0.8)
    plain.know(c)
    told = plain(x, 0.8)
    plain.know(u)
    assert torch.allclose(got, plain(x, 0.8) + 2.5 * (told - plain(x, 0.8)), atol=1e-12)


def test_sizes():
    counts = {}
    for name, size in (("tiny", 128), ("base", 224), ("large", 224), ("huge", 224)):
        with torch.device("meta"):
            model = make_autoregressive(name, size=(size, size), channels=3, patch_size=14 if name == "huge" else 16)
        parts = model.transformer, model.embed
        counts[name] = sum(p.numel() for part in parts for p in part.parameters()) + model.place.numel()
    assert counts["tiny"] < 3e6
    for name, millions in (("base", 86), ("large", 307), ("huge", 632)):
        assert abs(counts[name] / millions / 1e6 - 1) < 0.015
    with torch.device("meta"):  # overrides
        model = make_autoregressive("base", depth=8, heads=8, dim_head=1024, mlp_depth=3)
    assert len(model.transformer.blocks) == 8 and model.transformer.blocks[0].attention.dim_head == 1024
    assert len(model.denoiser.net.mlps) == 3 and model.transformer.norm.weight.shape == (768,)
    assert vit_words("huge", depth=None) == dict(width=1280, depth=32, heads=16)


@pytest.mark.parametrize(
    "words", [{}, dict(order="random", mask_channel=True), dict(channels=4, size=(16, 16), patch_size=2)]
)
def test_made_again_from_its_config(words):
    model = make(**words)
    again = AutoregressiveDiffusion(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict(), strict=True)
    batch = {"x": torch.randn(1, model.channels, *model.size), "index": [0]}
    assert torch.equal(
        AutoregressiveObjective(model)(batch, 0)["loss"], AutoregressiveObjective(again)(batch, 0)["loss"]
    )
    assert generate(model, [0]).shape == (1, model.channels, *model.size)


def test_every_parameter_learns():
    for words in (dict(), dict(order="random", mask_channel=True)):
        model = make(**words)
        objective = AutoregressiveObjective(model, condition_dropout=0.0)
        batch = {"x": torch.randn(3, 1, 16, 24), "index": [0, 1, 2], "cond": {"crystals": torch.tensor([0, 1, 2])}}
        objective(batch, 1)["loss"].sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_under_autocast():
    model = make()
    batch = {"x": torch.randn(2, 1, 16, 24), "index": [0, 1]}
    objective = AutoregressiveObjective(model)
    full = objective(batch, 0)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = objective(batch, 0)["loss"]
    assert low.dtype == torch.float32 and torch.allclose(low, full, rtol=0.05)


def test_refusals():
    model = make()
    patches = torch.ones(4, 6) > 0
    for attempt, words in (
        (lambda: make(patch_size=5), "16 x 24 pixels do not divide into patches of 5"),
        (lambda: make(order="rastre"), "did you mean 'raster'"),
        (lambda: make(diffusion=dict(sigma_dta=1.0)), "did you mean 'sigma_data'"),
        (lambda: make(diffusion=dict(sigma_data="auto")), "measured on the training set"),
        (lambda: make(mlp_depth=0), "mlp_depth is 0"),
        (lambda: make(depth=0), "depth is 0"),
        (lambda: make_autoregressive("bass"), "did you mean 'base'"),
        (lambda: model.patchify(torch.zeros(1, 1, 16, 16)), r"expected \(batch, channels, 16, 24\)"),
        (lambda: model.patchify(torch.zeros(1, 2, 16, 24)), "2 channels; expected 1"),
        (lambda: generate(model, [0], known=torch.zeros(1, 1, 16, 24)), "expected both or none"),
        (
            lambda: generate(model, [0], known=torch.zeros(1, 1, 16, 24), known_patches=patches[:2]),
            r"expected \(4, 6\)",
        ),
        (lambda: generate(model, [0], cond={"crystals": torch.tensor([3])}), "class 3"),
        (lambda: generate(make(order="random"), [0], steps=0), "expected at least 1"),
        (lambda: model.sampler("heun", -1), "at least 1"),
        (lambda: AutoregressiveObjective(model, draws=0), "draws is 0"),
    ):
        with pytest.raises(BadInput, match=words):
            attempt()


def test_it_learns_what_follows_from_what():
    """Two patches, the second a shifted copy of the first with noise of known size: the samples have the moments of the data."""
    torch.manual_seed(0)
    model = AutoregressiveDiffusion(
        size=(2, 4),
        patch_size=2,
        width=32,
        depth=1,
        heads=1,
        head_width=32,
        mlp_depth=1,
        diffusion=dict(sigma_data=1.0),
    )
    objective = AutoregressiveObjective(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.95))
    for step in range(250):
        first = torch.randn(64, 1, 2, 2)
        x = torch.cat([first, 0.8 * first + 0.6 * torch.randn(64, 1, 2, 2)], 3)
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 250)
        objective({"x": x, "index": range(64)}, step)["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    x = generate(model, range(500))
    first, second = x[..., :2].flatten(1), x[..., 2:].flatten(1)
    assert abs(first.std() - 1) < 0.15 and abs(second.std() - 1) < 0.15
    assert abs((first * second).mean() - 0.8) < 0.15
    assert abs((first[:, 0] * second[:, 1]).mean()) < 0.15
