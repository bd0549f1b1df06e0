"""The communication test over real processes: exact sums, an error that it must see, a rank that is slow; the cost model and measured runs."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import clean_environment, missing

from xrddiff.app.verbs.main import main
from xrddiff.core.errors import BadInput
from xrddiff.core.ranks.comm import SIZES, CommReport, comm_test, slow_ranks
from xrddiff.core.ranks.scaling import (
    Cluster,
    CostModel,
    Network,
    ParticleModel,
    fit_network,
    gradient_bytes,
    least_particles,
    measure_scaling,
    particle_table,
    paying_particles,
    plot_scaling,
    ring_allreduce_time,
    scaling_table,
    simple_allreduce_time,
)
from xrddiff.core.seeds import numpy_rng
from xrddiff.learn.telemetry.history import keep_speed
from xrddiff.learn.training.checkpoints import pack_optimizer, save_checkpoint

COMM = """
import json, sys
from xrddiff.core.ranks.comm import comm_test
from xrddiff.core.ranks.rendezvous import initialize_distributed, exit_rank
info = initialize_distributed(timeout=60)
if "corrupt" in sys.argv and info.process_id == 1:  # a transport that loses the last element on one rank
    import torch.distributed as dist
    whole = dist.all_reduce
    def broken(message, *words, **options):
        whole(message, *words, **options)
        if len(message) > 1000:
            message[-1] += 1
    dist.all_reduce = broken
if "slow" in sys.argv and info.process_id == 2:
    import time
    import xrddiff.core.ranks.comm as comm
    work = comm._work
    comm._work = lambda *words: work(*words) + 0.5
report = comm_test(sizes=[4, 64_000, 1_000_000], rounds=3)
print("REPORT " + json.dumps(json.loads(report.to_json()) | {"seen_by": info.process_id}))
exit_rank(0)
"""


def reports(processes: int, *words: str) -> list[dict]:
    """The report as each rank has it."""
    env = clean_environment() | {"WORLD_SIZE": str(processes), "MASTER_PORT": str(20000 + os.getpid() % 9000)}
    command = [sys.executable, "-c", COMM, *words]
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = [subprocess.Popen(command, env=env | {"RANK": str(r)}, **pipe) for r in range(processes)]
    found = []
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        found.append(json.loads(out.split("REPORT ", 1)[1]))
    return found


@pytest.mark.slow
def test_three_ranks_add_up():
    found = reports(3, "slow")
    assert [r.pop("seen_by") for r in found] == [0, 1, 2]
    report = found[0]
    assert all(r == report for r in found)  # every rank has the same report
    assert report["passed"] and report["num_processes"] == 3 and report["backend"] == "gloo"
    assert [(m["operation"], m["bytes"]) for m in report["messages"]] == [
        (operation, size) for operation in ("all-reduce", "broadcast") for size in (4, 64_000, 1_000_000)
    ]
    for m in report["messages"]:
        assert m["wrong"] == [] and m["ms"] > 0
        assert m["bandwidth"] == pytest.approx(m["bytes"] / m["ms"] / 1e6)
        assert m["bus_bandwidth"] == pytest.approx(m["bandwidth"] * (4 / 3 if m["operation"] == "all-reduce" else 1))
    assert [r["rank"] for r in report["ranks"]] == [0, 1, 2]
    assert all(r["work_ms"] > 0 and r["exchange_ms"] > 0 for r in report["ranks"])
    assert any(h.startswith("rank 2 on ") and "its own work" in h for h in report["hints"])


@pytest.mark.slow
def test_a_wrong_sum_is_seen_and_placed():
    report = reports(2, "corrupt")[0]
    assert not report["passed"]
    assert [m["wrong"] for m in report["messages"]] == [[], [1], [1], [], [], []]


def test_under_srun_on_two_nodes(lab, tmp_path):
    script = tmp_path / "comm.py"
    script.write_text(COMM)
    env = lab.env | {"OMP_NUM_THREADS": "1"}
    words = ["-N2", "--ntasks-per-node=1", f"--output={tmp_path}/%t.txt"]
    lab.call("srun", *words, sys.executable, str(script), timeout=120, env=env)
    report = json.loads((tmp_path / "0.txt").read_text().split("REPORT ", 1)[1])
    assert report["passed"] and report["num_nodes"] == report["num_processes"] == 2
    assert len({row["host"] for row in report["ranks"]}) == 2


def test_under_mpirun():
    """The command itself, as a user starts it with Open MPI."""
    if not shutil.which("mpirun"):
        missing("mpirun not found (apt-get install openmpi-bin)")
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    command += [
        str(Path(sys.executable).parent / "xrddiff"),
        "cluster",
        "comm-test",
        "--sizes",
        "4,1k",
        "--rounds",
        "2",
        "--json",
    ]
    done = subprocess.run(
        command, env=clean_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] and (report["num_processes"], report["num_nodes"]) == (2, 1)
    assert [row["rank"] for row in report["ranks"]] == [0, 1]


@pytest.mark.parametrize(
    "bad", [dict(sizes=[]), dict(sizes=[0]), dict(sizes=[4, -4]), dict(sizes=[1.5]), dict(rounds=0)]
)
def test_sizes_that_are_none(bad):
    with pytest.raises(BadInput, match="expected bytes of at least 1"):
        comm_test(**bad)


def test_alone():
    report = comm_test(rounds=1)
    assert report.passed and report.messages == [] and report.latency_ms is None
    assert report.ranks[0]["work_ms"] > 0 and len(SIZES) == 5
    assert json.loads(report.to_json())["num_processes"] == 1


def row(rank: int, work: float, exchange: float | None = None) -> dict:
    return dict(rank=rank, host=f"n{rank}", work_ms=work, exchange_ms=exchange)


def test_a_slow_node_is_told_from_its_neighbours():
    """Of four nodes n2 has a bad cable: its partners are as fast as ever with their other neighbour."""
    slow = slow_ranks([row(0, 1.0, 1.0), row(1, 1.0, 1.0), row(2, 1.0, 8.0), row(3, 1.0, 1.2)])
    assert len(slow) == 1 and "rank 2 on n2 needs 8.00 ms for an exchange" in slow[0] and "8.0 times" in slow[0]


def test_of_two_the_slower_one_is_named():
    assert "rank 1 on n1" in slow_ranks([row(0, 1.0), row(1, 2.0)])[0]
    assert slow_ranks([row(0, 1.0, 1.0), row(1, 1.4, 9.0)]) == []  # one pair: its exchange has no other to compare with


def test_a_report_reads():
    report = CommReport(1, 1, "gloo", 3, [], [row(0, 1.0)])
    assert "nothing to send" in str(report) and "<table" in report._repr_html_()


# %% Cost model


@pytest.mark.parametrize(("parameters", "megabytes", "milliseconds"), [(50e6, 100, 8), (200e6, 400, 32)])
def test_the_estimate_of_frontier(parameters, megabytes, milliseconds):
    n = gradient_bytes(parameters)
    assert n == megabytes * 1e6
    assert simple_allreduce_time(n, 25) == pytest.approx(milliseconds / 1e3)
    assert ring_allreduce_time(n, 80, 25) == pytest.approx(79 / 80 * milliseconds / 1e3)
    # our own gradients are float32: twice that
    assert simple_allreduce_time(gradient_bytes(parameters, 4), 25) == pytest.approx(2 * milliseconds / 1e3)


def test_a_network_is_found_again_through_noise():
    sizes = [4, 1_000, 32_000, 1_000_000, 32_000_000]
    rng = numpy_rng("network")
    for ranks in (2, 5, 64):
        times = [ring_allreduce_time(n, ranks, 2.0, 30e-6) * rng.uniform(0.95, 1.05) for n in sizes]
        network = fit_network(sizes, times, ranks)
        assert network.bandwidth == pytest.approx(2.0, rel=0.15) and network.latency == pytest.approx(30e-6, rel=0.15)


@pytest.mark.parametrize("bad", [([4], [1e-3], 2), ([4, 8], [1e-3, 2e-3], 1), ([4, 1e6], [1e-3, 1e-9], 2)])
def test_a_network_that_cannot_be_found(bad):
    with pytest.raises(BadInput, match="expected"):
        fit_network(*bad)


def test_the_model_of_a_step():
    model = CostModel(200e6, compute_seconds=0.12, bandwidth=25, ranks_per_node=8)
    table = scaling_table(model, [1, 4, 10])
    assert table["ranks"].tolist() == [8, 32, 80]
    assert table["step_ms"].to_numpy() == pytest.approx(120 + 32 * (1 - 1 / table["ranks"].to_numpy()))
    assert (table["efficiency"].diff().dropna() < 0).all() and (table["speed_up"].diff().dropna() > 0).all()
    assert table["efficiency"].iloc[-1] == pytest.approx(0.12 / (0.12 + 0.032 * 79 / 80))
    hidden = scaling_table(CostModel(200e6, 0.12, 25, overlap=0.5), [1, 32])
    assert hidden["exposed_ms"].tolist() == [0, 0] and hidden["efficiency"].tolist() == [1, 1]
    latency = CostModel(200e6, 0.12, 25, latency=1e-3)
    assert latency.step(1000)["all_reduce"] == pytest.approx(0.032 * 0.999 + 2 * 999 * 1e-3)
    strong = CostModel(50e6, 0.1, 25, strong=True)
    assert strong.step(10)["step"] == pytest.approx(0.01 + 0.9 * 8e-3)
    ax = plot_scaling({"predicted": table})
    assert ax.lines[0].get_xdata().tolist() == [1, 4, 10]


@pytest.mark.parametrize(
    "bad",
    [dict(bandwidth=0), dict(parameters=-1), dict(overlap=1.5), dict(latency=-1e-6), dict(compute_seconds=math.nan)],
)
def test_a_model_that_cannot_be(bad):
    with pytest.raises(BadInput, match=f"{next(iter(bad))} is|overlap is"):
        CostModel(**(dict(parameters=50e6, compute_seconds=0.1, bandwidth=25) | bad))


def test_links_inside_of_nodes():
    """Fast links inside do not help a ring that leaves the node; two levels send least between nodes; a tree has the fewest rounds."""
    words = dict(parameters=200e6, compute_seconds=0.12, bandwidth=25, latency=5e-6, ranks_per_node=8)
    inside = Network(600, 2e-6)
    flat = CostModel(**words).step(64)["all_reduce"]
    ring, levels, tree = (
        CostModel(**words, inside=inside, algorithm=how).step(64)["all_reduce"] for how in ("ring", "two-level", "tree")
    )
    assert ring == pytest.approx(flat) and levels < ring < tree
    assert CostModel(**words, inside=inside).step(8)["all_reduce"] < CostModel(**words).step(8)["all_reduce"] / 10
    short = Cluster(Network(25, 5e-6), inside, 8)
    assert short.all_reduce(8, 64, "tree") == pytest.approx(2 * 3 * 2e-6 + 2 * 3 * 5e-6, rel=1e-3)
    with pytest.raises(BadInput, match="12 ranks do not fill nodes of 8 ranks"):
        short.all_reduce(8, 12)
    with pytest.raises(BadInput, match="did you mean 'tree'"):
        short.all_gather(8, 16, "three")
    with pytest.raises(BadInput, match="latency is -1"):
        Cluster(Network(25, -1))


def test_the_model_of_particles():
    model = ParticleModel(4096, 64, 1e-4, 1e-8, Cluster(Network(25, 5e-6), Network(600, 2e-6), 16))
    table = particle_table(model, [1, 4, 64])
    assert table["ranks"].tolist() == [16, 64, 1024] and table["per_rank"].tolist() == [256, 64, 4]
    assert (table["share"].diff().dropna() > 0).all() and (table["efficiency"].diff().dropna() < 0).all()
    parts = table[["score_ms", "pairs_ms", "fixed_ms", "ring_ms", "agree_ms"]].sum(axis=1)
    assert table["step_ms"].to_numpy() == pytest.approx(parts.to_numpy())
    for each, share in ((1.5, 0.1), (0.5, 0.1)):
        least = least_particles(model, 64)
        more = ParticleModel(round(each * least) * 64, 64, 1e-4, 1e-8, model.cluster).step(64)["share"]
        assert (more <= share) == (each > 1)
    assert paying_particles(model, 1024) >= 1 and len(particle_table(model, [1, 2, 1000])) == 2
    with pytest.raises(BadInput, match="4096 rows cannot be shared by 16000 ranks"):
        particle_table(model, [1000])
    slowed = ParticleModel(4096, 64, 1e-4, 1e-8, model.cluster, fixed_seconds=0.1).step(64)  # what is not shared
    assert slowed["step"] == pytest.approx(model.step(64)["step"] + 0.1) and slowed["speed_up"] < 7
    with pytest.raises(BadInput, match="pair_seconds is 0"):
        ParticleModel(10, 2, 1e-3, 0, model.cluster)


def test_the_command_predicts(tmp_path, capsys):
    """From a number, or from a run, which says how many it trains; and what cannot be drawn is refused before anything is shown."""
    net = torch.nn.Linear(300, 1000)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    tensors, _ = pack_optimizer(optimizer, net)
    save_checkpoint(tmp_path / "checkpoints", 7, dict(model=net.state_dict(), optimizer=tensors), {})
    words = ["cluster", "scaling", "--bandwidth", "25", "--params"]
    assert main([*words, str(tmp_path)]) == 0 and main([*words, "301k"]) == 0
    out, err = capsys.readouterr()
    first, second = out[: len(out) // 2], out[len(out) // 2 :]
    assert first == second and first.startswith("0.301 M parameters, 0.602 MB of gradients") and err == ""

    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    figure = ["-o", str(tmp_path / "file" / "figure.png")]
    for more, sentence in (
        ([str(tmp_path / "empty")], "has no checkpoint with an optimiser"),
        ([str(tmp_path / "nowhere")], "expected a number such as 50e6 or 50M, or the folder of a run"),
        (["50M", *figure], "give --step-ms"),
        (["50M", "--step-ms", "100", *figure], "is not a folder"),
    ):
        assert main([*words, *more]) == 2
        out, err = capsys.readouterr()
        assert out == "" and sentence in err and err.count("\n") == 1


def test_the_command_predicts_particles(tmp_path, capsys):
    words = [
        "cluster",
        "scaling",
        "--particles",
        "4k",
        "--dimensions",
        "64",
        "--score-ms",
        "5",
        "--pair-ns",
        "15",
        "--ranks-per-node",
        "16",
    ]
    link = ["--bandwidth", "25", "--latency-us", "5", "--inside", "600", "--inside-latency-us", "2"]
    assert main([*words, *link, "--json", "-o", str(tmp_path / "figure.svg")]) == 0
    rows = json.loads(capsys.readouterr().out)
    model = ParticleModel(4000, 64, 5e-3, 15e-9, Cluster(Network(25, 5e-6), Network(600, 2e-6), 16))
    assert [r["nodes"] for r in rows] == [1, 2, 4, 8, 16, 32, 64] and (tmp_path / "figure.svg").stat().st_size > 1000
    assert rows[-1]["step_ms"] == pytest.approx(1e3 * model.step(1024)["step"])
    for wrong, sentence in (
        (words, "--particles: expected --dimensions, --score-ms, --pair-ns and --bandwidth"),
        ([*words, *link, "--params", "5M"], "found both"),
        ([*words, *link, "--algorithm", "rings"], "did you mean 'ring'"),
        ([*words, *link, "--inside", "0"], "bandwidth is 0; expected a number above 0"),
        ([*words, *link, "--nodes", "1000"], "4000 rows cannot be shared by 16000 ranks"),
    ):
        assert main(wrong) == 2
        out, err = capsys.readouterr()
        assert out == "" and sentence in err and err.count("\n") == 1, err


# %% Measured runs


def make_run(folder: Path, attempts: object, model: str = "model_name: VAE") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"model:\n  {model}\n")
    for a in attempts if isinstance(attempts, list) else []:
        keep_speed(folder / "metrics", **a)
    if isinstance(attempts, str):
        (folder / "metrics").mkdir()
        (folder / "metrics" / "speed.json").write_text(attempts)
    return folder


def attempt(ranks: int, rate: float, nodes: int | None = None, seconds: float = 10.0) -> dict:
    return dict(ranks=ranks, nodes=nodes or ranks, frames=round(rate * seconds), seconds=seconds)


def test_measured_runs(tmp_path):
    one = make_run(tmp_path / "one", [attempt(1, 10), attempt(1, 30)])  # interrupted and resumed: 20 per second
    eight = make_run(tmp_path / "eight", [attempt(8, 130)])
    many = make_run(tmp_path / "many", [attempt(16, 200), attempt(32, 250), attempt(64, 300)])
    table = measure_scaling([many, one, eight])
    assert table["ranks"].tolist() == [1, 8, 16, 32, 64]
    assert table["speed_up"].tolist() == pytest.approx([1, 6.5, 10, 12.5, 15])
    assert table["efficiency"].tolist() == pytest.approx([1, 6.5 / 8, 10 / 16, 12.5 / 32, 15 / 64])
    assert table["verdict"].tolist() == ["good", "good", "good", "poor", "unrated"]
    assert table["run"].tolist() == [str(one), str(eight), str(many), str(many), str(many)]


def test_without_a_run_on_one_rank(tmp_path):
    runs = [make_run(tmp_path / str(n), [attempt(n, r, nodes=1)]) for n, r in ((2, 40), (4, 72))]
    table = measure_scaling(runs)
    assert table["efficiency"].tolist() == pytest.approx([1, 0.9]) and table["nodes"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("attempts", "word"),
    [
        ([], "it has not trained yet"),
        ("{}[", "cannot be read"),
        ('[{"ranks": 1}]', "is not a list of attempts"),
        ("7", "is not a list of attempts"),
    ],
)
def test_runs_without_a_speed(tmp_path, attempts, word):
    with pytest.raises(BadInput, match=word):
        measure_scaling([make_run(tmp_path / "run", attempts)])


def test_runs_of_any_length_are_compared(tmp_path):
    """Steps and epochs, learning rates, what is logged and where: none of it decides how long a frame takes."""
    for ranks, rate in ((1, 20), (2, 36)):
        run = make_run(tmp_path / str(ranks), [attempt(ranks, rate)], f"{{model_name: diff, diff_epochs: {ranks}}}")
        more = f"{{batch_size: 4, max_steps: {100 * ranks}, num_epochs: {ranks}, lr: {ranks}, seed: {ranks}, log_every: {ranks}}}"
        with open(run / "config.yaml", "a") as file:
            file.write(f"training: {more}\ndata: {{data_id: 522, limit: {ranks}}}\n")
    assert measure_scaling([tmp_path / "1", tmp_path / "2"])["efficiency"].tolist() == pytest.approx([1, 0.9])


def test_runs_that_cannot_be_compared(tmp_path):
    runs = [make_run(tmp_path / name, [attempt(1, 20)], f"model_name: {name}") for name in ("VAE", "VQVAE")]
    with pytest.raises(BadInput, match="model.model_name=VQVAE and .*VAE has VAE; expected runs of one model"):
        measure_scaling(runs)
    for name, value in (("data.crop", "[64, 64]"), ("training.global_batch_size", "8"), ("size.name", "xl")):
        place = tmp_path / name
        for end, found in (("a", "null"), ("b", value)):
            make_run(place / end, [attempt(1, 20)])
            section, word = name.split(".")
            with open(place / end / "config.yaml", "a") as file:
                file.write(f"{section}: {{{word}: {found}}}\n")
        with pytest.raises(
            BadInput, match=f"b has {name}=.* and .*a has None; expected runs of one model, on the same"
        ):
            measure_scaling([place / "a", place / "b"])
    with pytest.raises(BadInput, match="no run was named"):
        measure_scaling([])
    with pytest.raises(BadInput, match="it is not a run folder"):
        measure_scaling([tmp_path / "nowhere"])
