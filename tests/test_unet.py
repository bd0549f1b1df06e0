"""The U-Net and its conditions: parity with diffusers by name and number, sizes, masks, precision, refusals."""

import os

import pytest
import torch
from conftest import need

from xrddiff.models.unet import UNet

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
