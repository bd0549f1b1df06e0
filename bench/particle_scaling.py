"""What more ranks bring to a posterior of particles: measured on 1, 2 and 4 ranks here, and modelled for 2 to 64 nodes.

    OMP_NUM_THREADS=1 python bench/particle_scaling.py [--particles 2000] [--dimensions 64] [--steps 6] [--rounds 3] [--ranks 1 2 4]

Each measurement is `svgd` (kernel `rbf`, no discrepancy, no files) on processes of one thread that share this machine, over gloo; numbers of ranks alternate in rounds. The score costs a product of matrices of so many coordinates, `--score` times. A rank counts its CPU seconds, and
its seconds of waiting, beside the clock. On a machine with fewer cores than ranks, or with other work, the clock says little: the model is compared with CPU seconds.

The model (`xrddiff.core.ranks.particle_scaling`) is fitted to the measurements on one rank, by least squares over three numbers of particles, and to the communication test of the same machine (`xrddiff comm-test`, two ranks).
Writes bench/results/particle_scaling.md, .json and .svg.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import datetime
from pathlib import Path
from statistics import median

from harness import RESULTS, machine, make_parser, markdown, min_median, same_terms, timed, turns, write_results
from particles import on_ranks

HERE = Path(__file__).resolve()


def worker(job: dict) -> list[dict]:
    """What a process does: steps of svgd; rank 0 returns a row for each rank."""
    import torch

    from xrddiff.core.ranks.agreement import Ranks
    from xrddiff.core.ranks.rendezvous import initialize_distributed
    from xrddiff.core.ranks.ring import Ring, shares
    from xrddiff.learn.diffusion.particles import svgd

    same_terms()
    n, d, info = job["n"], job["d"], initialize_distributed(backend="gloo")
    place = type("Place", (), {"process_index": info.process_id, "num_processes": info.num_processes})
    ranks = Ranks(place)
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = torch.eye(d, dtype=torch.float64)
    first, last = shares(n, ranks.size)[ranks.rank]

    def score(y):
        for _ in range(job["score"]):
            y = y @ matrix
        return -y

    words = dict(lr=1e-3, check_every=0, optimizer="sgd", ranks=ranks)
    svgd(score, x[first:last], steps=1, **words)  # what is made once
    ring = Ring(ranks, last - first)
    ring.gather(0)
    result, spent = timed(lambda: svgd(score, x[first:last], steps=job["steps"], **words))
    mine = dict(clock=spent.clock, cpu=spent.cpu)
    mine |= {k: result.ranks[ranks.rank][k] for k in ("score", "waiting")}
    return ring.gather({k: v / job["steps"] for k, v in mine.items()})


def comm(job: dict) -> dict:
    """The communication test."""
    from xrddiff.core.ranks.comm import comm_test
    from xrddiff.core.ranks.rendezvous import initialize_distributed

    return json.loads(comm_test(job["sizes"], 10, info=initialize_distributed(backend="gloo")).to_json())


def fit(rows: list[dict]) -> tuple[float, float, float, float]:
    """(seconds of a score, of a pair, fixed, largest relative error) of rows on one rank: n, score and cpu seconds of a step."""
    import numpy as np
    from scipy.optimize import nnls

    n = np.array([r["n"] for r in rows], float)
    score = float(np.median([r["score"] / r["n"] for r in rows]))
    used = np.array([r["cpu"] for r in rows])
    left = used - score * n
    (fixed, pair), _ = nnls(np.stack([1 / left, n * n / left], 1), np.ones(len(n)))
    return score, float(pair), float(fixed), float(np.abs((score * n + pair * n * n + fixed) / used - 1).max())


def main() -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--particles", type=int, default=2000)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--score", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(comm(args.job) if "sizes" in args.job else worker(args.job)))
        return
    import torch

    from xrddiff.core.ranks.comm import CommReport
    from xrddiff.core.ranks.networks import Cluster, Network, report_network
    from xrddiff.core.ranks.particle_scaling import ParticleModel, particle_table, paying_particles

    n, job = args.particles, dict(d=args.dimensions, steps=args.steps, score=args.score)
    found: dict[int, list[list[dict]]] = {ranks: [] for ranks in args.ranks}
    small: list[dict] = []
    for k, ranks in enumerate(turns(args.ranks, args.rounds), 1):
        found[ranks].append(on_ranks(HERE, job | dict(n=n), ranks))
        if k % len(args.ranks):
            continue
        small += [dict(n=m, **on_ranks(HERE, job | dict(n=m), 1)[0]) for m in (n // 4, n // 2)]
    alone = [dict(n=n, **rows[0]) for rows in found[1]] + small
    least = [min((r for r in alone if r["n"] == m), key=lambda r: r["cpu"]) for m in (n // 4, n // 2, n)]
    score, pair, fixed, error = fit(least)
    report = on_ranks(HERE, dict(sizes=[4, 1000, 30_000, 1_000_000, 10_000_000]), 2)
    network = report_network(CommReport(*(report[k] for k in ("num_processes", "num_nodes", "backend", "rounds", "messages"))))  # fmt: skip
    here = ParticleModel(n, args.dimensions, score, pair, Cluster(network), fixed_seconds=fixed)

    measured = []
    for ranks, rounds in found.items():
        model = here.step(ranks)
        busy = [max(r["cpu"] for r in rows) for rows in rounds]
        total = [sum(r["cpu"] for r in rows) for rows in rounds]
        measured.append(
            dict(
                ranks=ranks, clock=[max(r["clock"] for r in rows) for rows in rounds], busiest=busy, total=total,
                waiting=[median(r["waiting"] for r in rows) for rows in rounds],
                model_compute=model["score"] + model["pairs"] + model["fixed"], model_step=model["step"], model_efficiency=model["efficiency"],
            )
        )  # fmt: skip
    # the nodes of a cluster: 16 ranks on CPUs, 25 GB/s between nodes and 600 GB/s inside, or a tenth of the former
    clusters = {
        "25 GB/s, 5 µs": Cluster(Network(25, 5e-6), Network(600, 2e-6), 16),
        "1 GB/s, 50 µs": Cluster(Network(1, 50e-6), Network(600, 2e-6), 16),
    }
    scores = {"this score": score, "a score of 5 ms": 5e-3}
    cases = {}
    for what, seconds in scores.items():
        for link, cluster in clusters.items():
            for how in ("ring", "tree"):
                model = ParticleModel(8192, args.dimensions, seconds, pair, cluster, how, fixed_seconds=fixed)
                table = particle_table(model)
                table["paying_per_rank"] = [None, *(paying_particles(model, r) for r in table["ranks"][1:])]
                cases[f"{what}, {link}, {how}"] = table
    about = dict(
        command=f"python bench/particle_scaling.py --particles {n} --dimensions {args.dimensions} --steps {args.steps} --rounds {args.rounds}",
        machine=machine('cores'), torch=torch.__version__, date=f"{datetime.now():%Y-%m-%d}",
        load=os.getloadavg()[1], score_seconds=score, pair_seconds=pair, fixed_seconds=fixed, fit_error=error, network=vars(network),
        measured=measured, modelled={name: json.loads(table.to_json(orient="records")) for name, table in cases.items()},
    )  # fmt: skip
    print(write_results("particle_scaling", lambda about: page(about, n, args.dimensions, cases), about))
    picture(cases)


def page(about: dict, n: int, d: int, cases: dict) -> list[str]:
    """The results as a page."""
    ms = lambda times: min_median(times, ".3g", 1e3)  # noqa: E731
    one = about["measured"][0]
    text = [
        "# Scaling of particles", "",
        f"`{about['command']}` on {about['machine']}, torch {about['torch']}, {about['date']}, load average {about['load']:.0f} with other work", "",
        "## Measured here", "",
        f"A step of {n:,} particles of {d} coordinates (`svgd`, kernel `rbf`, float64) on ranks of one thread that share this machine, over gloo: ms, minimum (median) of the rounds. CPU seconds are those of a process with its threads for messages. "
        "With fewer cores than ranks, and other work on the machine, the clock is no measure of the ranks; the CPU time of the busiest rank is what a step would take at least with a core for each. The model's compute is fitted to one rank; the CPU time of messages is not in it.", "",
    ]  # fmt: skip
    rows = []
    for row in about["measured"]:
        more = min(row["total"]) / min(one["total"]) - 1
        modelled = [f"{1e3 * row[k]:.3g}" for k in ("model_compute", "model_step")]
        cells = [row["ranks"], *(ms(row[k]) for k in ("clock", "busiest", "total")), f"{100 * more:+.1f}%"]
        rows.append([*cells, ms(row["waiting"]), *modelled, f"{100 * row['model_efficiency']:.1f}%"])
    head = ["ranks", "clock", "CPU, busiest rank", "CPU, all ranks", "more CPU than one rank", "waiting"]
    text += markdown([*head, "model: compute", "model: step", "model: efficiency"], rows, "l")
    network = about["network"]
    short = [
        f"{100 * (min(r['busiest']) / r['model_compute'] - 1):.0f}% on {r['ranks']}" for r in about["measured"][1:]
    ]
    text += [
        "",
        f"The busiest rank used more CPU than the model's compute: {', '.join(short)} ranks. So the model is too good for ranks that share so few particles, and for few cores.", "",
        f"Fitted: {1e6 * about['score_seconds']:.3g} µs for the score of a particle, {1e9 * about['pair_seconds']:.3g} ns for a pair, {1e3 * about['fixed_seconds']:.3g} ms for what each rank does in a step however many there are (the bandwidth, from 256 particles); steps of {n // 4:,}, {n // 2:,} and {n:,} particles on one rank are met to {100 * about['fit_error']:.0f}%. "
        f"The communication test of two ranks of this machine gives {network['bandwidth']:.3g} GB/s and {1e6 * network['latency']:.0f} µs.", "",
        "## Modelled for many nodes", "",
        "No cluster was measured here: what follows is the model of [Scaling of particles](../../nbs/core/ranks/particle_scaling.ipynb), with the compute fitted above. 8,192 particles on nodes of 16 ranks; 600 GB/s and 2 µs inside a node. All particles are shared by all ranks. "
        "Good is an efficiency above 80% up to 8 nodes, 60% up to 16, 40% up to 32. Least: particles per rank from which communication costs at most a tenth of the computation. Pays: particles per rank from which these nodes are faster than half of them.", "",
        "![Efficiency against nodes](particle_scaling.svg)", "",
    ]  # fmt: skip
    for name, table in cases.items():
        rows = []
        whole = lambda value: "" if value is None or value != value else f"{value:.0f}"  # noqa: E731
        for row in table.to_dict("records"):
            compute = row["score_ms"] + row["pairs_ms"] + row["fixed_ms"]
            times = [f"{ms:.3g}" for ms in (compute, row["ring_ms"], row["agree_ms"], row["step_ms"])]
            cells = [row["nodes"], row["ranks"], f"{row['per_rank']:.0f}", *times, f"{row['share']:.2g}"]
            cells += [f"{100 * row['efficiency']:.0f}%", row["verdict"]]
            rows.append([*cells, whole(row["least_per_rank"]), whole(row["paying_per_rank"])])
        head = ["nodes", "ranks", "particles per rank", "compute, ms", "ring, ms", "agree, ms", "step, ms"]
        head += ["communication / compute", "efficiency", "", "least", "pays"]
        text += [f"### {name[0].upper()}{name[1:]}", "", *markdown(head, rows, "l")]
        text.append("")
    return text


def picture(cases: dict) -> None:
    """Efficiency over nodes."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from xrddiff.core.ranks.scaling import plot_scaling

    plt.rcParams["svg.hashsalt"] = "xrddiff"
    _, ax = plt.subplots(figsize=(6.5, 3.2))
    plot_scaling(cases, ax)
    ax.set_title("modelled: 8,192 particles, 16 ranks per node", fontsize=10)
    ax.figure.savefig(RESULTS / "particle_scaling.svg", bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
