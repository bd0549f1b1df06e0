"""The diffusion transformer: its blocks and the whole network are those of diffusers, weight for weight."""

from __future__ import annotations

import pytest
import torch
from conftest import need

from xrddiff.learn.models.transformer import DiT, DiTBlock

# diffusers' names -> ours, inside a block
NAMES = {
    "norm1.linear": "modulation",
    "attn1.to_out.0": "attention.to_out",
    "ff.net.0.proj": "mlp.0",
    "ff.net.2": "mlp.2",
}


def copy_block(theirs: dict[str, torch.Tensor], ours: DiTBlock) -> None:
    """The weights of a `BasicTransformerBlock` in a `DiTBlock`; every weight but those of the embeddings must be used."""
    state, left = {}, dict(theirs)
    for kind in ("weight", "bias"):
        state |= {f"{mine}.{kind}": left.pop(f"{name}.{kind}") for name, mine in NAMES.items()}
        state[f"attention.to_qkv.{kind}"] = torch.cat([left.pop(f"attn1.to_{c}.{kind}") for c in "qkv"])
    assert [name for name in left if not name.startswith("norm1.emb.")] == []
    ours.load_state_dict(state)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """`module` with weights that are nowhere zero."""
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=generator)
    return module.eval()


@pytest.mark.parametrize(("width", "heads"), [(32, 2), (48, 6)])
def test_a_block_is_that_of_diffusers(width, heads):
    attention = need("diffusers.models.attention")
    torch.manual_seed(0)
    words = dict(activation_fn="gelu-approximate", num_embeds_ada_norm=10, attention_bias=True, norm_eps=1e-6)
    words |= dict(norm_type="ada_norm_zero", norm_elementwise_affine=False)
    theirs = shaken(attention.BasicTransformerBlock(width, heads, width // heads, **words))
    ours = DiTBlock(width, heads)
    copy_block(theirs.state_dict(), ours)
    x, t, kind = torch.randn(3, 20, width), torch.tensor([3, 500, 999]), torch.tensor([0, 4, 9])
    with torch.no_grad():
        c = theirs.norm1.emb(t, kind, hidden_dtype=x.dtype)
        wanted = theirs(x, timestep=t, class_labels=kind)
        assert (wanted - x).abs().max() > 0.1  # the gates are open
        torch.testing.assert_close(ours(x, c), wanted, rtol=0, atol=1e-5)


def test_the_network_is_that_of_diffusers():
    module = need("diffusers.models.transformers.dit_transformer_2d")
    torch.manual_seed(0)
    words = dict(num_attention_heads=4, attention_head_dim=8, in_channels=2, num_layers=3, sample_size=8, patch_size=2)
    theirs = shaken(module.DiTTransformer2DModel(**words, num_embeds_ada_norm=5, norm_eps=1e-6))
    ours = DiT(2, 2, patch=2, width=32, depth=3, heads=4)
    state = theirs.state_dict()
    for i, block in enumerate(ours.blocks):
        prefix = f"transformer_blocks.{i}."
        copy_block({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, block)
    ours.embed.load_state_dict({k: state[f"pos_embed.proj.{k}"] for k in ("weight", "bias")})
    ours.modulation_out.load_state_dict({k: state[f"proj_out_1.{k}"] for k in ("weight", "bias")})
    # diffusers orders a token's numbers (row, column, channel), ours are (channel, row, column)
    order = torch.arange(8).view(2, 2, 2).permute(2, 0, 1).flatten()
    ours.proj_out.load_state_dict({k: state[f"proj_out_2.{k}"][order] for k in ("weight", "bias")})

    x, t, kind = torch.randn(2, 2, 16, 16)[:, :, :16, :16], torch.tensor([7, 800]), torch.tensor([1, 3])
    x = x[..., :8, :8]
    with torch.no_grad():
        c = theirs.transformer_blocks[0].norm1.emb(t, kind, hidden_dtype=x.dtype)
        wanted = theirs(x, timestep=t, class_labels=kind).sample
        maps = ours.embed(x).flatten(2).transpose(1, 2)
        h = theirs.pos_embed(x)
        # places are another convention: the same waves in another order
        assert (h - maps).abs().max() > 0.1
        for mine, block in zip(ours.blocks, theirs.transformer_blocks, strict=True):
            own = block.norm1.emb(t, kind, hidden_dtype=x.dtype)
            torch.testing.assert_close(mine(h, own), block(h, timestep=t, class_labels=kind), rtol=0, atol=1e-5)
            h = mine(h, own)
        torch.testing.assert_close(ours._head(h, c, 4), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (8, 24), (40, 16)])
def test_any_size_that_the_patches_divide(size):
    torch.manual_seed(0)
    net = shaken(DiT(patch=4, width=16, depth=1, heads=2, mask_channel=True))
    x = torch.randn(2, 1, *size)
    mask = torch.ones(2, 1, *size, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(net(x, torch.zeros(2)), net(x, torch.zeros(2), {"mask": mask}))
        # a frame does not see the frames beside it
        torch.testing.assert_close(net(x[:1], torch.zeros(1)), net(x, torch.zeros(2))[:1], rtol=0, atol=1e-5)


def test_gradients_reach_every_weight():
    torch.manual_seed(0)
    net = shaken(DiT(patch=4, width=16, depth=2, heads=2, mask_channel=True, conditions={"kind": 2, "q": [1.0, 0.5]}))
    cond = {"kind": torch.tensor([0, 1]), "q": torch.tensor([0.5, float("nan")])}
    net(torch.randn(2, 1, 8, 8), torch.zeros(2), cond).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
