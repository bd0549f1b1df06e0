"""The autoencoder: parity with diffusers by name and number, sizes, masks, precision, export."""

import os

import pytest
import torch
from conftest import need

from xrddiff.config.plan import compose_plan
from xrddiff.core.errors import BadInput
from xrddiff.learn.models.autoencoder import SIZES, AutoencoderKL, make_autoencoder
from xrddiff.learn.models.layers import ResnetBlock, SelfAttention, Upsample

torch.set_num_threads(1)


def pair(widths=(16, 32, 32), layers=2, groups=8, latent=4, attention=True):
    """Ours and diffusers', with the same weights."""
    if os.environ.get("CI"):
        import diffusers
    else:
        diffusers = need("diffusers")
    torch.manual_seed(0)
    peer = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=latent, block_out_channels=tuple(widths), layers_per_block=layers,
        norm_num_groups=groups, mid_block_add_attention=attention,
        down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths),
    )  # fmt: skip
    with torch.no_grad():
        for p in peer.parameters():  # norms start as identities, which would hide a missing one
            p.add_(0.05 * torch.randn_like(p) if p.ndim == 1 else 0)
    ours = AutoencoderKL(
        latent_channels=latent, widths=widths, layers_per_block=layers, norm_groups=groups, mid_attention=attention, mask_channel=False
    )  # fmt: skip
    ours.load_state_dict(peer.state_dict(), strict=True)
    return ours, peer


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize(
    "words", [{}, {"widths": (32, 64, 64, 64), "layers": 1, "groups": 32, "latent": 1}, {"attention": False}]
)
def test_outputs_and_gradients_equal_diffusers(words, dtype, bound):
    ours, peer = (m.to(dtype) for m in pair(**words))
    x = torch.randn(2, 1, 32, 48, dtype=dtype)
    posterior = peer.encode(x).latent_dist
    out = ours(x)
    assert (out.mean - posterior.mean).abs().max() < bound
    assert (out.logvar - posterior.logvar).abs().max() < bound
    expected = peer.decode(posterior.mean).sample
    largest = expected.abs().max().clamp_min(1)  # rounding is relative: one processor came to 1.06e-5 of 1.43
    assert (ours.decode(posterior.mean) - expected).abs().max() < bound * largest

    out.frame.square().mean().backward()
    expected.square().mean().backward()
    theirs = dict(peer.named_parameters())
    for name, p in ours.named_parameters():
        if p.grad is None:
            assert theirs[name].grad is None
        else:
            scale = theirs[name].grad.abs().max()
            assert (p.grad - theirs[name].grad).abs().max() < 10 * bound * scale + bound, name


def test_weights_go_back_to_diffusers():
    ours, peer = pair()
    peer.load_state_dict(ours.state_dict(), strict=True)


def test_large_is_the_size_of_stable_diffusion():
    # 83 653 863 parameters with 3 channels in and out; our frame and mask are 2 in, 1 out.
    with torch.device("meta"):
        count = sum(p.numel() for p in make_autoencoder("large", downsampling=8).parameters())
    assert count == 83_653_863 - 128 * 9 - 2 * (128 * 9 + 1)


def test_parameter_counts():
    counts = {}
    for name in SIZES:
        for f in (4, 8):
            with torch.device("meta"):
                model = make_autoencoder(name, downsampling=f)
            assert model.downsampling == f
            counts[name, f] = sum(p.numel() for p in model.parameters())
    assert max(counts["tiny", 4], counts["tiny", 8]) <= 1_300_000
    for f in (4, 8):
        in_order = [counts[name, f] for name in SIZES if name != "seed"]
        assert in_order == sorted(in_order)


@pytest.mark.parametrize("latent", [1, 2, 4, 8])
@pytest.mark.parametrize("downsampling", [4, 8])
def test_latent_shapes(latent, downsampling):
    model = make_autoencoder("tiny", downsampling=downsampling, latent_channels=latent)
    out = model(torch.randn(1, 1, 32, 64))
    assert out.mean.shape == out.logvar.shape == (1, latent, 32 // downsampling, 64 // downsampling)
    assert out.frame.shape == (1, 1, 32, 64)


def test_one_frame_does_not_depend_on_its_neighbours():
    model = make_autoencoder("tiny").eval()
    x, mask = torch.randn(3, 1, 32, 32), torch.rand(3, 1, 32, 32) > 0.2
    with torch.no_grad():
        assert (model(x, mask).frame[1:2] - model(x[1:2], mask[1:2]).frame).abs().max() < 1e-5


def test_heads_are_float32_in_bfloat16_models():
    model = make_autoencoder("tiny").to(torch.bfloat16)
    out = model(torch.randn(1, 1, 32, 32), torch.ones(1, 1, 32, 32, dtype=torch.bool))
    assert all(t.dtype == torch.float32 for t in out)


def test_config_makes_the_same_model():
    import json

    model = make_autoencoder("tiny", latent_channels=2)
    again = AutoencoderKL(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict(), strict=True)


def test_memory_formats_agree():
    model = make_autoencoder("tiny")
    x = torch.randn(1, 1, 32, 32)
    plain = model(x).frame
    assert (model.to(memory_format=torch.channels_last)(x).frame - plain).abs().max() < 1e-5


def test_exports():
    model = make_autoencoder("tiny").eval()
    x, mask = torch.randn(1, 1, 32, 32), torch.ones(1, 1, 32, 32, dtype=torch.bool)
    program = torch.export.export(model, (x, mask))
    assert (program.module()(x, mask).frame - model(x, mask).frame).abs().max() < 1e-5


def test_upsample_in_float64():
    up, x = Upsample(4).double(), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    doubled = torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    assert (up(x) - up.conv(doubled)).abs().max() < 1e-12


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_autoencoder("tinny"),
        lambda: make_autoencoder("tiny", downsampling=16),
        lambda: make_autoencoder("tiny", downsampling=8, widths=[16, 32]),
        lambda: AutoencoderKL(widths=(12, 24), norm_groups=8),
        lambda: AutoencoderKL(latent_channels=0),
        lambda: SelfAttention(12, head_dim=5, groups=4),
        lambda: ResnetBlock(8, groups=4, time_channels=3)(torch.randn(1, 8, 4, 4)),
        lambda: make_autoencoder("tiny").decode(torch.randn(1, 3, 4, 4)),
    ],
)
def test_refusals_are_sentences(make):
    with pytest.raises(BadInput, match="expected|did you mean"):
        make()


@pytest.mark.slow
@pytest.mark.parametrize(("words", "said"), [(["training.max_steps=2"], True), (["training.max_steps=8"], False),
                                             (["training.max_steps=2", "training.test_pipeline=true"], False)])  # fmt: skip
def test_a_training_of_less_than_an_epoch_is_told_so(words, said, tmp_path, capsys):
    from xrddiff.learn.loading.datasets import prepare_planned
    from xrddiff.learn.recipes.autoencoders import autoencoder_objective, build_autoencoder
    from xrddiff.learn.recipes.setup import run_accelerator, run_loaders, run_trainer

    plan = compose_plan(["model=vae_kl", "size=tiny", "data=sim128", "data.limit=30", 
                          "training.batch_size=4", "training.num_epochs=9", *words])  # fmt: skip
    prepared, net, accelerator = (
        prepare_planned(plan),
        build_autoencoder(plan.model.autoencoder),
        run_accelerator(plan.training),
    )
    loaders = run_loaders(prepared, plan, accelerator, net.downsampling)
    objective = autoencoder_objective(net, prepared, plan.model.autoencoder, len(loaders[0]))
    run_trainer(objective, loaders, tmp_path / "run", plan, accelerator, prepared.state() | {"model": net.config})
    n = len(prepared.train)
    sentence = (
        f"training.max_steps=2 is less than one epoch: 8 of {n} training frames are seen, 4 a step; {-(-n // 4)} steps"
    )
    assert (sentence in capsys.readouterr().out) == said
