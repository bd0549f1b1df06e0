"""Is a class that was asked for the class that comes out? Our U-Net beside diffusers' UNet2DModel, on labelled images.

    python -m venv PEERS && PEERS/bin/pip install -r bench/requirements.txt && PEERS/bin/pip install -e .
    OMP_NUM_THREADS=1 PEERS/bin/python bench/conditions.py [--networks …] [--steps 500] [--batch 32] [--lr 2e-3] [--noise 0.4 1.4] [--per-class 30] [--seeds 0 1 2] [--threads 1]

The images are the handwritten digits of scikit-learn (UCI, 8 x 8), brought to 32 x 32 pixels; the last fifth, which other people wrote, is held out. Both networks are of the size `tiny`, see the
image as patches of 2 x 2, have the same widths, blocks and attention, and are trained by the same loss on the same images, noise levels and noise, with the same rate and the same average of the weights; steps
alternate. Ours scales and shifts its norms by what it is told, as the presets have it; diffusers' adds it, as is its default. Both are sampled with the same sampler from the same noise. A classifier that was trained on the real training images says what came out. CPU time is that of this process.
Writes bench/results/conditions.md.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from harness import machine, make_parser, markdown, same_terms, write_results
from torch import Tensor, nn

from xrddiff.learn.diffusion.denoisers import Denoiser, measure_sigma_data
from xrddiff.learn.diffusion.guidance import classifier_free
from xrddiff.learn.diffusion.keyed_sampling import Sampler
from xrddiff.learn.diffusion.objectives import DenoisingObjective
from xrddiff.learn.diffusion.schedules import LogNormal
from xrddiff.learn.models.classifier import Classifier, ClassifierObjective
from xrddiff.learn.models.unet import SIZES, make_unet
from xrddiff.learn.training.ema import EMA

PATCH, CLASSES = 2, 10


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((x (n, 1, 32, 32) from −1 to 1, digit (n,)) for training, the same held out)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.from_numpy(data.images).float()[:, None] / 8 - 1
    x = F.interpolate(x, 32, mode="bilinear", align_corners=False)
    labels, n = torch.from_numpy(data.target), 4 * len(x) // 5
    return (x[:n], labels[:n]), (x[n:], labels[n:])


class Peer(nn.Module):
    """diffusers' UNet2DModel called as ours is; its last class is "unknown"."""

    def __init__(self) -> None:
        from diffusers import UNet2DModel

        super().__init__()
        size = SIZES["tiny"]
        self.net = UNet2DModel(
            in_channels=PATCH**2, out_channels=PATCH**2, block_out_channels=size["widths"], layers_per_block=size["layers_per_block"],
            norm_num_groups=size["norm_groups"], attention_head_dim=size["head_dim"], num_class_embeds=CLASSES + 1,
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in size["attention"]],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(size["attention"])],
        )  # fmt: skip

    def forward(self, x: Tensor, noise_label: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        label = cond["digit"]
        label = torch.where(label < 0, CLASSES, label)
        return F.pixel_shuffle(self.net(F.pixel_unshuffle(x, PATCH), noise_label, class_labels=label).sample, PATCH)


NETWORKS = {
    "ours": lambda: make_unet("tiny", patch=PATCH, scale_shift=True, conditions={"digit": CLASSES}),
    "ours, noise label × 100": lambda: make_unet(
        "tiny", patch=PATCH, scale_shift=True, label_scale=100.0, conditions={"digit": CLASSES}
    ),
    "ours, conditions added": lambda: make_unet("tiny", patch=PATCH, conditions={"digit": CLASSES}),
    "diffusers": Peer,
}


class Run:
    """A network in training: its loss, its optimiser, the average of its weights and the CPU seconds that its steps took."""

    def __init__(self, net: nn.Module, sigma_data: float, steps: int, lr: float, noise: tuple[float, float], seed: int):
        self.net, self.steps, self.lr, self.seconds = net, steps, lr, 0.0
        self.denoiser = Denoiser(net, "edm", sigma_data=sigma_data)
        self.objective = DenoisingObjective(self.denoiser, LogNormal(*noise), seed=seed)
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-3)
        self.ema = EMA(net, 0.99)

    def step(self, batch: dict, step: int) -> None:
        start = time.process_time()
        rate = min((step + 1) / 30, 0.5 * (1 + math.cos(math.pi * step / self.steps)))
        self.optimizer.param_groups[0]["lr"] = self.lr * rate
        self.objective(batch, step)["loss"].mean().backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()
        self.seconds += time.process_time() - start

    @torch.no_grad()
    def held_out_loss(self, x: Tensor, labels: Tensor) -> float:
        self.objective.eval()
        with self.ema.average_parameters():
            loss = self.objective({"x": x, "index": torch.arange(len(x)), "cond": {"digit": labels}})["loss"].mean()
        self.objective.train()
        return float(loss)

    def sample(self, labels: Tensor, guidance: float, seed: int) -> Tensor:
        denoise = self.denoiser.eval() if guidance == 1 else classifier_free(self.denoiser.eval(), guidance)
        drawn = [
            Sampler(clamp=(-1.0, 1.0)).sample(denoise, (1, 32, 32), part.tolist(), seed=seed, cond={"digit": labels[part]})
            for part in torch.arange(len(labels)).split(50)
        ]  # fmt: skip
        return torch.cat(drawn)


def train_classifier(x: Tensor, labels: Tensor, steps: int = 400) -> Classifier:
    torch.manual_seed(0)
    net = Classifier(CLASSES, sigma_data=float(x.square().mean().sqrt()))
    objective = ClassifierObjective(net, "digit", None)
    optimizer, rng = torch.optim.AdamW(net.parameters(), lr=1e-3), np.random.default_rng(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        i = torch.from_numpy(rng.choice(len(x), 32))
        objective({"x": x[i], "index": i, "cond": {"digit": labels[i]}}, step)["loss"].mean().backward()
        optimizer.step(), optimizer.zero_grad()
    return net.eval()


@torch.no_grad()
def accuracy(classifier: Classifier, x: Tensor, labels: Tensor) -> float:
    read = torch.cat([classifier(part).argmax(1) for part in x.split(100)])
    return float((read == labels).float().mean())


def compare(args: argparse.Namespace, seed: int, classifier: Classifier, train: tuple, held_out: tuple) -> dict[str, dict[str, float]]:  # fmt: skip
    """name of a row -> its figures, with networks, batches and noise of `seed`."""
    (x, labels), asked = train, torch.arange(CLASSES).repeat(args.per_class)
    sigma_data = measure_sigma_data([{"x": x}])
    first = args.networks[0]
    torch.manual_seed(seed)
    runs = {name: Run(NETWORKS[name](), sigma_data, args.steps, args.lr, args.noise, seed) for name in args.networks}
    untrained = accuracy(classifier, runs[first].sample(asked[:100], 1.0, seed), asked[:100])
    rng = np.random.default_rng(seed)
    for step in range(args.steps):
        i = torch.from_numpy(rng.choice(len(x), args.batch, replace=False))
        batch = {"x": x[i], "index": i, "cond": {"digit": labels[i]}}
        for name in sorted(runs, reverse=bool(step % 2)):
            runs[name].step(batch, step)
    rows = {}
    for name, run in runs.items():
        right, wrong = (run.held_out_loss(held_out[0], (held_out[1] + k) % CLASSES) for k in (0, 5))
        row = {"loss": right, "loss told wrong": wrong, "CPU s": run.seconds}
        with run.ema.average_parameters():
            for guidance in (1.0, 3.0):
                made = run.sample(asked, guidance, seed)
                row[f"guidance {guidance:g}"] = accuracy(classifier, made, asked)
                if name == first and guidance == 1:
                    mistaken = accuracy(classifier, made, (asked + 1) % CLASSES)
        rows[name] = row
    nothing = math.nan
    rows[f"{first}, untrained"] = {"loss": nothing, "loss told wrong": nothing, "CPU s": 0.0, "guidance 1": untrained, "guidance 3": nothing}  # fmt: skip
    rows[f"{first}, held against the next digit"] = {"loss": nothing, "loss told wrong": nothing, "CPU s": nothing, "guidance 1": mistaken, "guidance 3": nothing}  # fmt: skip
    return rows


def page(args: argparse.Namespace, real: float, rows: dict[str, list[dict[str, float]]], sizes: str) -> list[str]:
    columns = ["guidance 1", "guidance 3", "loss", "loss told wrong", "CPU s"]
    digits_of = {"CPU s": 0, "loss": 4, "loss told wrong": 4}
    lines = [
        "# Conditions that are obeyed", "", __doc__.split("\n\n")[0], "",
        f"`python bench/conditions.py --steps {args.steps} --batch {args.batch} --lr {args.lr:g} --noise {args.noise[0]:g} {args.noise[1]:g} --per-class {args.per_class} --seeds {' '.join(map(str, args.seeds))} --networks {' '.join(map(repr, args.networks))}`; {machine(f'{args.threads} thread(s)')}, torch {torch.__version__}; {sizes}.",
        "", "scikit-learn's digits at 32 × 32 pixels, 1437 for training and 360 by other writers held out. Columns: the share of generated images in which a classifier of real images reads the digit that was "
        "asked for, with guidance 1 and 3; the loss on held-out images told their digit, and told another one; CPU time of the training.",
        f"The classifier is right on {real:.3f} of the held-out real images.", "",
    ]  # fmt: skip
    table = []
    for name, found in rows.items():
        cells = []
        for c in columns:
            values = [r[c] for r in found if not math.isnan(r[c])]
            cells.append(f"{np.mean(values):.{digits_of.get(c, 3)}f}" if values else "")
        table.append([name, *cells])
    return [*lines, *markdown(["network", *columns], table)]


def main() -> None:
    parser = make_parser(__doc__, threads=1)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["ours", "diffusers"])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--noise", type=float, nargs=2, default=[0.4, 1.4], metavar=("P_MEAN", "P_STD"))
    parser.add_argument("--per-class", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    same_terms(args.threads)
    torch.set_flush_denormal(True)
    import diffusers

    train, held_out = digits()
    classifier = train_classifier(*train)
    real, rows = accuracy(classifier, *held_out), {}
    print(f"real, held out: {real:.3f}", flush=True)
    for seed in args.seeds:
        for name, row in compare(args, seed, classifier, train, held_out).items():
            rows.setdefault(name, []).append(row)
            print(seed, name, {k: round(v, 4) for k, v in row.items()}, flush=True)
    millions = (
        f"{name}: {sum(p.numel() for p in NETWORKS[name]().parameters()) / 1e6:.2f} M" for name in args.networks
    )
    sizes = f"diffusers {diffusers.__version__}; parameters of {', of '.join(millions)}"
    print(write_results("conditions", page(args, real, rows, sizes)))


if __name__ == "__main__":
    main()
