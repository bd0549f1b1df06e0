"""Conditions are learned: a model that is told the wrong class or number denoises worse."""

import pytest
import torch

from xrddiff.learn.diffusion.denoisers import Denoiser
from xrddiff.learn.diffusion.objectives import AutoregressiveObjective, DenoisingObjective
from xrddiff.learn.diffusion.schedules import LogNormal
from xrddiff.learn.models.autoregressive import AutoregressiveDiffusion
from xrddiff.learn.models.conditioning import Conditions
from xrddiff.learn.models.unet import UNet

torch.set_num_threads(1)
FIELDS = {"place": 4, "column": [8.0, 3.5]}


def spots(n: int, seed: int, field: str) -> dict:
    """A batch of frames of one spot, whose quadrant is the class `place`, or whose x is the number `column`."""
    g = torch.Generator().manual_seed(seed)
    place, (y, x) = torch.randint(4, (n,), generator=g), 2 + 12 * torch.rand(2, n, generator=g)
    if field == "place":
        y, x = 4 + 8 * (place // 2) + (y - 8) / 6, 4 + 8 * (place % 2) + (x - 8) / 6
    grid = torch.arange(16) + 0.5
    rows, columns = (torch.exp(-((grid - c[:, None]) ** 2) / 8) for c in (y, x))
    frames = 2 * rows[:, None, :, None] * columns[:, None, None, :]
    return {"x": frames, "index": torch.arange(n), "cond": {field: place if field == "place" else x}}


def make_objective(kind: str, field: str):
    torch.manual_seed(0)
    conditions = {field: FIELDS[field]}
    if kind == "unet":
        net = UNet(widths=(16, 32), layers_per_block=1, norm_groups=4, patch=2, conditions=conditions)
        return DenoisingObjective(Denoiser(net), LogNormal(0.0, 1.2))
    net = AutoregressiveDiffusion(
        size=(16, 16), patch_size=4, width=48, depth=2, heads=2, head_width=64, mlp_depth=2, conditions=conditions
    )  # fmt: skip
    return AutoregressiveObjective(net, draws=2)


# Before vectors began at random, the ratio of the losses was 1.001 for the U-Net told a class.
@pytest.mark.parametrize(
    "kind, field, ratio",
    [("unet", "place", 1.5), ("unet", "column", 1.3), ("autoregressive", "place", 1.3), ("autoregressive", "column", 1.05)],
)  # fmt: skip
def test_a_wrong_condition_costs_after_a_hundred_steps(kind, field, ratio):
    objective = make_objective(kind, field)
    optimizer = torch.optim.AdamW(objective.model.parameters(), lr=1e-3)
    for step in range(100):
        objective(spots(16, 100 + step, field), step)["loss"].mean().backward()
        optimizer.step(), optimizer.zero_grad()

    objective.eval()
    held_out = spots(256, 1, field)
    told = held_out["cond"][field]
    wrong = (told + 1) % 4 if field == "place" else 2 + (told + 4) % 12
    with torch.no_grad():
        right, mistaken, untold = (
            float(objective(held_out | {"cond": cond})["loss"].mean()) for cond in ({field: told}, {field: wrong}, {})
        )
    assert mistaken > ratio * right, f"right {right:.4f}, wrong {mistaken:.4f}"
    assert right < untold  # and what is known helps


@pytest.mark.parametrize("begin", [1.0, 0.3])
def test_vectors_begin_with_the_spread_that_is_asked_for(begin):
    torch.manual_seed(0)
    conditions = Conditions({"place": 100, "column": [5.0, 2.0]}, 256, begin)
    n = 1001
    like = torch.zeros(n, 256)
    known = {"place": torch.arange(n) % 100, "column": 5 + 2 * torch.linspace(-2, 2, n)}
    for name, value in known.items():
        vectors = conditions({name: value}, like).detach()
        assert float(vectors.var(0).mean().sqrt()) == pytest.approx(begin, rel=0.03), name
    unknown = {"place": torch.full((n,), -1), "column": torch.full((n,), float("nan"))}
    assert not conditions(unknown, like).any() and not conditions({}, like).any()
