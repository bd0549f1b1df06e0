"""Are posteriors of crystals as wide as they should be? Simulated stills whose truth is drawn from the priors.

    python bench/crystal_posteriors.py [--stills 60] [--only pixels|spots]

For each still of the experiment sim128 (one crystal; orientation at random) cell edges, distance, beam centre, mosaicity
and B factor are drawn from the priors of the posterior. It is indexed, and sampled with intensities that are known
(pixels), or, drawn anew for each still, with unknown ones (spots). The rank of the truth among the particles should be
uniform, and central intervals of 90 % should hold it nine times out of ten. Each still has random numbers of its own:
ranks among the same numbers would have their gaps. Rows are appended to bench/results/crystal_posteriors.json, so that a
run can be stopped and continued; the table is bench/results/crystal_posteriors.md.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from harness import RESULTS, make_parser, markdown, read_results, same_terms, write_results
from scipy import stats

from xrddiff.core.errors import BadInput
from xrddiff.core.seeds import numpy_rng
from xrddiff.judge.metrics.coverage import uniformity
from xrddiff.judge.posteriors.crystal_sampling import draw_particles
from xrddiff.judge.posteriors.crystal_stills import StillSettings, open_still, rotation_from
from xrddiff.judge.posteriors.crystals import CrystalPrior
from xrddiff.physics.indexing.cells import Cell
from xrddiff.physics.indexing.expected_intensities import CrystalIntensities
from xrddiff.physics.indexing.indexer import make_indexer
from xrddiff.physics.simulation.crystal import Crystal, reflections
from xrddiff.physics.simulation.experiments import find_experiment
from xrddiff.physics.simulation.simulate import simulate

PRIOR = CrystalPrior(
    edges=0.003, angles=0.0, distance=2e-4, center=0.5, mosaicity=0.3, radius=0.0, scale=1.0, b_factor=4.0
)
# particles and steps of hmc; 19 and 39 particles have central intervals of exactly 90 %
SAMPLING = {"pixels": dict(particles=19, steps=8), "spots": dict(particles=39, steps=8)}
BASE = find_experiment("sim128")


def experiment_of(shot: int, kind: str = "pixels") -> tuple:
    """The experiment of a still, and its truth, drawn from the priors; for spots, intensities too."""
    z = numpy_rng("crystal posteriors", shot).standard_normal(8)
    crystal, detector = BASE.sample.crystal, BASE.detector
    edges = np.array(crystal.cell[:3]) * (1 + PRIOR.edges * z[:3])
    center = np.array(detector.beam_center) + PRIOR.center * z[4:6]
    mosaicity = BASE.sample.mosaicity * np.exp(PRIOR.mosaicity * z[6])
    # the same intensities in all stills would make their errors alike where they are not known
    wilson = replace(crystal.factors, seed=1000 + shot) if kind == "spots" else crystal.factors
    cell = (*map(float, edges), 90.0, 90.0, 90.0)
    true = Crystal(cell, crystal.space_group, replace(wilson, b_factor=wilson.b_factor + PRIOR.b_factor * float(z[7])))
    experiment = replace(
        BASE,
        sample=replace(BASE.sample, crystal=true, mosaicity=float(mosaicity), hits=(0.0, 1.0), cell_spread=0.0),
        background=replace(BASE.background, ice_probability=0.0),
        detector=replace(
            detector, distance=detector.distance + PRIOR.distance * float(z[3]), beam_center=tuple(map(float, center))
        ),
    )
    every = reflections(Crystal(cell, crystal.space_group, wilson), 1.9)
    known = CrystalIntensities(Cell(crystal.cell), crystal.space_group, every.hkl, every.f2)
    truth = dict(a=cell[0], b=cell[1], c=cell[2], distance=1e3 * experiment.detector.distance)
    truth |= dict(center_x=PRIOR.center * z[4], center_y=PRIOR.center * z[5], mosaicity=np.log(mosaicity))
    return experiment, known, truth | {"b_factor": PRIOR.b_factor * float(z[7])}


def frames_of(experiment, shot: int):
    """The frame as a user would have it: with the nominal cell, distance and centre."""
    frames = simulate(experiment, [shot])
    frames.attrs |= {"distance": BASE.detector.distance, "beam_center": BASE.detector.beam_center}
    frames.attrs["unit_cell"] = BASE.sample.crystal.cell
    return frames


def common_indexer():
    """One indexer for all stills: what chance does is that of the nominal experiment."""
    one = replace(BASE, sample=replace(BASE.sample, hits=(0.0, 1.0)))
    return make_indexer(simulate(one, range(12)), BASE.sample.crystal.cell, lattices=1, controls=60)


def measure(shot: int, kind: str, indexer) -> dict:
    """Where the truth of one still is among its particles, its Laplace draws and the least-squares errors."""
    experiment, known, truth = experiment_of(shot, kind)
    began = time.process_time()
    settings = StillSettings(
        PRIOR, radius=BASE.sample.profile_radius, mosaicity=BASE.sample.mosaicity, bandwidth=BASE.beam.bandwidth,
        spot=BASE.spot_sigma, spot_spread=0.0, indexer=indexer,
    )  # fmt: skip
    frames = frames_of(experiment, shot)
    row = dict(shot=shot, kind=kind)
    try:
        one = open_still(frames, 0, intensities=known if kind == "pixels" else "unknown", settings=settings)
    except BadInput as error:
        return row | dict(refused=str(error))
    truth |= rotation_from(one.still, frames["orientation"].values[0, 0])
    if kind == "spots":
        truth.pop("b_factor")  # of the mean intensity, which has a B factor of its own
    # numbers of its own for each still: ranks among the same numbers have the gaps of those numbers
    drawn = draw_particles(one.density, one.fit, **SAMPLING[kind], seed=shot, chunk=20)
    seconds = time.process_time() - began
    laplace = draw_particles(one.density, one.fit, sampler="laplace", particles=999, seed=shot)
    values, normal, fit = one.density.values(drawn.theta), one.density.values(laplace.theta), one.least_squares()
    out = {}
    for name, true in truth.items():
        z = (true - normal[name].mean()) / normal[name].std()
        out[name] = dict(rank=int((values[name] < true).sum()), laplace=float(z), sd=float(values[name].std()))
        if name in fit.index:
            at, sd = fit.loc[name]
            out[name] |= dict(least_squares=float((true - at) / sd), its_sd=float(sd))
    accepted = float(np.mean([r["accepted"] for r in drawn.history]))
    return row | dict(converged=one.fit.converged, accepted=accepted, seconds=seconds, parameters=out)


def table(rows: list[dict]) -> str:
    """The results, as Markdown."""
    lines = [
        "# Posteriors of crystals: are they as wide as they should be?",
        "",
        f"`python bench/crystal_posteriors.py --stills {1 + max(r['shot'] for r in rows)}`; one thread.",
        "",
        __doc__.split("\n\n")[2].replace("\n", " "),
        "",
    ]
    lines += [
        "Coverage: of central intervals of 90 % (the interval behind it is that of a share of so many stills, Jeffreys, 95 %).",
        "p: of the ranks being uniform. Laplace: the same for the Gaussian at the maximum. Least squares: the refinement of",
        "the peaks under the same priors and its covariance, truth within 1.645 standard deviations. sd: medians.", "",
    ]  # fmt: skip
    for kind, about in (("pixels", "intensities known"), ("spots", "intensities not known")):
        done = [r for r in rows if r["kind"] == kind]
        good = [r for r in done if "parameters" in r]
        if not good:
            continue
        n, s = len(good), SAMPLING[kind]["particles"]
        k = round(0.1 * (s + 1) / 2)
        lines += [
            f"## {kind.capitalize()} ({about})", "",
            f"{n} stills; {len(done) - n} of {len(done)} did not index. {s} particles, {SAMPLING[kind]['steps']} steps of hmc, "
            f"{np.mean([r['accepted'] for r in good]):.0%} accepted; {sum(not r['converged'] for r in good)} maxima not converged; "
            f"{np.median([r['seconds'] for r in good]):.1f} CPU seconds a still (median; indexing, maximum and particles).", "",
        ]  # fmt: skip
        total, cells = [], []
        for name in good[0]["parameters"]:
            own = [r["parameters"][name] for r in good]
            ranks = np.array([o["rank"] for o in own])
            inside = (ranks >= k) & (ranks <= s - k)
            total.append(inside)
            low, high = stats.beta.interval(0.95, inside.sum() + 0.5, n - inside.sum() + 0.5)
            p = f"{uniformity(ranks, s):.3f}" if n >= 10 else ""
            normal = np.mean([abs(o["laplace"]) < 1.645 for o in own])
            fit = [abs(o["least_squares"]) < 1.645 for o in own if "least_squares" in o]
            other = [f"{np.mean(fit):.0%}", f"{np.median([o['its_sd'] for o in own]):.3g}"] if fit else ["", ""]
            sd = np.median([o["sd"] for o in own])
            share = f"{inside.mean():.0%} ({low:.0%}–{high:.0%})"
            cells.append([name, share, p, f"{sd:.3g}", f"{normal:.0%}", *other])
        lines += markdown(["parameter", "coverage", "p", "sd", "Laplace", "least squares", "its sd"], cells, "l")
        each = np.mean(total, 0)
        error = each.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        lines += ["", f"All parameters: {each.mean():.1%} ± {error:.1%} (standard error over stills).", ""]
    lines += [
        "Turns are in degrees, edges in Å, distance in mm, centre in px, mosaicity as a natural logarithm, B factor in Å².",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--stills", type=int, default=60, help="how many (60)")
    parser.add_argument("--only", choices=list(SAMPLING), help="one of the two densities")
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS / "crystal_posteriors.json",
        help="the JSON file; the table goes beside it",
    )
    args = parser.parse_args()
    same_terms()
    name = args.results.absolute().with_suffix(".md")
    rows = read_results(name, {"stills": []})["stills"]
    done, indexer = {(r["shot"], r["kind"]) for r in rows}, common_indexer()
    if rows:
        write_results(name, table(rows))
    for shot in range(args.stills):
        for kind in [args.only] if args.only else list(SAMPLING):
            if (shot, kind) in done:
                continue
            rows.append(measure(shot, kind, indexer))
            data = {"prior": vars(PRIOR), "sampling": SAMPLING, "stills": rows}
            write_results(name, lambda data: table(data["stills"]), data)
            last = rows[-1]
            print(
                shot,
                kind,
                last.get("refused") or f"{last['seconds']:.1f} s, accepted {last['accepted']:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
