"""Write docs/scale.md: what large experiments need, computed from what bench/scale.py measured.

    python docs/scale_page.py

Every figure of the page that is not said to be somebody else's is computed here from bench/results/scale.json; a test compares the page.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from xrddiff.core.ranks.rates import StreamNeeds, TrainingNeeds, cost_of_pixels, linear_to, serial_share
from xrddiff.core.ranks.scaling import CostModel

ROOT = Path(__file__).resolve().parent.parent
PAGE, MEASURED = ROOT / "docs" / "scale.md", ROOT / "bench" / "results" / "scale.json"
NODE = {"cores": 96, "network": 12.5e9, "memory": 512e9}  # of the worked cases
EIGER = 4150 * 4371  # pixels
MEGA = {"ePix10k2M, 120 Hz": (120, 0.0), "5 kHz": (5e3, 0.0), "5 kHz, veto 0.9": (5e3, 0.9), "100 kHz, veto 0.99": (1e5, 0.99), "1 MHz, veto 0.999": (1e6, 0.999)}  # fmt: skip
XFEL = 2.2e6  # pixels
H100 = {
    "step": 22.0e-3,
    "batch": 8,
    "parameters": 2.28e6,
}  # bench/results/gpu.md: U-Net tiny, eager, of an older commit


def costs(found: dict[str, Any]) -> dict[str, Any]:
    """(a, b) of a + b · pixels for each stage, s; `index` of a hit, s; `bytes` of a pixel."""
    frames, streams = list(found["frames"].values()), found["stream"].items()
    pixels = [row["pixels"] for row in frames]
    ms = {name: [min(row[name]) / 1e3 for row in frames] for name in ("decode", "peaks")}
    lines = {name: cost_of_pixels(pixels, seconds) for name, seconds in ms.items()}
    for name, key in (("take", "take"), ("alone", "answer")):
        points = [(int(side) ** 2, min(row[key]) / 1e3) for side, row in streams]
        lines[name] = cost_of_pixels(*zip(*points, strict=True))
    index = max(min(row["index"]) for row in frames) / 1e3
    return lines | {"index": index, "bytes": max(row["bytes"] / row["pixels"] for row in frames)}


def needs(c: dict[str, Any], rate: float, pixels: float, **words: float) -> StreamNeeds:
    """What a stream needs, by the measured costs."""
    at = {name: c[name][0] + c[name][1] * pixels for name in ("decode", "peaks", "take", "alone")}
    return StreamNeeds(rate=rate, pixels=pixels, bytes=c["bytes"] * pixels, index=c["index"], **at, **words)


def training(c: dict[str, Any], found: dict[str, Any], place: str, windows: int, **words: Any) -> TrainingNeeds:
    """A training on 10⁶ frames of 2048², windows of 128², ten epochs: on cores of this machine, or on GPUs."""
    decode = c["decode"][0] + c["decode"][1] * 2048**2
    link = dict(bandwidth=25, latency=5e-6, bytes_per_parameter=4)
    if place == "core":
        one = next(row for row in found["ranks"] if row["ranks"] == 1)
        step = CostModel(found["parameters"], 8 / one["frames_per_second"], ranks_per_node=NODE["cores"], **link)
        batch = 8
    else:
        step, batch = CostModel(H100["parameters"], H100["step"], ranks_per_node=4, **link), H100["batch"]
    return TrainingNeeds(1e6, c["bytes"] * 2048**2, decode, step, epochs=10, windows=windows, batch=batch, **words)


def quiet(name: str) -> float:
    """The speed-up of two, measured on a machine without other work."""
    text = (ROOT / "bench" / "results" / f"{name}.md").read_text(encoding="utf-8")
    return float(re.search(r"Ratio: ([\d.]+) of the best", text)[1])


def size(value: float, unit: str = "B") -> str:
    """1.2e9 -> "1.2 GB"."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def stream_row(name: str, s: StreamNeeds) -> list[Any]:
    need = (
        s.processes / NODE["cores"],
        s.network / NODE["network"],
        (s.network + 0.5e9 * s.processes) / NODE["memory"],
    )
    hour = 3600 * s.disk
    return [name, f"{s.processes:,}", f"{s.cores:,} + {s.takers:,}", max(1, *map(math.ceil, need)), f"{size(s.network)}/s", f"{size(s.disk)}/s", size(hour), size(s.network + 0.5e9 * s.processes)]  # fmt: skip


STREAM_HEAD = [
    "",
    "processes, a core each",
    "or workers + takers",
    "nodes",
    "network",
    "disk",
    "an hour on disk",
    "memory",
]


def page(found: dict[str, Any]) -> str:
    """The text of docs/scale.md."""
    c = costs(found)
    eiger = {f"hits {h:.0%}": needs(c, 133, EIGER, hits=h) for h in (0.05, 0.3, 1.0)}
    xfel = {name: needs(c, rate, XFEL, veto=veto, hits=0.1) for name, (rate, veto) in MEGA.items()}
    alone = {name: quiet(name) for name in ("ranks", "workers")}
    found_peaks = [row["found"] for row in found["frames"].values()]
    mid, rest = eiger["hits 30%"], xfel["5 kHz"]
    measured = {side: min(row["answer"]) for side, row in found["stream"].items()}
    summed = {side: sum(1e3 * (c[n][0] + c[n][1] * int(side) ** 2) for n in ("decode", "peaks")) for side in measured}
    ranks = {row["ranks"]: row for row in found["ranks"]}
    best = {int(n): max(v) for n, v in found["workers"].items()}
    trainings = []
    for place, name, counts in (("core", "cores", (1, 96, 960)), ("gpu", "H100", (1, 8, 64))):
        for windows in (1, 16):
            t = training(c, found, place, windows, decoders=1 if place == "core" else 8)
            for ranks_ in counts:
                trainings.append([f"{ranks_} {name if ranks_ > 1 else name.removesuffix(chr(115))}, {windows} window{'s' if windows > 1 else ''} a frame", f"{t.steps(ranks_):,.0f}", f"{t.hours(ranks_):,.0f}" if t.hours(ranks_) >= 100 else f"{t.hours(ranks_):.3g}", f"{t.efficiency(ranks_):.0%}", f"{size(t.read(ranks_))}/s"])  # fmt: skip
    gpu, core = training(c, found, "gpu", 1, decoders=8), training(c, found, "core", 1)
    clocks = found["stream"]["512"]["clock"]
    fit = table(
        ["stage", "a, ms", "b, ms per Mpx", "4.2 Mpx, ms", "18 Mpx, ms"],
        [[name, f"{1e3 * c[name][0]:.2f}", f"{1e9 * c[name][1]:.2f}", *(f"{1e3 * (c[name][0] + c[name][1] * n):.1f}" for n in (2048**2, EIGER))] for name in ("decode", "peaks", "take", "alone")],
    )  # fmt: skip
    model = table(["", "decode + peaks, model", "everything in one process, measured", "measured / model"], [[f"{s}²", f"{summed[s]:.1f}", f"{measured[s]:.1f}", f"{measured[s] / summed[s]:.2f}"] for s in measured])  # fmt: skip
    stream_table = table(STREAM_HEAD, [stream_row(n, s) for n, s in eiger.items()])
    xfel_table = table(STREAM_HEAD, [stream_row(n, s) for n, s in xfel.items()])
    hours = table(["", "steps", "hours", "efficiency", "read"], trainings)
    lower = table(
        ["", "1", "2", "4"],
        [
            ["ranks: frames/s of the training, fastest", *(f"{ranks[n]['frames_per_second']:.1f}" for n in (1, 2, 4))],
            ["ranks: efficiency", *(f"{ranks[n]['efficiency']:.0%}" for n in (1, 2, 4))],
            ["ranks: CPU s of the whole run", *(f"{ranks[n]['cpu']:.0f}" for n in (1, 2, 4))],
            ["sampling workers: frames/s, fastest", *(f"{best[n]:.2f}" for n in (1, 2, 4))],
            ["sampling workers: speed-up", *(f"{best[n] / best[1]:.2f}" for n in (1, 2, 4))],
            ["stream workers, 512²: frames/s", *(f"{1e3 / min(clocks[str(n)]):.0f}" for n in (1, 2, 4))],
        ],
    )
    return f"""# How large can it get?

<!-- Written by `python docs/scale_page.py` from bench/results/scale.json: edit that program. -->

What a free-electron laser, a 16 Mpx detector at full speed and a training on a million frames need in cores, nodes, bytes and hours. It is a model. Its constants were measured on two cores ([table](../bench/results/scale.md), {found["machine"]}); no such experiment was run. The functions are [`StreamNeeds` and `TrainingNeeds`](../nbs/core/ranks/rates.ipynb), so that you can put in your own numbers:

```python
from xrddiff.core.ranks.rates import StreamNeeds, nodes_of

mine = StreamNeeds(rate=133, pixels=18e6, bytes=7e6, decode=0.02, peaks=0.2, index=0.02, take=0.01, hits=0.3)
mine.cores, mine.takers, nodes_of(mine, cores=96, network=12.5e9)
```

## The model

**A frame.** Decoding and finding peaks look at every pixel: $t(N) = a + bN$ for $N$ pixels. Indexing a hit depends on its peaks instead: at most {1e3 * c["index"]:.0f} ms for frames with {min(found_peaks):.0f} to {max(found_peaks):.0f} of them. A pixel takes {c["bytes"]:.2f} bytes as it is sent (uint16, bslz4, simulated frames; with less background it is less).

{fit}

*take*: CPU of the process that receives frames, hands them to workers and writes the table. *alone*: of one that receives frames and answers them itself, without indexing.

**A stream** of $f$ frames a second, of which a trigger drops a share $v$ (the veto) and of the rest a share $h$ are hits, needs

$$C = \\frac{{f\\,(1-v)\\,(t_\\text{{decode}} + t_\\text{{peaks}} + h\\,t_\\text{{index}})}}{{u}},\\qquad T = \\left\\lceil\\frac{{f\\,(1-v)\\,t_\\text{{take}}}}{{u}}\\right\\rceil$$

cores $C$ and taking processes $T$, if each works for a share $u = 0.8$ of the time. Without workers, processes that each take a part of the stream and answer it need $f\\,(1-v)\\,(t_\\text{{alone}} + h\\,t_\\text{{index}})/u$ cores. The network carries $(1-v) f$ frames a second and disks $h$ of them. Memory is for one second of frames and 0.5 GB for each process.

**A training** of $n$ frames, $E$ epochs, $k$ windows of a frame and $b$ windows a step on each of $P$ ranks takes $\\frac{{Enk}}{{bP}}\\,t(P)$, where a step takes the longer of the network's $t_c + t_\\text{{all-reduce}}(P)$ and the loader's $b\\,t_\\text{{decode}}/(kc)$ with $c$ decoding cores for each rank. A window cannot be read without its frame, so one window a frame decodes the most.

**Amdahl.** A part $s$ of the work that is not divided caps the speed-up at $1/s$. A measured speed-up $S$ gives it: $s = (P/S - 1)/(P - 1)$.

### Is the sum of the stages right?

CPU ms of a frame. A stream has more to do than decode and find peaks: messages, hits, the table and the page.

{model}

The tables below are made from the measured process, not from the sum.

## An Eiger 16M at 133 Hz

4150 × 4371 pixels, 133 frames a second. Nodes of 96 cores with links of 12.5 GB/s (100 Gbit/s) and 512 GB.

{stream_table}

With 30% hits, {mid.processes} processes that take and answer. For comparison: CrystFEL with ASAP::O kept up with an EIGER2 X 16M at 133 frames a second at PETRA III on one node of 96 cores, at 242 ms of one thread for a blank and 455 ms for a hit ([White et al. 2025](https://journals.iucr.org/m/issues/2025/01/00/if5005)), which includes integration; ours are {1e3 * mid.alone:.0f} ms and {1e3 * (mid.alone + mid.index):.0f} ms without it, on another machine and on simulated frames.

A frame costs a taker {1e3 * mid.take:.0f} ms, since it is copied to the worker, and a worker {1e3 * mid.work:.0f} ms: one taker and its workers answer {1 / mid.take:.1f} frames a second at most, a process alone {1 / (mid.alone + mid.hits * mid.index):.1f}. So large frames are divided among processes, one for each part of what the detector sends, as `xrddiff stream` does not do by itself.

## LCLS-II

The accelerator is made for up to a million pulses a second ([SLAC](https://ml.slac.stanford.edu/science/lcls)). No large detector records that: imaging detectors are heading for 100 kHz ([Blaj et al. 2019](https://ar5iv.labs.arxiv.org/html/1903.06838)), LCLS has had 120 pulses a second and cameras for them ([Blaj et al. 2015](http://journals.iucr.org/s/issues/2015/03/00/yi5006/index.html)), and its first large one for LCLS-II, ePixHR, is to have 2 Mpx at 5 kHz, 20 GB/s before compression ([SLAC](https://confluence.slac.stanford.edu/pages/diffpagesbyversion.action?originalVersion=33&pageId=368325261&revisedVersion=40)). The data are to be reduced about tenfold before they are stored ([LCLS users' meeting 2020](https://events.bizzabo.com/SLAC-UsersMeeting-2020/agenda/session/332861)). Frames of 2.2 Mpx, compressed as above, which dark and gain-switching frames need not be; of those that the veto leaves, 10% are hits. A veto of 0.9 is that tenfold reduction, by a trigger that looks at no pixel of ours.

{xfel_table}

Without a veto 5 kHz takes {rest.processes:,} cores. The rows with a veto of 0.99 and 0.999 leave 1,000 frames a second, whatever the accelerator does: what matters is $f(1-v)$.

## A training on a million frames of 4 Mpx

Frames of 2048² are {size(1e6 * c["bytes"] * 2048**2)} on disk. Windows of 128², ten epochs; a core trains the tiny autoencoder ({found["parameters"] / 1e6:.2f} M parameters) at {ranks[1]["frames_per_second"]:.0f} windows a second, measured here. A GPU takes {1e3 * H100["step"]:.0f} ms for eight windows of a tiny U-Net ({H100["parameters"] / 1e6:.2f} M parameters), from [a table of an older commit](../bench/results/gpu.md), and has eight cores that decode. Links of 25 GB/s and 5 µs, gradients in float32.

{hours}

With one window a frame, eight windows are {1e3 * gpu.loading:.0f} ms of decoding: {1e3 * gpu.loading / gpu.decoders:.1f} ms on eight cores, hidden behind {1e3 * H100["step"]:.0f} ms of compute, but with one core the GPU {"waits" if gpu.loading > H100["step"] else "hardly waits"} for its loader. On cores decoding is {core.loading / core.step.compute_seconds:.0%} of a step, which the decoding core does meanwhile. What is read must come from somewhere: the last column is what the file system has to give, and sixteen windows a frame ask for a sixteenth. Frames kept in tiles in the cache (`data.window`) are decoded once, and the column is then that of the windows alone.

## Where each stops being linear

| what | linear up to | what comes then |
| --- | --- | --- |
| stream of an Eiger 16M, with workers | {linear_to(mid):.1f} workers for one taker | the taker: {1 / mid.take:.1f} frames a second |
| stream of 2.2 Mpx, with workers | {linear_to(rest):.1f} workers for one taker | the taker: {1 / rest.take:.0f} frames a second |
| network of a node, 2.2 Mpx | {NODE["network"] / (c["bytes"] * XFEL):,.0f} frames a second | more nodes, even with cores left |
| training on cores, one batch of 8 each | {core.step.compute_seconds / core.loading:.0f} ranks for each core that decodes one window a frame | the loader |
| training on GPUs | {gpu.step.compute_seconds / (gpu.loading / gpu.decoders):.1f} × as fast as now | the loader, from then on |

### Measured at the lower end

On {found["cores"]} cores, so four of anything share them: the last column is what a crowded node does, and no scaling. Other work was on the machine, too (load average before the ranks {found["loads"]["ranks"]}, before the workers {found["loads"]["workers"]}), which takes from two as well: alone there, [two ranks made {alone["ranks"]:.2f} times](../bench/results/ranks.md) and [two workers {alone["workers"]:.2f} times](../bench/results/workers.md) as many frames. That is a serial share of {serial_share(2, alone["ranks"]):.2f}, which would cap any number of ranks at {1 / serial_share(2, alone["ranks"]):.0f} if it were one; two cores share caches and memory, so a cluster has to say what it is. The hours above leave it out.

{lower}

Two ranks leave {serial_share(2, ranks[2]["speed_up"]):.2f} of the work undivided by Karp and Flatt, two sampling workers {serial_share(2, best[2] / best[1]):.2f}. With four, {serial_share(4, ranks[4]["speed_up"]):.2f} and {serial_share(4, best[4] / best[1]):.2f}: the share grows because cores are shared, so it is no serial part of the program. The CPU time of a run grows with its ranks, since each loads its packages and its frames.

What was not measured: more than two cores, a network between nodes, a parallel file system and its contention, GPUs of this commit, and detectors that send faster than this machine can.
"""


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(MEASURED.read_text())), encoding="utf-8")
