"""What would make a training step faster? Each part of a step as it is, and in the ways that were tried in its place.

    OMP_NUM_THREADS=2 python bench/step_parts.py [--size tiny] [--rounds 15] [--threads 2]

The network is that of `model=ddpm size=S`, its maps those of a step of it (see bench/steps.py); a part runs forward and backward as often as a step does. *step*: the whole step as training makes it. Ways of a part take turns, in alternating
order; ms of CPU, minimum (median) of the rounds. *gain*: how much faster a step would be with this way, by the minima. Writes bench/results/step_parts.md and .json.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from harness import interleaved, machine, make_parser, markdown, min_median, same_terms, write_results
from steps import SIZES, make_objective, our_step
from torch import Tensor, nn

from xrddiff.config.composition import compose_config

Ways = dict[str, Callable[[], Any]]


def shapes_of(
    net: nn.Module, kind: type[nn.Module], step: Callable[[], Any]
) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """The modules of a kind and the maps that a step gives them, in order."""
    seen: list[tuple[nn.Module, tuple[int, ...]]] = []
    hooks = [
        m.register_forward_pre_hook(lambda module, given: seen.append((module, tuple(given[0].shape))))
        for m in net.modules()
        if isinstance(m, kind)
    ]
    step()
    for hook in hooks:
        hook.remove()
    return seen


def both_ways(call: Callable[..., Tensor], *tensors: Tensor) -> None:
    """Forward and backward."""
    call(*tensors).sum().backward()
    for x in tensors:
        x.grad = None


def norms(seen: list[tuple[nn.Module, tuple[int, ...]]]) -> Ways:
    """Group norm and SiLU, on every map of a step."""
    maps = [(m.num_groups, m.weight, m.bias, torch.randn(shape, requires_grad=True)) for m, shape in seen]

    def norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, groups, weight, bias, 1e-5))

    compiled = torch.compile(norm)
    last = [(g, w, b, x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()) for g, w, b, x in maps]

    def every(call: Callable[..., Tensor], over: list[Any]) -> None:
        for groups, weight, bias, x in over:
            both_ways(lambda x, w, b, groups=groups: call(x, groups, w, b), x, weight, bias)

    return {
        "as it is": lambda: every(norm, maps),
        "one compiled region": lambda: every(compiled, maps),
        "channels last": lambda: every(norm, last),
    }


def convolutions(seen: list[tuple[nn.Module, tuple[int, ...]]]) -> Ways:
    """Every convolution of a step."""
    maps = [(m, torch.randn(shape, requires_grad=True), m.weight) for m, shape in seen]
    last = [tuple(t.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for t in (x, w)) for _, x, w in maps]  # fmt: skip

    def every(over: list[Any]) -> None:
        for (m, _, _), (x, w) in zip(maps, over, strict=True):
            both_ways(lambda x, w, m=m: F.conv2d(x, w, m.bias, m.stride, m.padding), x, w)

    plain = [(x, w) for _, x, w in maps]
    return {"as it is": lambda: every(plain), "channels last, weights too": lambda: every(last)}


def updates(net: nn.Module) -> Ways:
    """Clipping, AdamW and averages: over a list of tensors, and over one flat tensor."""
    from diffusers.training_utils import EMAModel

    parameters = [p for p in net.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = torch.randn_like(p)
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
    flat.grad = torch.randn_like(flat)

    def way(params: list[nn.Parameter]) -> Callable[[], None]:
        optimizer, average = torch.optim.AdamW(params, lr=1e-9, fused=True), EMAModel(params, decay=0.999, foreach=True)

        def update() -> None:
            nn.utils.clip_grad_norm_(params, 1e9)
            optimizer.step()
            average.step(params)

        return update

    return {"as it is": way(parameters), "one flat tensor": way([flat])}


def joins(seen: list[tuple[nn.Module, tuple[int, ...]]]) -> Ways:
    """A convolution of joined maps, against the sum of two convolutions: of those that have twice the channels that they give."""
    wide = [(m, s) for m, s in seen if s[1] >= 2 * m.out_channels and m.kernel_size[0] > 1]
    halves = [(m, *(torch.randn(s[0], s[1] // 2, *s[2:], requires_grad=True) for _ in range(2))) for m, s in wide]

    def joined() -> None:
        for m, a, b in halves:
            both_ways(lambda a, b, w, m=m: F.conv2d(torch.cat([a, b], 1), w, m.bias, 1, m.padding), a, b, m.weight)

    def split() -> None:
        for m, a, b in halves:
            c = a.shape[1]
            both_ways(lambda a, b, w, m=m, c=c: F.conv2d(a, w[:, :c], m.bias, 1, m.padding) + F.conv2d(b, w[:, c:], None, 1, m.padding), a, b, m.weight)  # fmt: skip

    return {"as it is": joined, "two convolutions, no join": split}


def main() -> None:
    parser = make_parser(__doc__, rounds=15, threads=2)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    args = parser.parse_args()
    same_terms(args.threads, keep_freed=True)
    torch.manual_seed(0)
    frames, pixels, _ = SIZES[args.size]
    with ExitStack() as stack:
        cfg = compose_config(["model=ddpm", f"size={args.size}"])
        objective, loader = make_objective(cfg, frames, pixels)
        step = our_step(cfg, objective, loader, stack)
        net = objective.model
        convs, groups = (shapes_of(net, kind, step) for kind in (nn.Conv2d, nn.GroupNorm))
        whole = interleaved({"step": step}, args.rounds, 2)["step"].cpu
        parts = {
            "convolutions": convolutions(convs),
            "norm and SiLU": norms(groups),
            "joined maps": joins(convs),
            "clipping, AdamW, averages": updates(net),
        }
        rows = [["step", "as it is", min_median(whole, ".1f", 1e3), ""]]
        data: dict[str, Any] = {"step": whole}
        for part, ways in parts.items():
            times = {name: t.cpu for name, t in interleaved(ways, args.rounds, 2).items()}
            data[part] = times
            usual = min(times["as it is"])
            for name, t in times.items():
                gain = "" if name == "as it is" else f"{min(whole) / (min(whole) - usual + min(t)):.3f}"
                rows.append([part, name, min_median(t, ".1f", 1e3), gain])
    about = f"`OMP_NUM_THREADS={args.threads} python bench/step_parts.py {shlex.join(sys.argv[1:])}`".replace(" `", "`")
    counted = Counter(shape for _, shape in groups).most_common(1)[0][0]
    lines = ["# Parts of a training step, and what was tried in their place", "", f"{about}; {machine('torch', 'day')}; {args.threads} threads, maps up to {' × '.join(map(str, counted))}.", ""]  # fmt: skip
    lines += [__doc__.split("\n\n")[2].replace(" Writes bench/results/step_parts.md and .json.", ""), ""]
    print(write_results("step_parts", [*lines, *markdown(["part", "way", "ms", "gain"], rows, "llr")], data))


if __name__ == "__main__":
    main()
