"""Simulator against a plain NumPy loop over reflections, and against the time that its Poisson draws alone take.

    OMP_NUM_THREADS=1 python bench/simulator.py [--sizes 128 512 1024] [--rounds 15] [--threads 1]

Each round times both contestants one after another on the same shots; minimum and (median) over the rounds are printed. The ratio is that of the
minima, and (the median of the rounds' ratios); `CPU` is the ratio of the process's CPU time over all rounds, which other users of the machine do not move.
`poisson` is `torch.poisson` on the same expected counts with the same per-shot generators: the floor of any simulator that draws so.
"""

from __future__ import annotations

import math
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from statistics import median

import numpy as np
from harness import interleaved, make_parser, markdown, min_median, ratio, same_terms, table_row, timed

from xrddiff.core.seeds import torch_generator
from xrddiff.data.frames.geometry import polarization_factor, q_map, solid_angle
from xrddiff.physics.simulation.crystal import reciprocal_matrix, reflections
from xrddiff.physics.simulation.experiments import EXPERIMENTS, Experiment, detector_mask
from xrddiff.physics.simulation.scattering import ELECTRON_RADIUS, air_profile, ice_profile, water_profile
from xrddiff.physics.simulation.simulate import Shots, expected_counts, simulate


def loop_expected(experiment: Experiment, drawn: Shots) -> np.ndarray:
    """μ (S, y, x) photons of the `drawn` shots, written as a person writes it first: shot by shot, reflection by reflection."""
    beam, sample, back, det = experiment.beam, experiment.sample, experiment.background, experiment.detector
    B, cell_volume = reciprocal_matrix(sample.crystal.cell), sample.crystal.volume
    r = reflections(sample.crystal, experiment.resolution)
    geom = experiment.geometry
    h, w = det.shape
    sigma = math.hypot(det.psf, beam.divergence * det.distance / det.pixel_size)
    half = math.ceil(4.5 * sigma)
    pixels = np.arange(-half, half + 2)
    images = []
    for i in range(len(drawn.shot)):
        q = q_map(geom)
        seen = solid_angle(geom) * polarization_factor(geom) * det.efficiency
        image = (
            drawn.scale[i]
            * seen
            * (
                drawn.jet[i] * (back.water * water_profile(q) + back.air * air_profile(q))
                + drawn.ice[i] * back.ice * ice_profile(q)
            )
        )
        image += back.dark
        k = 1 / drawn.wavelength[i]
        for c in range(drawn.crystals[i]):
            A = drawn.orientation[i, c] @ B / drawn.cell_scale[i, c]
            for hkl, f2 in zip(r.hkl, r.f2, strict=True):
                g = A @ hkl
                ray = g + np.array([0.0, 0.0, k])
                length = np.sqrt(ray @ ray)
                s = length - k
                cos = ray[2] / length
                g2 = g @ g
                width = np.sqrt(
                    sample.profile_radius**2 + ((1 - cos) * beam.bandwidth * k) ** 2 + sample.mosaicity**2 * g2
                )
                if abs(s) > 4 * width or cos <= 0:
                    continue
                p = sample.profile_radius / width * np.exp(-(s**2) / (2 * width**2))
                sin2, phi = 1 - cos**2, np.arctan2(ray[1], ray[0])
                P = 0.5 * (1 + cos**2 - beam.polarization * np.cos(2 * phi) * sin2)
                fluence = beam.fluence * 1e-8 * drawn.scale[i]
                photons = (
                    fluence * ELECTRON_RADIUS**2 * f2 * drawn.wavelength[i] ** 3 * drawn.volume[i, c] / cell_volume**2
                )
                photons *= P * p * sample.transmission * det.efficiency
                if photons < experiment.faint:
                    continue
                x = det.beam_center[0] + det.distance * ray[0] / ray[2] / det.pixel_size
                y = det.beam_center[1] + det.distance * ray[1] / ray[2] / det.pixel_size
                x0, y0 = math.floor(x), math.floor(y)
                if not (-half <= x0 < w + half and -half <= y0 < h + half):
                    continue
                wx = np.diff([0.5 * math.erf((x0 + e - x) / (math.sqrt(2) * sigma)) for e in pixels])
                wy = np.diff([0.5 * math.erf((y0 + e - y) / (math.sqrt(2) * sigma)) for e in pixels])
                rows, columns = (
                    slice(max(y0 - half, 0), max(y0 + half + 1, 0)),
                    slice(max(x0 - half, 0), max(x0 + half + 1, 0)),
                )
                spot = photons * np.outer(wy, wx)
                spot = spot[max(half - y0, 0) : h - y0 + half, max(half - x0, 0) : w - x0 + half]
                image[rows, columns] += spot
        images.append(np.where(detector_mask(det), image, 0))
    return np.array(images)


def of_size(n: int) -> Experiment:
    """`sim128` at 128², the counting `sim-522` at 512², and that one with pixels of half the size at 1024²."""
    if n == 128:
        return EXPERIMENTS["sim128"]
    e = EXPERIMENTS["sim-522"]
    if n == 512:
        return e
    f = n / 512
    d = e.detector
    centre = (d.beam_center[0] * f, d.beam_center[1] * f)
    return replace(
        e,
        name=f"sim-522-{n}",
        detector=replace(d, shape=(n, n), pixel_size=d.pixel_size / f, beam_center=centre, beamstop=d.beamstop * f),
    )


def poisson_only(mu: np.ndarray, threads: int) -> list:
    """The Poisson draws of `simulate` and nothing else."""
    import torch

    def one(i: int):
        return torch.poisson(torch.from_numpy(mu[i]), generator=torch_generator("detector", i))

    if threads == 1:
        return [one(i) for i in range(len(mu))]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(len(mu))))


def main() -> None:
    parser = make_parser(__doc__, rounds=15, threads=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--experiments", nargs="*", default=["sim-422"], help="further ones to time by name")
    parser.add_argument("--no-loop", action="store_true", help="leave the loop over reflections out")
    args = parser.parse_args()
    import torch

    same_terms()
    print(
        f"python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}, threads {args.threads}"
    )
    head = ["size", "experiment", "reflections", "whole, ms/frame", "Poisson alone, ms/frame", "whole / Poisson", "CPU"]
    print(*markdown([*head, "frames/s", "loop, ms/frame", "loop / whole"], [], "l"), sep="\n")
    for e in [*map(of_size, args.sizes), *(EXPERIMENTS[n] for n in args.experiments)]:
        n = e.detector.shape[0]
        shots = range(max(8, min(256, 2**22 // n**2)))
        mu, drawn, _ = expected_counts(e, shots)
        ways = {
            "whole": partial(simulate, e, shots, threads=args.threads),
            "poisson": partial(poisson_only, mu, args.threads),
        }
        whole, alone = interleaved(ways, args.rounds).values()
        per_frame = 1e3 / len(shots)
        loop = "", ""
        if not args.no_loop:
            one = int(np.flatnonzero(drawn.crystals == 1)[0])
            single = Shots(*(v[one : one + 1] for v in drawn))
            reference, spent = timed(partial(loop_expected, e, single))
            spent = 1e3 * spent.clock + per_frame * min(alone.clock)
            np.testing.assert_allclose(mu[one], reference[0], rtol=1e-5, atol=1e-12)
            loop = f"{spent:.0f}", f"{spent / (per_frame * median(whole.clock)):.0f}"
        cells = [f"{n}²", e.name, len(reflections(e.sample.crystal, e.resolution))]
        cells += [min_median(t.clock, ".2f", per_frame) for t in (whole, alone)]
        cells += [ratio(whole.clock, alone.clock), f"{sum(whole.cpu) / sum(alone.cpu):.2f}"]
        print(table_row([*cells, f"{1e3 / (per_frame * min(whole.clock)):.0f}", *loop]), flush=True)


if __name__ == "__main__":
    main()
