"""Whole runs on several real ranks (gloo): the same weights on 1, 2 and 4, stops and failures that all ranks agree on.

As in `test_training`, PyTorch is imported once, by this file run as a script, which forks the ranks.
"""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import warm
from test_training import end_codes, on_ranks

pytestmark = pytest.mark.slow

SMALL = [
    "experiment_type=test", "data=sim128", "data.limit=48", "threads=1", "training.log_every=2",
    "training.global_batch_size=8", "training.batch_size=8", "training.num_epochs=100",
    "training.validate_every=10", "training.checkpoint_every=1000",
    "inference.limit=4", "inference.num_samples=4", "inference.steps=2", "inference.batch_size=4",
]  # fmt: skip
# Four epochs of five steps. The last batch of an epoch of 39 training frames has 7: shares are unequal on 2 and on 4 ranks.
FEW = ["data.crop=[32,32]", "training.max_steps=20"]
MODELS = {"vae_kl": FEW, "vq": [*FEW, "model.codes=32"], "ddpm": FEW, "latent_diff": FEW}


# What follows runs inside the script.


def preload():
    """What the run notebooks import, once."""
    import accelerate  # noqa: F401
    import pandas  # noqa: F401

    import xrddiff.judge.inference.sample_jobs
    import xrddiff.judge.metrics.judgement
    import xrddiff.judge.metrics.reconstruction
    import xrddiff.judge.views.judgement  # noqa: F401
    import xrddiff.judge.views.report  # noqa: F401
    import xrddiff.learn.recipes.setup
    import xrddiff.learn.training.trainer
    import xrddiff.run.execution.phases  # noqa: F401


def run(*words):
    """A run on this rank, alone or with others, up to the evaluation, which rank 0 makes alone in any case, and a report that stands for it."""
    from xrddiff.run.execution.phases import execute_run
    from xrddiff.run.execution.run_folder import Run

    whole = Run.continue_on_rank_0

    def goes_on(self, what):
        if what != "the table":  # the statistics of a latent are needed
            self.write_text("report.html", "")
            raise SystemExit(0)
        whole(self, what)

    Run.continue_on_rank_0 = goes_on
    return execute_run(words, terminal=False)


def new(folder, *words):
    """The words of a new run in `folder`."""
    return [*SMALL, f"output_dir={folder}", "run_name=run", *words]


def of(folder, model):
    return Path(folder) / f"{model}_test" / "run"


def weights(path):
    """Weights and averages of the newest checkpoint in `path`, by name; and the table of losses."""
    from xrddiff.learn.training.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(path)
    tensors = {f"{g}/{k}": t for g in ("model", "ema") for k, t in checkpoint.tensors(g).items()}
    return checkpoint, tensors, json.loads((path / "metrics" / "training_metrics.json").read_text())


def compare(one, other):
    """Weights agree to 1e-5, the biases of attention keys, whose true gradient is zero, to 1e-4; the greatest difference and where it is."""
    import torch

    assert set(one) == set(other)
    worst = max((float((one[k].double() - other[k].double()).abs().max()), k) for k in one)
    for k in one:
        tolerance = 1e-4 if "to_k.bias" in k else 1e-5
        torch.testing.assert_close(
            other[k], one[k], rtol=tolerance, atol=tolerance, msg=lambda text, k=k: f"{k}: {text}"
        )
    return worst


def script_invariance(folder, model):
    # on 2 ranks, ddpm is also compared by `script_resume`, and a codebook by test_codebook
    out, many_ranks = {}, (2, 4) if model == "vae_kl" else (4,)
    for n in (1, *many_ranks):
        began = time.monotonic()
        on_ranks(n, lambda r, n=n: run(*new(folder / str(n), f"model={model}", *MODELS[model])), timeout=300)
        out[f"{n} seconds"] = round(time.monotonic() - began, 1)
        log = (of(folder / str(n), model) / "log.txt").read_text()
        assert "\\n" not in log and "\\x" not in log, log  # a table has its lines, and no escapes
        rows = [line.split()[0] for line in log.splitlines() if f"/{n} " in line[:12]]
        trainings = 2 if model.startswith("latent") else 1
        assert n == 1 or rows == [f"{r + 1}/{n}" for r in range(n)] * trainings, log
    parts = ["autoencoder", "."] if model.startswith("latent") else ["."]
    for part in parts:
        checkpoint, one, rows = weights(of(folder / "1", model) / part)
        for n in many_ranks:
            path = of(folder / str(n), model) / part
            other, many, table = weights(path)
            assert other.state["samples_seen"] == checkpoint.state["samples_seen"]
            out[f"{part} {n}"] = compare(one, many)
            assert [(r["step"], r["split"]) for r in rows] == [(r["step"], r["split"]) for r in table]
            losses = [(a["loss"], b["loss"]) for a, b in zip(rows, table, strict=True)]
            out[f"{part} {n} loss"] = max(abs(a / b - 1) for a, b in losses)
            # A held-out vector half-way between two codes goes to either by the last bit, and its frame is decoded from the other
            # code: seen once, one vector of 640, its squared distances 0.00990737 and 0.00990739, all else alike to 1e-6.
            # The distance to the chosen code does not jump, so that it still tells whether the ranks average rightly.
            held_out = [model == "vq" and row["split"] == "validation" for row in rows]
            near = [1e-3 if jumps else 1e-5 for jumps in held_out]
            assert all(abs(a - b) < t * max(1, abs(a)) for (a, b), t in zip(losses, near, strict=True)), losses
            # AdamW makes the same step of a gradient and of twice that: the weights do not tell a sum over ranks from a mean
            norms = [  # of every second step, and of the last of each epoch
                (a["grad_norm"], b["grad_norm"]) for a, b in zip(rows, table, strict=True) if a["split"] == "train"
            ]
            assert len(norms) == 12 and all(abs(a - b) < 5e-4 * a for a, b in norms), norms
            kept = [(a["commitment"], b["commitment"]) for a, b, j in zip(rows, table, held_out, strict=True) if j]
            assert len(kept) == (2 if model == "vq" else 0) and all(abs(a - b) < 1e-5 * a for a, b in kept), kept
    return out


def script_resume(folder, model):
    """A real run stopped at 2 ranks, by a signal to one of them, gone on with 1 and with 4: no frame repeated, none left out, the same weights."""
    import shutil
    import signal

    from xrddiff.learn.diffusion.objectives import DenoisingObjective
    from xrddiff.learn.losses import VAEObjective
    from xrddiff.run.execution.status import stopped_by

    objective = {"vae_kl": VAEObjective, "ddpm": DenoisingObjective}[model]
    words = new(folder, f"model={model}", *MODELS[model])
    forward = objective.forward

    def train(served, *words, stop_at=None):
        """A run that notes every frame it trains on, with its step."""

        def noted(self, batch, step):
            if self.training:
                with open(f"{served}-{os.environ['RANK']}", "a") as file:
                    file.write("".join(f"{step} {i}\n" for i in batch["index"].tolist()))
                if step == stop_at and os.environ["RANK"] == "1":
                    signal.raise_signal(signal.SIGUSR2)
            return forward(self, batch, step)

        objective.forward = noted
        run(*words)

    def frames(name):
        return sorted("".join(p.read_text() for p in folder.glob(f"{name}-?")).split("\n"))

    on_ranks(1, lambda r: train(folder / "served-whole", *words))
    part = of(folder, model).with_name("part")
    on_ranks(2, lambda r: train(folder / "served-part", *words, "run_name=part", stop_at=9))
    assert stopped_by(part) == "SIGUSR2"
    checkpoint, _, _ = weights(part)
    assert checkpoint.state["step"] == 10 and not checkpoint.state["finished"]
    _, one, _ = weights(part.with_name("run"))
    out = {}
    for n in (1, 4):
        shutil.copytree(part, path := part.with_name(f"part-{n}"))
        on_ranks(n, lambda r, n=n, path=path: train(folder / f"served-{n}", f"resume={path}"))
        checkpoint, many, _ = weights(path)
        assert checkpoint.state["finished"] and stopped_by(path) is None
        out[n] = compare(one, many)
        both = sorted([*frames("served-part"), *frames(f"served-{n}")])
        assert [line for line in both if line] == [line for line in frames("served-whole") if line]
    return out


def script_samples(folder):
    """What one rank samples at the end of a training, three sample too, bit for bit; also when one of them is told to stop between two parts and two others go on.

    The sampler and the network are those of a plug-in, of which the run keeps a copy.
    """
    import shutil
    import signal

    from xrddiff.data.formats.store import read_store
    from xrddiff.run.execution import sharing
    from xrddiff.run.execution.status import stopped_by

    few = ["training.max_steps=2", "inference.num_samples=9", "inference.batch_size=2", "network=Plain"]
    few += ["inference.sampler=damped", "inference.sampler_options={strength: 0.5}", f"plugins=[{folder}/mine.ipynb]"]
    shutil.copy(Path(__file__).parent.parent / "nbs" / "tutorials" / "extending.ipynb", folder / "mine.ipynb")
    os.environ["XRDDIFF_STATE"] = str(folder / "state")
    on_ranks(1, lambda r: run(*new(folder, "model=ddpm", *MODELS["ddpm"], *few)))
    alone = of(folder, "ddpm")
    pixels = read_store(alone / "samples" / "samples.zarr")["intensity"].values
    assert len(pixels) == 9 and len({p.tobytes() for p in pixels}) == 9
    shutil.rmtree(alone / "samples" / "samples.zarr")  # for them to be made again, by others
    (folder / "mine.ipynb").unlink()

    make, made = sharing._sample_part, folder / "made"

    def part(run, words, store, number, *, device):
        with open(f"{made}-{os.environ['WORLD_SIZE']}-{os.environ['RANK']}", "a") as file:
            file.write(f"{number} ")
        if os.environ["WORLD_SIZE"] == "3" and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGUSR2)
        return make(run, words, store, number, device=device)

    sharing._sample_part = part
    on_ranks(3, lambda r: run(f"resume={alone}"))
    assert stopped_by(alone) == "SIGUSR2" and not (alone / "samples" / "samples.zarr").exists()
    on_ranks(2, lambda r: run(f"resume={alone}"))
    assert stopped_by(alone) is None
    assert {p.name[5:]: p.read_text() for p in folder.glob("made-*")} == {
        "3-0": "0 ", "3-1": "1 ", "3-2": "2 ", "2-0": "3 ", "2-1": "4 "
    }  # fmt: skip
    assert (read_store(alone / "samples" / "samples.zarr")["intensity"].values == pixels).all()


# A run notebook without a model: what every run notebook does with its ranks, and a place for things to happen.

TOY = (
    'model = "vae_kl"\nexperiment_type = "train"\ndata = "full"\noverrides = []\nrun_dir = None',
    "import json, os, time\nfrom types import SimpleNamespace\n"
    "from xrddiff.run.execution.run_folder import open_run\nfrom xrddiff.config.plan import compose_plan\n"
    "from xrddiff.core.ranks.agreement import Ranks\nfrom xrddiff.core.ranks.agreement import StopRequest\n"
    'plan = compose_plan([f"model={model}", f"experiment_type={experiment_type}", f"data={data}", *overrides])\n'
    "run = open_run(plan, run_dir)\nrank, size = (int(os.environ[n]) for n in ('RANK', 'WORLD_SIZE'))\n"
    "ranks = Ranks(SimpleNamespace(process_index=rank, num_processes=size))\nfrom test_ranks_runs import act",
    "act('prepare', rank)\nranks.gather(rank)",
    "done = run.checkpoints / 'done.txt'\nfirst = int(done.read_text()) if done.exists() else 0\nstopped = False\n"
    "with StopRequest() as stop:\n    for step in range(first, 10):\n        if stopped := ranks.asked(stop):\n            break\n"
    "        act(f'step {step}', rank)\n        assert sum(ranks.gather(rank)) == size * (size - 1) // 2\n"
    "        if rank == 0:\n            run.write_text('checkpoints/done.txt', str(step + 1))\n",
    "if stopped:\n    run.end_early(stop.reason)\nrun.continue_on_rank_0('the evaluation')",
    "act('evaluate', rank)",
    "run.write_text('report.html', f'steps {first} to 10');",
)


def act(place, rank):
    """What the test wants to happen here on this rank: `place` → `what` for some rank."""
    import signal

    for at, who, what in json.loads(os.environ.get("XRDDIFF_TEST_ACTS", "[]")):
        if (at, who) != (place, rank):
            continue
        if what == "raise":
            raise RuntimeError(f"power cut on rank {rank}")
        if what.startswith("sleep"):
            time.sleep(float(what.split()[1]))
        else:
            os.kill(os.getpid(), getattr(signal, what))


def toy(folder, name, n, *acts, resume=False, engine="inprocess"):
    """Run the toy on n ranks with these acts; each rank tells how it ended: dict(said, seconds of its CPU). The code of one that does not end is None."""
    import nbformat

    cells = [nbformat.v4.new_code_cell(source) for source in TOY]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "toy.ipynb")

    def work(rank):
        from xrddiff.core.errors import XrddiffError
        from xrddiff.run.execution import phases as jobs

        os.environ["XRDDIFF_TEST_ACTS"] = json.dumps(acts)
        os.chdir(folder)
        jobs.run_notebook_path = lambda name: folder / "toy.ipynb"
        words = [f"resume=output/vae_kl/{name}"] if resume else ["data=sim128", f"run_name={name}", f"engine={engine}"]
        said, code = None, 0
        try:
            jobs.execute_run(words, terminal=False)
        except XrddiffError as error:
            said, code = str(error), 1
        cpu = sum(os.times()[:2])
        (folder / f"{name}-{rank}.json").write_text(json.dumps(dict(said=said, cpu=cpu)))
        os._exit(code)

    codes = end_codes(n, work, timeout=120)
    told = [folder / f"{name}-{rank}.json" for rank in range(n)]
    ended = [json.loads(path.read_text()) if path.exists() else {} for path in told]
    return dict(codes=codes, ended=ended, path=folder / "output" / "vae_kl" / name)


def state(found):
    """Exit codes, what stopped the run, the report, the ranks that failed in the order in which that is told."""
    from xrddiff.run.execution.status import read_failures, stopped_by

    path = found["path"]
    report = (path / "report.html").read_text() if (path / "report.html").exists() else None
    return found["codes"], stopped_by(path), report, [mark["rank"] for mark in read_failures(path)]


def script_stops(folder):
    """USR2 to one rank, or to all, wherever they are: all stop together, or finish together, and the run goes on later."""
    stopped = ([0, 0, 0], "SIGUSR2", None, [])
    done = ([0, 0, 0], None, "steps 0 to 10", [])

    training = toy(folder, "training", 3, ("step 4", 1, "SIGUSR2"))
    assert state(training) == stopped and (training["path"] / "checkpoints" / "done.txt").read_text() == "5"
    gone_on = toy(folder, "training", 2, resume=True)
    assert state(gone_on) == ([0, 0], None, "steps 5 to 10", [])
    assert (gone_on["path"] / "notebook.1.ipynb").exists() and (
        gone_on["path"] / "ranks" / "rank-0001.1.ipynb"
    ).exists()

    early = toy(
        folder, "early", 3, ("prepare", 2, "SIGTERM")
    )  # rank 2 was asked while it read its frames, others wait for it
    assert state(early) == ([0, 0, 0], "SIGTERM", None, [])
    every = toy(folder, "every", 3, *(("prepare", rank, "SIGUSR2") for rank in range(3)))
    assert state(every) == stopped

    judging = toy(folder, "judging", 3, ("evaluate", 0, "SIGUSR2"), ("evaluate", 0, "sleep 900"))
    assert state(judging) == stopped  # broken off: it can be made again
    assert state(toy(folder, "judging", 3, resume=True)) == ([0, 0, 0], None, "steps 10 to 10", [])

    patient = toy(folder, "patient", 3, ("evaluate", 0, "sleep 4"))
    assert state(patient) == done
    brisk = toy(folder, "brisk", 3)
    assert state(brisk) == done
    waited = max(a["cpu"] - b["cpu"] for a, b in zip(patient["ended"][1:], brisk["ended"][1:], strict=True))
    assert waited < 2, waited  # asleep
    return {"cpu of 4 s of waiting": round(waited, 2)}


def script_failures(folder):
    """What fails on one rank ends all, soon, and is what is told first."""
    alone = toy(folder, "prepare", 3, ("prepare", 1, "raise"))
    codes, _, steps, failed = state(alone)
    assert codes == [1, 1, 1] and steps is None and failed[0] == 1 and sorted(failed) == [0, 1, 2]
    assert "power cut on rank 1" in alone["ended"][1]["said"] and "rank-0001.ipynb" in alone["ended"][1]["said"]
    for rank in (0, 2):
        said = alone["ended"][rank]["said"]
        assert said.startswith(f"rank {rank} lost the others; rank 1 on ") and "power cut on rank 1" in said, said
    assert "power cut" in (alone["path"] / "ranks" / "rank-0001.ipynb").read_text()
    assert "power cut" in (alone["path"] / "ranks" / "rank-0001.txt").read_text()
    assert state(toy(folder, "prepare", 2, resume=True)) == ([0, 0], None, "steps 0 to 10", [])  # marks are cleared

    judging = toy(folder, "judging", 3, ("evaluate", 0, "sleep 1"), ("evaluate", 0, "raise"))
    assert state(judging)[0] == [1, 1, 1] and state(judging)[3][0] == 0
    assert "lost the others; rank 0 on" in judging["ended"][2]["said"]

    killed = toy(folder, "killed", 3, ("step 3", 2, "SIGKILL"))
    codes, _, _, failed = state(killed)
    assert codes == [1, 1, -9] and set(failed) == {0, 1}
    assert state(toy(folder, "killed", 3, resume=True)) == ([0, 0, 0], None, "steps 3 to 10", [])

    kernel = toy(folder, "kernel", 2, engine="kernel")
    assert kernel["codes"] == [1, 1] and all(
        "expected inprocess for a run of 2 ranks" in e["said"] for e in kernel["ended"]
    )
    from xrddiff.run.execution.run_folder import hold_run

    with hold_run(brisk := toy(folder, "held", 2)["path"]):
        held = toy(folder, "held", 2, resume=True)
    assert held["codes"] == [1, 1] and all(
        f"held is being executed by process {os.getpid()}" in e["said"] for e in held["ended"]
    )
    assert brisk.name == "held"
    return {"told": alone["ended"][0]["said"]}


def run_script(name, *args):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = warm.run(__file__, name, *args, env=env, timeout=590)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


# The tests.


@pytest.mark.parametrize("model", MODELS)
def test_the_same_on_any_number_of_ranks(tmp_path, model):
    found = run_script("invariance", tmp_path, model)
    print(model, found)


@pytest.mark.parametrize("model", ["vae_kl", "ddpm"])
def test_resumed_on_another_number_of_ranks(tmp_path, model):
    print(run_script("resume", tmp_path, model))


def test_samples_by_all_ranks_of_a_training(tmp_path):
    run_script("samples", tmp_path)


def test_a_stop_is_agreed(tmp_path):
    run_script("stops", tmp_path)


def test_the_first_failure_is_told_first(tmp_path):
    run_script("failures", tmp_path)


def test_ranks_from_jupyterlab(tmp_path):
    """`launch_ranks` in a real kernel, whose cells have used PyTorch's threads before: a run, and a failure in one sentence."""
    import nbformat

    from xrddiff.run.execution.notebooks import run_notebook

    words = [*SMALL, "data.crop=[32,32]", "training.max_steps=4", f"output_dir={tmp_path}/output", "run_name=run"]
    cells = [
        nbformat.v4.new_code_cell(source)
        for source in (
            "words = []",
            "import torch\nfrom xrddiff.run.slurm.launch import launch_ranks\nfrom xrddiff.core.errors import XrddiffError\n"
            "torch.randn(512, 512) @ torch.randn(512, 512)\nprint(launch_ranks(words, 2))",
            "try:\n    launch_ranks([*words, 'data.data_path=/dev/null', 'data.name=null', 'run_name=bad'], 2)\n"
            "except XrddiffError as error:\n    print('told:', error)",
        )
    ]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "source.ipynb")
    target = run_notebook(tmp_path / "source.ipynb", tmp_path / "lab.ipynb", dict(words=words), engine="kernel")
    run = of(tmp_path / "output", "vae_kl")
    assert (run / "report.html").exists() and (run / "ranks" / "rank-0001.ipynb").exists()
    assert json.loads((run / "environment.json").read_text())["ranks"] == 2
    outputs = [o for cell in nbformat.read(target, 4).cells for o in cell.get("outputs", [])]
    told = "".join(o.get("text", "") for o in outputs)
    assert "/dev/null is a device, a pipe or a socket" in told.partition("told: rank ")[2], told
    assert "Launching" not in told  # on CUDAs, as accelerate says wherever it is


if __name__ == "__main__":
    name, folder, *args = sys.argv[1:]
    preload()
    print(json.dumps(globals()[f"script_{name}"](Path(folder), *args)))
