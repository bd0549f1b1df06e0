"""`photon_net` with a part taken away, for bench/growth.py: a plug-in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from xrddiff.core.registry import register
from xrddiff.learn.models.photon_net import PhotonNet, Steps


@register("network", "guess_alone", channels=(1,), help="photon_net: no factor of the U-Net")
class GuessAlone(PhotonNet):
    def _trusted(self, near: Tensor) -> tuple[Tensor, ...]:
        return (near.new_zeros(len(near), 1, 1, 1),) * 3


@register("network", "every_pixel", channels=(1,), help="photon_net: the factor on the background is taken as it is")
class EveryPixel(PhotonNet):
    def _trusted(self, near: Tensor) -> tuple[Tensor, ...]:
        return (near.new_ones(len(near), 1, 1, 1),) * 3


@register("network", "no_levels", channels=(1,), help="photon_net: no level is learnt")
class NoLevels(PhotonNet):
    def _level(self, kind: str, near: Tensor, about: Steps) -> Tensor:
        return torch.ones_like(about.far)


@register("network", "untold", channels=(1,), help="photon_net: labels change nothing that is known before any photon")
class Untold(PhotonNet):
    def _known(self, likely: Tensor, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: v.exp().view(1, 1, 1, 1) for name, v in self.known.items()}
