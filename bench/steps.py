"""Time and peak memory of a training step: every model and size, as it comes and with each word that changes how it is computed, beside diffusers' network of the same architecture.

    python -m venv PEERS && PEERS/bin/pip install -r bench/requirements.txt && PEERS/bin/pip install -e .
    OMP_NUM_THREADS=1 PEERS/bin/python bench/steps.py [--models ddpm] [--sizes tiny small] [--variants eager compile] [--rounds 5] [--device cpu] [--trial]

Ours is the step of a training (`training.trainer.Trainer.step`): forward, loss, backward, norm and clipping of the gradient, AdamW, averaged weights; networks are those of `model=M size=S`. Theirs is a plain loop around diffusers'
AutoencoderKL, VQModel or UNet2DModel with the same weights by name, on the same frames: forward, mean squared error (and KL or commitment), backward, `clip_grad_norm_`, `torch.optim.AdamW`, diffusers' `EMAModel`. Both sides have the
allocator settings of a run, the same threads, and AdamW and averages in one pass over all weights (`fused=True`, `foreach=True`); of each precision, memory layout and compilation there is a row of ours and one of theirs.
`differ` is the largest difference of what the two networks give, over the largest value.
Every row has a process of its own; those of a model and size take turns, a step each, in alternating order (one process after another where the weights are too many to be held together). Times are CPU time on a CPU (others on the machine move it
less) and wall time on a GPU, minimum (median) of the rounds, ms. Memory is the most that a step needs beyond what the process has before there is a network, MB: weights, averages, moments, gradients, activations. Compiling is in neither.
Ratios compare rows of the same terms, and the best of ours with the best of theirs in the same precision. `products` is the share of our step that convolutions and matrix products take, in a profile of one step; `at most` is what the
ratio would be if all the rest of our step took no time.

Rows are put into bench/results/steps.json and .md, beside those that are there; `--trial` only prints them, `--table` writes the table again.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import multiprocessing
import os
import platform
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import repeat
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL as TheirKL
from diffusers import UNet2DModel, VQModel
from diffusers.training_utils import EMAModel
from harness import make_parser, markdown, memory, min_median, read_results, same_terms, turns, write_results
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from xrddiff.config.active_settings import unused_words
from xrddiff.config.composition import compose_config
from xrddiff.config.plan import ModelPlan, compose_plan
from xrddiff.config.train_options import TrainOptions
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.transforms.pipelines import make_transform
from xrddiff.judge.inference.model_from_plan import build_autoregressive, build_network, build_objective
from xrddiff.learn.diffusion.denoisers import Denoiser
from xrddiff.learn.loading.loader import FrameLoader
from xrddiff.learn.models.autoencoder import Autoencoder, AutoencoderKL
from xrddiff.learn.models.unet import UNet
from xrddiff.learn.recipes.autoencoders import autoencoder_objective, build_autoencoder
from xrddiff.learn.training.batches import Place, batches_from
from xrddiff.learn.training.compute import computed
from xrddiff.learn.training.steps import set_mode, to_device
from xrddiff.learn.training.trainer import Trainer

MODELS = {
    "vae_kl": ["model=vae_kl"],
    "vae_kl f8": ["model=vae_kl", "model.downsampling=8"],
    "vq": ["model=vq"],
    "fsq": ["model=vq", "model.quantizer=fsq"],
    "ddpm": ["model=ddpm"],
    "latent_diff": ["model=latent_diff"],
    "dit": ["model=ddpm", "model.network=dit"],
    "diff": ["model=diff"],
}
SIZES = {
    "tiny": (8, 128, 5),
    "small": (4, 64, 3),
    "medium": (1, 64, 3),
    "large": (1, 64, 3),
    "xl": (1, 64, 3),
}  # frames, pixels, rounds
ON_GPU = 8  # times as many frames on a GPU
VARIANTS = {
    "eager": [],
    "channels_last": ["training.channels_last=true"],
    "bf16": ["training.mixed_precision=bf16"],
    "channels_last+bf16": ["training.channels_last=true", "training.mixed_precision=bf16"],
    "checkpointed": ["training.gradient_checkpointing=true"],
    "compile": ["training.compile=true"],
    "compile+bf16": ["training.compile=true", "training.mixed_precision=bf16"],
    "channels_last+compile": ["training.channels_last=true", "training.compile=true"],
    "channels_last+compile+bf16": [
        "training.channels_last=true",
        "training.compile=true",
        "training.mixed_precision=bf16",
    ],
}
THEIRS = "diffusers "  # followed by the terms, which are those of a variant of ours
PEERS = tuple(THEIRS + variant for variant in VARIANTS if variant != "checkpointed")
TOGETHER = 9e9  # bytes that the weights, moments, gradients and averages of processes that take turns may need
Step = Callable[[], Any]


# --- ours ---------------------------------------------------------------------------------------------------------------


class Latents:
    """What `LatentLoader` serves, of noise: the latents of one batch of frames."""

    def __init__(self, batch: int, channels: int, side: int):
        self.num_frames = self.batch_size = batch
        self.shape, self.x = (channels, side, side), torch.randn(batch, channels, side, side)

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        yield {"x": self.x, "mask": None, "index": torch.arange(self.num_frames), "cond": {}}


def make_objective(plan: ModelPlan, batch: int, pixels: int) -> tuple[nn.Module, Any]:
    """The loss of a run's model, and a loader of one batch of frames of Poisson counts, or of latents."""
    counts = np.random.default_rng(0).poisson(3.0, (batch, pixels, pixels)).astype(np.uint16)
    frames = make_frames(counts, wavelength=1.3)
    transform = make_transform("asinh").fit(frames, np.arange(batch))
    loader, space = FrameLoader(frames, transform, batch_size=batch, prefetch=0, cond=[]), plan.autoencoder
    if plan.denoiser is None:
        prepared = SimpleNamespace(frames=frames, transform=transform)
        return autoencoder_objective(build_autoencoder(space), prepared, space, 100), loader
    if space is not None:
        loader = Latents(batch, space.latent_channels, pixels // space.downsampling)
    shape = (space.latent_channels if plan.latent else 1, *loader.shape[-2:])
    if plan.autoregressive:
        model = build_autoregressive(plan.denoiser, shape, space, {}, (0.5, (-1.0, 1.0)))
    else:
        net = build_network(plan.denoiser, shape[0], space, {})
        model = Denoiser(net, plan.denoiser.parameterisation, sigma_data=0.5)
    return build_objective(model, plan.denoiser), loader


def our_step(o: TrainOptions, objective: nn.Module, loader: Any, stack: ExitStack) -> Step:
    """A step of the training of a model, which `stack` ends."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    trainer = Trainer(objective, loader, folder, o, batch_size=loader.batch_size, progress=False)
    set_mode(objective, True)
    stack.enter_context(computed(objective.model, **o.changes))
    batches = repeat(next(batches_from(loader, Place())))

    def step() -> None:
        trainer.step(batches)
        trainer.watch.forget()
        trainer.tables.meter.clear()

    return step


# --- theirs -------------------------------------------------------------------------------------------------------------


def peer_of(ours: nn.Module) -> nn.Module:
    """diffusers' network of the same architecture with the same weights, which both now have."""

    c = ours.config
    if isinstance(ours, UNet):
        peer = UNet2DModel(
            in_channels=ours.conv_in.in_channels, out_channels=ours.conv_out.out_channels, block_out_channels=tuple(c["widths"]),
            layers_per_block=c["layers_per_block"], norm_num_groups=c["norm_groups"], attention_head_dim=c["head_dim"],
            resnet_time_scale_shift="scale_shift" if c["scale_shift"] else "default", add_attention=c["mid_attention"], attn_norm_num_groups=c["norm_groups"],
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in c["attention"]],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(c["attention"])],
        )  # fmt: skip
    else:
        levels = len(c["widths"])
        words = dict(
            in_channels=ours.encoder.conv_in.in_channels, out_channels=ours.decoder.conv_out.out_channels,
            latent_channels=c["latent_channels"], block_out_channels=tuple(c["widths"]), layers_per_block=c["layers_per_block"],
            norm_num_groups=c["norm_groups"], mid_block_add_attention=c["mid_attention"],
            down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        )  # fmt: skip
        kl = isinstance(ours, AutoencoderKL)
        peer = TheirKL(**words) if kl else VQModel(num_vq_embeddings=c["quantizer_words"]["codes"], **words)
    lacking, other = ours.load_state_dict(peer.state_dict(), strict=False)
    assert all(name.startswith("quantize") for name in [*lacking, *other]), (lacking, other)
    return peer


def shown(config: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """What a network sees of a batch: frames and, if it has a channel for it, their mask, blocks of pixels folded into channels."""
    x = batch["x"]
    return F.pixel_unshuffle(
        torch.cat([x, batch["mask"].to(x.dtype)], 1) if config["mask_channel"] else x, config["patch"]
    )


def peer_loss(peer: nn.Module, config: dict[str, Any], batch: dict[str, Any]) -> Callable[[], Tensor]:
    """Forward pass and loss of diffusers' network on a batch."""
    x, seen, patch = batch["x"], shown(config, batch), config["patch"]
    folded = x.shape[1] * patch**2

    def unet() -> Tensor:
        noise, sigma = torch.randn_like(x), torch.rand(len(x), device=x.device)
        noisy = seen.clone()
        noisy[:, :folded] += sigma[:, None, None, None] * F.pixel_unshuffle(noise, patch)
        return (F.pixel_shuffle(peer(noisy, sigma).sample, patch).float() - noise).square().mean()

    def kl() -> Tensor:
        posterior = peer.encode(seen).latent_dist
        found = F.pixel_shuffle(peer.decode(posterior.sample()).sample, patch)
        return (found.float() - x).square().mean() + 1e-4 * posterior.kl().mean()

    def vq() -> Tensor:
        found = peer(seen)
        return (F.pixel_shuffle(found.sample, patch).float() - x).square().mean() + 0.25 * found.commit_loss.mean()

    return {"UNet2DModel": unet, "AutoencoderKL": kl, "VQModel": vq}[type(peer).__name__]


def in_channels_last(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with its maps in channels-last layout."""
    maps = {k: v for k, v in batch.items() if isinstance(v, Tensor) and v.ndim == 4}
    return batch | {name: x.contiguous(memory_format=torch.channels_last) for name, x in maps.items()}


@torch.no_grad()
def difference(peer: nn.Module, ours: nn.Module, batch: dict[str, Any]) -> float:
    """How far apart the outputs of two networks are, over the largest value: of a denoiser, or of encoder and decoder."""
    seen = shown(ours.config, batch)
    if type(peer).__name__ == "UNet2DModel":
        t = torch.linspace(0, 1, len(seen), device=seen.device)
        cond = {"mask": batch["mask"]} if ours.config["mask_channel"] else {}
        pairs = [(ours(batch["x"], t, cond), F.pixel_shuffle(peer(seen, ours.label_scale * t).sample, ours.patch))]
    else:
        z = peer.quant_conv(peer.encoder(seen))
        code = z[:, : ours.latent_channels]
        theirs = F.pixel_shuffle(peer.decoder(peer.post_quant_conv(code)), ours.patch)
        pairs = [(ours._encode(batch["x"], batch["mask"]), z), (Autoencoder.decode(ours, code), theirs)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def peer_step(peer: nn.Module, loss: Callable[[], Tensor], *, bf16: bool) -> Step:
    """A step of a plain loop."""

    parameters = list(peer.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    average = EMAModel(parameters, decay=0.9999, foreach=True)

    def step() -> None:
        with torch.autocast(parameters[0].device.type, dtype=torch.bfloat16, enabled=bf16):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(parameters)

    return step


# --- a process for each row ----------------------------------------------------------------------------------------------


def megabytes(what: str) -> float:
    """VmRSS, or VmHWM, its largest value."""
    return memory(what) / 1e6


def trim() -> None:
    """Give memory that nobody uses back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def measure_memory(step: Step, gpu: bool, before: float) -> float:
    """The most that one step needs, MB."""
    trim()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the largest value begins anew
    step()
    return megabytes("VmHWM") - before


def share_of_products(step: Step, gpu: bool) -> float:
    """The share of a step that convolutions and matrix products take."""
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu) as seen:
        step()
    own = [(e.key, e.self_device_time_total if gpu else e.self_cpu_time_total) for e in seen.key_averages()]
    return sum(t for name, t in own if re.fullmatch(r"aten::(.*conv.*|\w*mm)", name)) / sum(t for _, t in own)


def worker(pipe: Connection, model: str, size: str, variant: str, threads: int, device: str, cache: str) -> None:
    """Get ready to make steps; then make one for each message, answered by its seconds. `cache`: of the compiler."""
    same_terms(threads)
    torch.manual_seed(0)
    gpu, (frames, pixels, _) = device == "cuda", SIZES[size]
    frames *= ON_GPU if gpu else 1
    plan = compose_plan([*MODELS[model], f"size={size}", *VARIANTS.get(variant, [])])
    stack = ExitStack()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    if "compile" in variant:  # what the compiler itself needs is there before
        torch.compile(nn.Linear(2, 2).to(device))(torch.ones(2, 2, device=device)).sum().backward()
    trim()
    before = megabytes("VmRSS")
    clock = time.perf_counter if gpu else time.process_time
    with stack:
        objective, loader = make_objective(plan.model, frames, pixels)
        row = dict(parameters=sum(p.numel() for p in objective.model.parameters()), frames=[frames, *loader.shape])
        same_terms(threads, keep_freed=True)  # as every run does, and the peer is to have it too
        if variant in PEERS:
            ours, batch = objective.model.to(device), to_device(next(loader.batches(0)), torch.device(device))
            peer, terms = peer_of(ours).to(device), variant.removeprefix(THEIRS).split("+")
            if variant == PEERS[0]:
                row["differ"] = difference(peer, ours, batch)
            if "channels_last" in terms:
                peer, batch = peer.to(memory_format=torch.channels_last), in_channels_last(batch)
            if "compile" in terms:
                for part in [peer] if isinstance(peer, UNet2DModel | VQModel) else [peer.encoder, peer.decoder]:
                    part.forward = torch.compile(part.forward)
            step = peer_step(peer, peer_loss(peer, ours.config, batch), bf16="bf16" in terms)
            del objective, ours
        else:
            step = our_step(plan.training.denoiser or plan.training.autoencoder, objective, loader, stack)
        began = os.times()
        step()
        row["first"] = round(sum(os.times()[:4]) - sum(began[:4]), 1)  # with the processes that compile
        step()
        row["memory"] = round(measure_memory(step, gpu, before), 1)
        pipe.send(row)
        while pipe.recv():
            start = clock()
            step()
            if gpu:
                torch.cuda.synchronize()
            pipe.send(clock() - start)
        pipe.send(share_of_products(step, gpu) if variant == "eager" else None)


class Process(NamedTuple):
    """A process that makes steps, the pipe to it, and what it said when it was ready."""

    process: Any
    pipe: Connection
    row: dict[str, Any]

    def turn(self) -> float:
        """The time of a step, ms."""
        self.pipe.send(True)
        return 1e3 * self.pipe.recv()

    def stop(self) -> dict[str, Any]:
        """Its row, with what it says at its end."""
        self.pipe.send(False)
        products = self.pipe.recv()
        self.process.join()
        return self.row if products is None else self.row | {"products": round(products, 3)}


def start(model: str, size: str, caches: dict[str, str], args: argparse.Namespace) -> dict[str, Process]:
    """Processes that are ready to make steps: of each variant in `caches`, the folder where compiled code is kept."""
    context = multiprocessing.get_context(
        "spawn" if args.device == "cuda" else "fork"
    )  # a fork has imported everything
    begun = {}
    for variant, cache in caches.items():
        pipe, end = context.Pipe()
        given = (end, model, size, variant, args.threads, args.device, cache)
        process = context.Process(target=worker, args=given, daemon=True)
        process.start()
        end.close()
        begun[variant] = process, pipe
    return {variant: Process(process, pipe, pipe.recv()) for variant, (process, pipe) in begun.items()}


def applies(model: str, variant: str) -> bool:
    """Do the words of a variant have an effect on a model; has diffusers such a network?"""
    if variant in PEERS:
        return model not in ("fsq", "dit", "diff") and applies(model, variant.removeprefix(THEIRS))
    unused = unused_words(compose_config([*MODELS[model], *VARIANTS[variant]]))
    return not any(word.partition("=")[0] in unused for word in VARIANTS[variant])


def race(
    model: str, size: str, variants: list[str], args: argparse.Namespace, caches: dict[str, str]
) -> list[dict[str, Any]]:
    """The rows of a model and size; `caches`: an empty folder for each variant."""
    rows, rounds = [], args.rounds or SIZES[size][2]
    first = variants[0]
    ready = start(model, size, {first: caches[first]}, args)
    need = 20 * ready[first].row["parameters"]  # weights, averages, two moments and gradients, each of 4 bytes
    together = need * len(variants) < TOGETHER
    for group in [variants] if together else [[name] for name in variants]:
        ready |= start(model, size, {name: caches[name] for name in group if name not in ready}, args)
        times: dict[str, list[float]] = {name: [] for name in group}
        for name in turns(group, rounds):
            times[name].append(round(ready[name].turn(), 2))
        for name, ms in times.items():
            about = dict(model=model, size=size, variant=name) | ready[name].stop()
            if "compile" in name and name in VARIANTS:  # as the next training of this network begins
                about["again"] = start(model, size, {name: caches[name]}, args)[name].stop()["first"]
            rows.append(about | dict(ms=ms, together=together))
            print(
                f"{model} {size} {name}: {min_median(ms, '.0f')} ms, {rows[-1]['memory']:.0f} MB, first step {rows[-1]['first']} s",
                flush=True,
            )
    return rows


# --- what is written ------------------------------------------------------------------------------------------------------


def cases(rows: list[dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """Of each model and size the rows by variant."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for model, size in itertools.product(MODELS, SIZES):
        for row in rows:
            if (row["model"], row["size"]) == (model, size):
                found.setdefault((model, size), {})[row["variant"]] = row
    return list(found.values())


def ratio(case: dict[str, dict[str, Any]], peer: str | None, ours: str | None) -> str:
    """Time of the peer over ours: of the minima (and of the medians)."""
    if peer not in case or ours not in case:
        return ""
    a, b = case[peer]["ms"], case[ours]["ms"]
    return f"{min(a) / min(b):.2f} ({median(a) / median(b):.2f})"


def best(case: dict[str, dict[str, Any]], theirs: bool, bf16: bool) -> str | None:
    """The fastest row of one side in one precision."""
    rows = [v for v in case if (v in PEERS) == theirs and v.endswith("bf16") == bf16]
    return min(rows, key=lambda v: min(case[v]["ms"]), default=None)


def bound(case: dict[str, dict[str, Any]]) -> list[str]:
    """What the ratio could be at most, the share of products, and how far apart the outputs are."""
    ours, products = case["eager"], case["eager"]["products"]
    most = f"{min(case[PEERS[0]]['ms']) / (products * min(ours['ms'])):.2f}" if PEERS[0] in case else ""
    return [most, f"{products:.0%}", f"{case[PEERS[0]]['differ']:.0e}"]


def table(results: dict[str, Any]) -> str:
    """The results as Markdown: for every device the times, the ratios and the memory."""
    about, _, method, _ = __doc__.split("\n\n")  # without the commands
    lines = ["# A training step: time and memory", "", about, "", method, ""]
    for found in results.values():
        every = cases(found["rows"])
        names = [v for v in [*VARIANTS, *PEERS] if any(v in case for case in every)]
        first = [next(iter(case.values())) for case in every]
        heads = [
            [r["model"], r["size"], f"{r['parameters'] / 1e6:.2f} M", " × ".join(map(str, r["frames"]))] for r in first
        ]
        head = ["model", "size", "parameters", "batch"]
        times = [[min_median(case[v]["ms"], ".0f") if v in case else "" for v in names] for case in every]
        memory = [[f"{case[v]['memory']:.0f}" if v in case else "" for v in names] for case in every]
        commands = sorted({f"`{row['command']}`" for row in found["rows"]})
        lines += [f"## {found['about']}", "", ", ".join(commands), "", "ms per step:", ""]
        lines += [*markdown(head + names, [a + b for a, b in zip(heads, times, strict=True)], "l"), ""]
        rows = [a[:2] + b for a, b in zip(heads, memory, strict=True)]
        lines += ["MB at most:", "", *markdown(head[:2] + names, rows, "l"), ""]
        compiled = [
            f"{r['model']} {r['size']} {r['variant']} {r['first']:.0f} ({r['again']:.1f})"
            for r in found["rows"]
            if "again" in r
        ]
        if compiled:
            what = "s of CPU time of the first step, with compiling (of the next training of this network)"
            lines += [f"{what}: {', '.join(compiled)}.", ""]
        raced = [(a, case) for a, case in zip(heads, every, strict=True) if PEERS[0] in case and "eager" in case]
        lines += ["Time of diffusers over ours, of the minima (of the medians); above 1, ours is faster:", ""]
        pairs = [(THEIRS + v, v) for v in VARIANTS if any(ratio(case, THEIRS + v, v) for case in every)]
        title = [*head[:2], *(v for _, v in pairs), "best", "best, bf16", "at most", "products", "differ"]
        rows = [
            about[:2]
            + [ratio(case, *pair) for pair in pairs]
            + [ratio(case, best(case, True, bf16), best(case, False, bf16)) for bf16 in (False, True)]
            + bound(case)
            for about, case in raced
        ]
        lines += [*markdown(title, rows, "l"), ""]
    return "\n".join(lines)


def main() -> None:
    parser = make_parser(__doc__, threads=1)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "small", "large"])
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, *PEERS], default=[*VARIANTS, *PEERS])
    parser.add_argument("--rounds", type=int, help="of each row; default: those of its size")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--trial", action="store_true", help="write nothing")
    parser.add_argument("--table", action="store_true", help="write the table again, from the rows that are there")
    args = parser.parse_args()
    if args.table:
        write_results("steps", table(read_results("steps", {})))
        return
    command = f"OMP_NUM_THREADS={args.threads} python bench/steps.py {shlex.join(sys.argv[1:])}".strip()
    for size in args.sizes:
        for model in args.models:
            if not (variants := [v for v in args.variants if applies(model, v)]):
                continue
            with tempfile.TemporaryDirectory() as folder:
                caches = {name: f"{folder}/{k}" for k, name in enumerate(variants)}
                new = [row | {"command": command} for row in race(model, size, variants, args, caches)]
            if args.trial:
                continue
            results = read_results("steps", {})
            key = args.device if args.threads == 1 else f"{args.device}, {args.threads} threads"
            found = results.setdefault(key, {"rows": []})
            name = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
            found["about"] = (
                f"{name}, {args.threads} thread(s); torch {torch.__version__}, diffusers {diffusers.__version__}"
            )
            again = {(r["model"], r["size"], r["variant"]) for r in new}
            found["rows"] = [r for r in found["rows"] if (r["model"], r["size"], r["variant"]) not in again] + new
            write_results("steps", table, results)


if __name__ == "__main__":
    main()
