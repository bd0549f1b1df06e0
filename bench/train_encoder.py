"""Trains the encoder of diffraction frames that is in the package (nbs/judge/metrics/set_summaries.ipynb), and writes its record.

    OMP_NUM_THREADS=1 python bench/train_encoder.py [--steps 900] [--seed 0] [--out xrddiff/judge/weights]

Scenes are simulated with random crystals, beams and detectors, and measured with random dose, point spread, gain, readout noise and masks. The encoder answers what the scene holds (QUESTIONS) from its
features. How well it answers is written for crystals and detectors that it was not trained on, with the weights as they are stored.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from harness import make_parser, same_terms
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch import nn

from xrddiff.core.files import sha256, write_json
from xrddiff.core.seeds import numpy_rng
from xrddiff.data.frames.frames import peaks_table
from xrddiff.judge.metrics.set_summaries import ENCODER, FrameEncoder, encoder_input
from xrddiff.physics.simulation.crystal import Crystal, Wilson
from xrddiff.physics.simulation.experiments import Background, Beam, Detector, Experiment, Sample
from xrddiff.physics.simulation.simulate import draw_shots, simulate

SIDE, SHOTS = 128, 40
GROUPS = ("P 1", "P 1 21 1", "P 21 21 21", "P 43 21 2", "P 61 2 2", "I 21 3")
RADII = np.array([0, 0.35, 0.6, 2])  # zones of the spots, of the largest radius
QUESTIONS = (
    "spots", "spots, small angles", "spots, middle", "spots, large angles",
    "background, ring 1", "background, ring 2", "background, ring 3", "background, ring 4",
    "spot signal, median", "spot signal, 90 %", "spot signal, largest",
    "ice", "crystals", "spot spacing, smallest", "spot spacing, middle", "spot spacing, largest",
    "spot width", "share of readout noise",
)  # fmt: skip


def cell_of(group: str, edges: Sequence[float], angles: Sequence[float]) -> tuple[float, ...]:
    """The cell with these edges and angles, as far as the group leaves them free."""
    (a, b, c), (_, beta, _) = edges, angles
    return {
        "P 1": (*edges, *angles), "P 1 21 1": (a, b, c, 90, beta, 90), "P 21 21 21": (a, b, c, 90, 90, 90),
        "P 43 21 2": (a, a, c, 90, 90, 90), "P 61 2 2": (a, a, c, 90, 90, 120), "I 21 3": (a, a, a, 90, 90, 90),
    }[group]  # fmt: skip


def random_experiment(number: int, seed: int) -> Experiment:
    """Crystal, beam and detector number `number`."""
    rng = numpy_rng("experiment", seed, number)
    wavelength, pixel, psf = rng.uniform(0.9, 1.6), rng.uniform(60e-6, 350e-6), rng.uniform(0.5, 0.7)
    distance = pixel * SIDE / 2 / np.tan(np.radians(rng.uniform(8, 32)))  # 2θ at the middle of an edge
    # spots are 2.5 to 12 pixels apart, in each direction
    a, b, c = wavelength * distance / pixel / np.exp(rng.uniform(np.log(2.5), np.log(12), 3))
    group = GROUPS[number % len(GROUPS)]
    alpha, beta, gamma = rng.uniform(75, 105, 3)
    cell = cell_of(group, (a, b, c), (alpha, beta, gamma))
    factors = Wilson(b_factor=rng.uniform(10, 45), solvent=rng.uniform(0.3, 0.6), seed=number)
    sample = Sample(
        Crystal(cell, group, factors), size=np.exp(rng.uniform(np.log(0.8), np.log(8))), size_spread=0.5,
        profile_radius=np.exp(rng.uniform(np.log(2e-4), np.log(2e-3))), mosaicity=rng.uniform(5e-4, 3e-3), hits=(0.15, 0.55, 0.2, 0.1),
    )  # fmt: skip
    center = SIDE / 2 + rng.uniform(-20, 20, 2)
    return Experiment(
        f"encoder {seed} {number}",
        Beam(wavelength, 10 ** rng.uniform(9.8, 10.8), bandwidth=rng.uniform(5e-4, 3e-3), polarization=rng.uniform(0, 1), spread=0.4),
        sample,
        Background(water=rng.uniform(0.2, 6), air=rng.uniform(0, 3), ice=3.0, ice_probability=0.3, dark=rng.uniform(0, 0.1), spread=0.3, group_spread=0),
        Detector("any", "counting", (SIDE, SIDE), pixel, distance, tuple(center), psf=psf, beamstop=rng.choice([0.0, 3.0, 6.0])),
    )  # fmt: skip


def scenes_of(number: int, seed: int) -> list[dict]:
    """The expected photons of the shots of an experiment, with what is known of each."""
    experiment = random_experiment(number, seed)
    ds = simulate(experiment, range(SHOTS), seed=seed, expected=True)
    drawn, table = draw_shots(experiment, range(SHOTS), seed), peaks_table(ds)
    detector, geometry = experiment.detector, experiment.geometry
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    radius = np.hypot(x - detector.beam_center[0], y - detector.beam_center[1])
    spots = dict(tuple(table.groupby("frame")))
    spacing = (
        geometry.wavelength * detector.distance / detector.pixel_size / np.array(experiment.sample.crystal.cell[:3])
    )
    found = []
    for i in range(SHOTS):
        own = spots.get(i, table.iloc[:0])
        found.append(
            {
                "mu": ds["expected"].values[i], "mask": ds["mask"].values, "radius": radius, "psf": detector.psf,
                "photons": own["intensity"].to_numpy(float), "under": own["background"].to_numpy(float),
                "at": np.hypot(own["fs"] - detector.beam_center[0], own["ss"] - detector.beam_center[1]).to_numpy(float) / radius.max(),
                "ice": drawn.ice[i] * experiment.background.ice / (drawn.jet[i] * experiment.background.water),
                "crystals": drawn.crystals[i], "spacing": np.sort(spacing),
            }
        )  # fmt: skip
    return found


def measure(scene: dict, rng: np.random.Generator, draws: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """`draws` measurements of a scene by one random detector, (draws, 1, 3, y, x), and the answers."""
    dose, blur = np.exp(rng.uniform(np.log(0.15), np.log(4))), rng.uniform(0, 1.2) * (rng.random() < 0.7)
    mu, mask = (
        np.maximum(gaussian_filter(dose * scene["mu"], blur), 0) if blur else dose * scene["mu"],
        scene["mask"].copy(),
    )
    counting = rng.random() < 0.6
    gain, noise = (1.0, 0.0) if counting else (rng.uniform(2, 20), rng.uniform(0.1, 1.5))
    if rng.random() < 0.3:
        at, wide = rng.integers(20, SIDE - 20), rng.integers(1, 5)
        mask[at : at + wide] = False
    if rng.random() < 0.3:
        at, wide = rng.integers(20, SIDE - 20), rng.integers(1, 5)
        mask[:, at : at + wide] = False
    mask &= rng.random(mask.shape) >= 10 ** rng.uniform(-4, -2)
    turn = rng.integers(8)

    def placed(image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(image.T if turn >= 4 else image, turn % 4))

    images = []
    for _ in range(draws):
        x = gain * rng.poisson(mu)
        if not counting:
            x = np.rint(x + gain * noise * rng.standard_normal(mu.shape))
        images.append(encoder_input(*map(placed, (np.where(mask, x, 0), mask, scene["radius"])), 1.0))

    sigma, rho = np.hypot(scene["psf"], blur), scene["radius"] / scene["radius"].max()
    snr = dose * scene["photons"]
    snr = snr / np.sqrt(snr + 4 * np.pi * sigma**2 * (dose * scene["under"] + noise**2) + 1e-9)
    seen = snr > 5
    few = mu[::2, ::2], mask[::2, ::2], np.minimum(4 * rho[::2, ::2], 3.99).astype(int)
    rings = [np.median(few[0][few[1] & (few[2] == k)]) for k in range(4)]
    level = float(np.median(few[0][few[1]]))
    # a share of the background that none can see is no question
    ice = np.log10(0.03 + scene["ice"]) if level > 0.05 else np.nan
    many, some = seen.sum() >= 12, seen.sum() >= 4
    answers = [
        np.log2(1 + seen.sum()), *np.log2(1 + np.histogram(scene["at"][seen], RADII)[0]), *np.log10(np.array(rings) + noise**2 + 0.01),
        *(np.log10(np.quantile(snr[seen], (0.5, 0.9, 1))) if some else [np.nan] * 3),
        ice, scene["crystals"] if many or not scene["crystals"] else np.nan, *(np.log(scene["spacing"]) if many else [np.nan] * 3),
        np.log(sigma) if some else np.nan, noise**2 / (level + noise**2 + 0.01),
    ]  # fmt: skip
    return np.stack(images), np.array(answers, np.float32)


def batch_of(
    scenes: list[dict], rows: np.ndarray, *key: int | str, draws: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """`draws` measurements of each scene, (draws · n, 1, 3, y, x), and the answers (n, question)."""
    pairs = [measure(scenes[i], numpy_rng("measure", *key, k), draws) for k, i in enumerate(rows)]
    images = np.concatenate([p[0][k] for k in range(draws) for p in pairs])[:, None]
    return torch.from_numpy(images), torch.from_numpy(np.stack([p[1] for p in pairs]))


def train(
    scenes: list[dict], steps: int, seed: int, batch: int = 48
) -> tuple[FrameEncoder, nn.Module, torch.Tensor, torch.Tensor]:
    """The encoder, what reads answers from its features, and mean and spread of the answers."""
    torch.manual_seed(seed)
    _, known = batch_of(scenes, np.arange(0, len(scenes), 4), seed, "scale")
    mean = known.nanmean(0)
    spread = (known - mean).square().nanmean(0).sqrt()
    encoder, head = (
        FrameEncoder().to(memory_format=torch.channels_last),
        nn.Sequential(nn.Linear(FrameEncoder.features, 64), nn.ReLU(), nn.Linear(64, len(QUESTIONS))),
    )
    parameters = [*encoder.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.15)
    rng = numpy_rng("order", seed)
    for step in range(steps):
        images, answers = batch_of(scenes, rng.integers(len(scenes), size=batch), seed, step)
        z = encoder(images)
        wanted = (answers - mean) / spread
        asked = torch.isfinite(wanted)
        errors = nn.functional.huber_loss(head(z), torch.where(asked, wanted, 0.0), reduction="none")
        answered = (errors * asked).sum() / asked.sum()
        covariance = z.T @ z / len(z)
        apart = (
            (covariance - torch.diag(covariance.diagonal())).square().mean()
        )  # features that say the same are wasted
        loss = answered + 0.2 * apart
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"{step} answers {answered:.3f} apart {apart:.3f} CPU {time.process_time():.0f} s", flush=True)
    return encoder.eval(), head.eval(), mean, spread


def stored(encoder: FrameEncoder) -> dict[str, torch.Tensor]:
    """The weights as they are written: float16, statistics of the features float32."""
    state = {k: v for k, v in encoder.state_dict().items() if not k.endswith("num_batches_tracked")}
    return {k: (v if "running" in k else v.half()).contiguous() for k, v in state.items()}


@torch.inference_mode()
def held_out(
    encoder: FrameEncoder, head: nn.Module, mean: torch.Tensor, spread: torch.Tensor, scenes: list[dict]
) -> dict:
    """Share of the variance of each answer that is explained (R²), and how far two measurements of a scene are apart,
    relative to two scenes.
    """
    images, answers = batch_of(scenes, np.arange(len(scenes)), "held out", draws=2)
    n = len(scenes)
    z = torch.cat([encoder(part) for part in images.split(32)])
    guess = head(z[:n]) * spread + mean
    explained = 1 - (guess - answers).square().nanmean(0) / (answers - answers.nanmean(0)).square().nanmean(0)
    apart = (z[:n] - z[n:]).square().sum(1).mean() / (z[:n] - z[:n].roll(n // 2, 0)).square().sum(1).mean()
    return {
        "r2": dict(zip(QUESTIONS, (round(float(v), 3) for v in explained), strict=True)),
        "two measurements": round(float(apart), 4),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--experiments", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=Path(__file__).parents[1] / "xrddiff" / "judge" / "weights", type=Path)
    args = parser.parse_args()
    same_terms()
    began = time.process_time()
    scenes = [s for number in range(args.experiments) for s in scenes_of(number, args.seed)]
    others = [s for number in range(12) for s in scenes_of(number, args.seed + 1)]
    print(f"{len(scenes)} scenes, CPU {time.process_time():.0f} s", flush=True)
    encoder, *rest = train(scenes, args.steps, args.seed)
    state = stored(encoder)
    encoder.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{ENCODER}.safetensors"
    save_file(state, path)
    record = {
        "name": ENCODER, "sha256": sha256(path), "parameters": sum(p.numel() for p in encoder.parameters()),
        "command": f"OMP_NUM_THREADS=1 python bench/train_encoder.py --steps {args.steps} --experiments {args.experiments} --seed {args.seed}",
        "seed": args.seed, "scenes": len(scenes), "held_out_scenes": len(others), "held_out": held_out(encoder, *rest, others),
        "cpu_seconds": round(time.process_time() - began),
    }  # fmt: skip
    write_json(path.with_suffix(".json"), record)
    print(record)


if __name__ == "__main__":
    main()
