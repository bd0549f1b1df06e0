"""The U-Net and its conditions: parity with diffusers by name and number, sizes, masks, precision, refusals."""

import json
import os

import pytest
import torch
from conftest import need

from xrddiff.core.errors import BadInput
from xrddiff.learn.models.conditioning import Conditions, sinusoidal
from xrddiff.learn.models.unet import SIZES, UNet, make_unet

torch.set_num_threads(1)


def pair(
    widths=(16, 32, 32),
    layers=2,
    attention=(False, True, True),
    head_dim=8,
    groups=8,
    scale_shift=False,
    classes=None,
    mid=True,
    **words,
):
    """Ours and diffusers', with the same weights: loaded strictly, so that every name and shape agrees."""
    if os.environ.get("CI"):
        import diffusers
    else:
        diffusers = need("diffusers")
    torch.manual_seed(0)
    peer = diffusers.UNet2DModel(
        in_channels=2, out_channels=1, block_out_channels=tuple(widths), layers_per_block=layers, norm_num_groups=groups,
        attention_head_dim=head_dim, num_class_embeds=classes, add_attention=mid, attn_norm_num_groups=groups,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
    )  # fmt: skip
    with torch.no_grad():
        for p in peer.parameters():  # norms start as identities, which would hide a missing one
            p.add_(0.05 * torch.randn_like(p) if p.ndim == 1 else 0)
    ours = UNet(
        2, 1, widths=widths, layers_per_block=layers, attention=attention, head_dim=head_dim, norm_groups=groups, scale_shift=scale_shift,
        mid_attention=mid, conditions=None if classes is None else {"crystals": classes}, **words,
    )  # fmt: skip
    ours.load_state_dict(peer.state_dict(), strict=True)
    return ours, peer


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(
    "words",
    [
        {},
        {"widths": (32, 64, 64, 96), "layers": 1, "attention": (False, False, True, False), "groups": 32},
        {"scale_shift": True, "head_dim": 16},
        {"classes": 5},
        {"widths": (16,), "attention": (True,), "layers": 1},
        {"mid": False, "attention": (False,) * 3},
    ],
)
def test_outputs_and_gradients_equal_diffusers(words, dtype, bound):
    ours, peer = (m.to(dtype) for m in pair(**words))
    x, t = torch.randn(3, 2, 16, 24, dtype=dtype), torch.tensor([0.0, 7.0, 431.0])
    labels = torch.tensor([4, 0, 2]) if "classes" in words else None
    out = ours(x, t, None if labels is None else {"crystals": labels})
    expected = peer(x, t, class_labels=labels).sample
    assert out.dtype == dtype and (out - expected).abs().max() < bound * expected.abs().max().clamp(min=1)

    out.square().mean().backward()
    expected.square().mean().backward()
    theirs = {k.replace("class_embedding", "class_embedding.crystals"): p for k, p in peer.named_parameters()}
    for name, p in ours.named_parameters():
        scale = theirs[name].grad.abs().max()
        assert (p.grad - theirs[name].grad).abs().max() < 10 * bound * scale + bound, name


def randomised(net):
    """Last layers begin at zero, which would hide everything else."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


WORDS = dict(widths=(8, 16), layers_per_block=1, norm_groups=4, attention=(False, True), patch=2)
FIELDS = {"crystals": 3, "hit": 2, "wavelength": [1.3, 0.02]}


def test_parameter_counts_of_the_sizes():
    counts = {}
    with torch.device("meta"):
        for size in SIZES:
            counts[size] = sum(p.numel() for p in make_unet(size).parameters())
    assert counts == dict(
        tiny=2_279_009, small=15_722_625, medium=26_621_057, large=59_856_577, xl=106_375_425, seed=144_254_593
    )
    assert counts["tiny"] <= 3e6
    widths = {size: tuple(words["widths"]) for size, words in SIZES.items()}
    assert widths["small"] == (64, 128, 256) and widths["medium"] == (64, 128, 256, 256)
    assert widths["large"] == (96, 192, 384, 384) and widths["xl"] == (128, 256, 512, 512)


def test_a_size_serves_frames_and_latents():
    assert make_unet("tiny", patch=4)(torch.randn(1, 1, 64, 64), torch.zeros(1)).shape == (1, 1, 64, 64)
    latent = make_unet("tiny", in_channels=4, out_channels=4, patch=1)
    assert latent(torch.randn(2, 4, 16, 16), torch.zeros(2)).shape == (2, 4, 16, 16)


def test_configuration_is_json_and_makes_the_network_again():
    net = randomised(UNet(mask_channel=True, scale_shift=True, conditions=FIELDS, **WORDS))
    again = UNet(**json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([0.1, 2.0])
    cond = dict(crystals=torch.tensor([1, -1]), wavelength=torch.tensor([1.31, float("nan")]))
    assert torch.equal(again(x, t, cond), net(x, t, cond)) and again.config == net.config


@pytest.mark.parametrize("scale_shift", [False, True])
def test_unknown_is_the_same_however_it_is_said(scale_shift):
    net = randomised(UNet(conditions=FIELDS, scale_shift=scale_shift, **WORDS)).double()
    x, t = torch.randn(2, 1, 16, 16).double(), torch.tensor([0.1, 2.0])
    nan = torch.full((2,), float("nan"))
    out = net(x, t)
    said = dict(crystals=torch.tensor([-1, -1]), hit=torch.tensor([-1, -1]), wavelength=nan)
    for cond in ({}, said, {"wavelength": nan}, {"crystals": torch.tensor([-1, -1])}, {"somewhere_else": nan}):
        assert torch.equal(net(x, t, cond), out)
    known = [
        dict(crystals=torch.tensor([2, -1])),
        dict(hit=torch.tensor([0, -1])),
        dict(wavelength=torch.tensor([1.3, float("nan")])),
    ]
    for cond in known:
        changed = net(x, t, cond)
        assert not torch.allclose(changed[0], out[0]) and torch.allclose(changed[1], out[1], atol=1e-12)
    net(x, t, known[2]).sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())  # and none is missing


def test_frames_of_a_batch_do_not_see_each_other():
    net = randomised(UNet(conditions=FIELDS, mask_channel=True, **WORDS)).double()
    x, t, mask = torch.randn(3, 1, 16, 16).double(), torch.tensor([0.1, 2.0, 5.0]), torch.rand(3, 1, 16, 16) > 0.2
    cond = dict(crystals=torch.tensor([0, 2, -1]), wavelength=torch.tensor([1.3, 1.28, 1.33]), mask=mask)
    together = net(x, t, cond)
    for i in range(3):
        alone = net(x[i : i + 1], t[i : i + 1], {k: v[i : i + 1] for k, v in cond.items()})
        assert torch.allclose(alone[0], together[i], atol=1e-12)


def test_mask_is_seen_and_missing_means_all_pixels():
    net = randomised(UNet(mask_channel=True, **WORDS))
    x, t, mask = torch.randn(2, 1, 16, 16), torch.zeros(2), torch.ones(2, 1, 16, 16, dtype=torch.bool)
    assert torch.equal(net(x, t), net(x, t, {"mask": mask}))
    mask[:, :, 3:6] = False
    assert not torch.allclose(net(x, t), net(x, t, {"mask": mask}))
    without = randomised(UNet(**WORDS))
    assert torch.equal(without(x, t), without(x, t, {"mask": mask}))


def test_output_is_float32_under_autocast_and_in_bfloat16():
    net = randomised(UNet(conditions=FIELDS, **WORDS))
    x, t, cond = (
        torch.randn(2, 1, 16, 16),
        torch.tensor([3.0, 900.0]),
        dict(wavelength=torch.tensor([1.3, 1.31], dtype=torch.float64)),
    )
    out = net(x, t, cond)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = net(x, t, cond)
    low = net.bfloat16()(x, t, cond)
    for other in (cast, low):
        assert other.dtype == torch.float32 and 0 < (other - out).norm() < 0.1 * out.norm()


def test_starts_as_nothing_and_all_of_it_learns():
    net = UNet(conditions={"crystals": 3, "wavelength": [1.3, 0.02]}, mask_channel=True, **WORDS)
    x, t, cond = (
        torch.randn(4, 1, 16, 16),
        torch.rand(4),
        dict(crystals=torch.tensor([0, 1, 2, 0]), wavelength=torch.tensor([1.3, 1.32, 1.27, 1.3])),
    )
    assert not net(x, t, cond).any()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):  # zeros are left one after another: head, blocks, what comes before them
        optimizer.zero_grad()
        (net(x, t, cond) - x).square().mean().backward()
        optimizer.step()
    for name, p in net.named_parameters():
        if not name.endswith("to_k.bias"):  # a softmax does not feel it
            assert p.grad is not None and p.grad.any(), name


@pytest.mark.parametrize(
    "words, found",
    [
        (dict(widths=(6, 16)), "6 channels.*4 groups"),
        (dict(widths=()), "0 widths"),
        (dict(attention=(True,)), "1 entries of attention"),
        (dict(patch=0), "patch is 0"),
        (dict(head_dim=5), "heads of 5"),
        (dict(conditions={"crystals": 0}), "0 classes"),
        (dict(conditions={"wavelength": [1.3, 0.0]}), "std > 0"),
        (dict(conditions={"wavelength": "1.3"}), "number of classes"),
        (dict(conditions={"values": 3}), "expected another one"),
    ],
)
def test_words_that_cannot_be_meant_are_refused(words, found):
    with pytest.raises(BadInput, match=found):
        UNet(**(WORDS | words))


@pytest.mark.parametrize(
    "call, found",
    [
        (dict(x=torch.zeros(2, 3, 16, 16)), r"\(2, 3, 16, 16\).*\(batch, 1, height, width\)"),
        (dict(x=torch.zeros(2, 1, 16, 18)), "16 x 18 pixels; expected multiples of its downsampling, 4"),
        (dict(noise_label=torch.zeros(3)), r"noise labels of shape \(3,\)"),
        (dict(cond={"crystals": torch.tensor([0, 3])}), "class 3; expected 0 to 2, or −1"),
        (dict(cond={"crystals": torch.tensor([-2, 1])}), "class -2"),
        (dict(cond={"crystals": torch.tensor([0.0, 1.0])}), "float32; expected integers"),
        (dict(cond={"wavelength": torch.tensor([1, 2])}), "int64; expected floats"),
        (dict(cond={"wavelength": torch.zeros(2, 1)}), "one value per frame"),
        (dict(cond={"mask": torch.ones(2, 16, 16)}), r"mask of shape \(2, 16, 16\)"),
    ],
)
def test_calls_that_do_not_fit_are_refused(call, found):
    net = UNet(conditions={"crystals": 3, "wavelength": [1.3, 0.02]}, mask_channel=True, **WORDS)
    with pytest.raises(BadInput, match=found):
        net(**(dict(x=torch.zeros(2, 1, 16, 16), noise_label=torch.zeros(2)) | call))


def test_unknown_size_names_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'small'"):
        make_unet("smal")


def test_noise_level_waves_equal_diffusers():
    embeddings = need("diffusers.models.embeddings")
    t = torch.tensor([0.0, 0.3, 17.0, 999.0])
    expected = embeddings.get_timestep_embedding(t, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert (sinusoidal(t, 64) - expected).abs().max() < 2e-4  # phases of 999 in float32
    with pytest.raises(BadInput, match="even"):
        sinusoidal(t, 3)


def test_a_noise_label_can_be_scaled_before_it_becomes_waves():
    net = randomised(UNet(label_scale=100.0, **WORDS)).double()
    plain = UNet(**(net.config | {"label_scale": 1.0})).double()
    plain.load_state_dict(net.state_dict())
    x, t = torch.randn(2, 1, 16, 16).double(), torch.tensor([-1.0, 1.1], dtype=torch.float64)
    assert torch.equal(net(x, t), plain(x, 100 * t)) and not torch.allclose(net(x, t), plain(x, t))
    old = {k: v for k, v in plain.config.items() if k != "label_scale"}  # a checkpoint from before the word
    assert UNet(**old).label_scale == 1.0


def test_conditions_of_several_classes_do_not_take_a_table_without_a_name():
    several = Conditions({"crystals": 3, "hit": 2}, 8)
    with pytest.raises(RuntimeError, match="weight"):
        several.load_state_dict({"weight": torch.zeros(3, 8)})


def test_is_one_graph_for_the_compiler():
    net = randomised(UNet(conditions=FIELDS, mask_channel=True, **WORDS))
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([0.1, 2.0])
    cond = dict(
        crystals=torch.tensor([2, -1]),
        wavelength=torch.tensor([1.3, float("nan")]),
        mask=torch.rand(2, 1, 16, 16) > 0.2,
    )
    assert torch.allclose(torch.compile(net, backend="eager", fullgraph=True)(x, t, cond), net(x, t, cond), atol=1e-6)
