"""Go through training, sampling and sweeps on a toy cluster, and write down what was typed and what came back.

    python docs/cluster_tour.py [PAGE]

Writes docs/cluster_tour.md. Everything on that page is from one run of this program, which also looks whether it is so: it ends with an
error, and writes nothing, if the training that lost a node has other weights than one that did not, or a sample another bit.

Needs root and SLURM (see slurm/README.md) and about five minutes on two cores; the documentation is built from the page, without a cluster.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cluster_tour.md"
T = TypeVar("T")

STEPS = 100
TRAIN = f"""\
model=ddpm experiment_type=test data=sim128 data.limit=64 data.crop=[64,64] threads=1 \\
    training.global_batch_size=8 training.max_steps={STEPS} training.checkpoint_every=10"""
TOLERANCE, KEY_TOLERANCE = 1e-5, 1e-4

COMPARE = f'''\
"""How far are the weights of two runs from each other?"""

import sys
from safetensors.numpy import load_file

file = "checkpoints/step-{STEPS:08d}/model.safetensors"
a, b = (load_file(f"{{run}}/{{file}}") for run in sys.argv[1:])
apart = {{name: abs(a[name] - b[name]).max() for name in a | b}}
keys = [apart.pop(name) for name in list(apart) if "to_k.bias" in name]
print(f"biases of {{len(keys)}} attention keys: {{max(keys, default=0):.1e}}")
print(f"all {{len(apart)}} other tensors: {{max(apart.values()):.1e}}")
'''
BRIGHTEST = '''\
"""Which shot is the brightest? Each rank looks at a file of its own."""

import sys
from xrddiff.core.ranks.rendezvous import initialize_distributed
from xrddiff.data.formats.readers import open_frames

rank = initialize_distributed().process_id
file = sys.argv[1:][rank]
light = open_frames(file)["intensity"].sum(("y", "x"))
print(f"rank {rank}, {file}: shot {light.values.argmax()} of {light.size}")
'''


class Tour:
    """A page that grows with each command, and the shell in which they are typed: in `~/beamtime`, where `~` is `home`."""

    def __init__(self, home: Path):
        self.home, self.work, self.page = home, home / "beamtime", []
        self.work.mkdir()
        (home / "xrddiff").symlink_to(ROOT)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        old = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN", "XDG", "OMP"))}
        self.env = old | {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{old['PATH']}",
            "COLUMNS": "100",
            "XDG_CACHE_HOME": str(cache),  # simulated frames need not be made again
            "XRDDIFF_STATE": str(home / "state"),
            "XRDDIFF_LAB": str(home / "lab"),
        }

    def say(self, text: str) -> None:
        """A paragraph."""
        self.page += [text.strip(), ""]

    def file(self, name: str, text: str) -> None:
        """A file of the user's, shown."""
        (self.work / name).write_text(text)
        self.page += [f"```python\n# {name}\n{text}```", ""]

    def type(self, command: str, *, lines: Callable[[list[str]], list[str]] = list, code: int = 0) -> str:
        """Type a command, show it with what came back (`lines` leaves some out), and return all of that. Variables that it sets stay set."""
        process = self.start(command)
        return self.came_back(process, command, lines=lines, code=code)

    def start(self, command: str) -> subprocess.Popen:
        """Type a command that goes on while others are typed."""
        # what it exports, the next one gets: as in one shell
        script = f'{command}\nstatus=$?\nenv -0 > "{self.home}/env"\nexit $status'
        print(f"$ {command}", flush=True)
        words = dict(text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return subprocess.Popen(["bash", "-c", script], cwd=self.work, env=self.env, **words)

    def came_back(self, process: subprocess.Popen, command: str, *, lines=list, code: int = 0) -> str:
        """The end of a command."""
        out = process.communicate(timeout=600)[0]
        print(out, flush=True)
        self.check(process.returncode == code, f"`{command}` ended with {process.returncode}, not {code}")
        with open(self.home / "env") as file:
            self.env = dict(item.split("=", 1) for item in file.read().split("\0") if item)
        self.show(command, "\n".join(lines(self.as_seen(out).splitlines())))
        return out

    def show(self, command: str, out: str) -> None:
        """Command and answer, in the block of the last ones if no word stands between."""
        text = f"$ {command}\n{out}".rstrip()
        if len(self.page) > 1 and self.page[-2].startswith("```console"):
            self.page[-2] = self.page[-2].removesuffix("\n```") + f"\n\n{text}\n```"
        else:
            self.page += [f"```console\n{text}\n```", ""]

    def as_seen(self, text: str) -> str:
        """Without colours and the stages of progress bars, and with the places of this machine by other names."""
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        text = re.sub(r"^.*\r(?!\n)", "", text, flags=re.M)
        for place, name in ((sys.prefix, "~/xrddiff/.venv"), (ROOT, "~/xrddiff"), (self.home, "~")):
            text = text.replace(str(place), name)
        text = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "login", text)
        return "\n".join(line.rstrip() for line in finished_bars(text.splitlines()))

    def check(self, true: object, otherwise: str) -> None:
        """Nothing goes on the page that is not so."""
        if not true:
            raise SystemExit(f"docs/cluster_tour.py: {otherwise}")

    def wait(self, true: Callable[[], T], what: str, seconds: float = 240) -> T:
        """What `true` returns as soon as that is something."""
        end = time.monotonic() + seconds
        while not (found := true()):
            self.check(time.monotonic() < end, f"waited {seconds:g} s for {what}")
            time.sleep(0.1)
        return found

    def ask(self, *command: str) -> list[str]:
        """The words that a command answers, off the page."""
        done = subprocess.run(command, cwd=self.work, env=self.env, capture_output=True, text=True, timeout=60)
        return done.stdout.split()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED … of a job or a task."""
        return (self.ask("squeue", "-h", "-tall", f"-j{job}", "-o%T") or [""])[0]

    def ends(self, job: str, state: str = "COMPLETED") -> None:
        """Wait for the end of a job, which must be this one."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        found = self.wait(lambda: (s := self.state(job)) in over and s, f"the end of job {job}")
        self.check(found == state, f"job {job} is {found}, not {state}")

    def step(self, run: str, at_least: int) -> None:
        """Wait until a run has a checkpoint of this step."""
        mark = self.work / run / "checkpoints" / f"step-{at_least:08d}" / "manifest.json"
        self.wait(mark.exists, f"step {at_least} of {run}")


def finished_bars(lines: list[str]) -> list[str]:
    """The lines, of progress bars only those that are at their end, each once."""
    kept, full = [], ""
    for line in lines:
        if bar := re.match(r" *[0-9]+%\|.*\| ([0-9]+)/([0-9]+) ", line):
            if bar[1] != bar[2] or bar[2] == full:
                continue
            full = bar[2]
        kept.append(line)
    return kept


def some(*patterns: str) -> Callable[[list[str]], list[str]]:
    """Lines that one of the patterns fits; an ellipsis for each gap."""

    def choose(lines: list[str]) -> list[str]:
        chosen = []
        for line in lines:
            if any(re.search(p, line) for p in patterns):
                chosen.append(line)
            elif not chosen or chosen[-1] != "…":
                chosen.append("…")
        return chosen

    return choose


def first_words(log: list[str]) -> list[str]:
    """What `xrddiff cluster logs` says before the log itself."""
    return [*log[: log.index("---") + 1], "…"] if "---" in log else log


def telling(script: list[str]) -> list[str]:
    """The lines of a batch script that a user looks for: the request, what runs, and how."""
    middle = next(i for i, line in enumerate(script) if line.startswith("# What runs"))
    first, second = some("^#!", "^# vae_kl: ", "^#SBATCH"), some("^# What", "^XRDDIFF_JOB=", '"(kind|overrides|run_dirs)"', "^[{}]", "^JOB", "^srun")  # fmt: skip
    return first(script[:middle]) + second(script[middle:])


def job_of(said: str) -> str:
    """The number in what `xrddiff cluster submit` says."""
    return re.search(r"submitted job (\d+)", said)[1]


def setting_up(t: Tour) -> None:
    t.say("""
## A cluster to try things on

`slurm/lab` starts a real SLURM on one machine, whose nodes are simulated ([Clusters](../slurm/README.md)). After the second line, `sbatch`, `srun` and
`squeue` in this shell use it; at a facility neither line is needed.
""")
    t.type("python ~/xrddiff/slurm/lab/lab.py up")
    t.type('eval "$(python ~/xrddiff/slurm/lab/lab.py env)"')
    t.type("sinfo")


def script(t: Tour) -> None:
    t.say("""
## Look at a job before you submit it

The words after the options are those of `xrddiff run`. With `--dry-run` nothing is submitted: the batch script is printed, with a reason next to most lines. `--profile debug` is one node with four CPUs; `xrddiff cluster profiles` lists the others.
""")
    said = t.type("xrddiff cluster submit --profile debug --dry-run model=vae_kl", lines=telling)
    t.check("#SBATCH --nodes=1\n" in said, "debug is no longer one node")
    t.say(
        """
The whole script has 60 lines; you may edit it and pass it to `sbatch`. What runs is data in it, which the shell does not read, so none of your words can be taken for a command. Near its time limit a job writes
a checkpoint and goes back into the queue.
""".replace("60 lines", f"{len(said.splitlines())} lines")
    )


def training(t: Tour) -> str:
    t.say(f"""
## Train on two nodes, and lose one

A small pixel diffusion model on simulated frames, {STEPS} steps, with a checkpoint every ten. `small` is two nodes with a rank each. The global batch is
eight frames whatever the number of ranks; this makes runs on one rank and on several comparable. The same words are needed again below, so they go into a variable.
""")
    t.type(f'export WORDS="{TRAIN}"')
    job = job_of(t.type("xrddiff cluster submit --profile small $WORDS run_name=on-two"))
    run = "output/ddpm_test/on-two"
    t.step(run, 20)
    t.say("A few seconds later it is training:")
    t.type("xrddiff cluster status")
    t.say("Now node `n2` loses power.")
    t.type("python ~/xrddiff/slurm/lab/lab.py crash n2")
    t.wait(lambda: t.state(job) == "PENDING", "the return of the job to the queue", 90)
    t.say(
        "SLURM misses the node (here after seconds, at a facility after minutes) and puts the job back into the queue, where it waits for a moment (`BeginTime`). The log begins with the reason:"
    )
    shown = t.type(f"xrddiff cluster status {job}")
    t.check("PENDING" in shown, "the job does not wait")
    said = t.type(f"xrddiff cluster logs {job}", lines=first_words)
    t.check(said.startswith("node n2 failed"), "logs does not begin with the node that failed")
    t.wait(lambda: t.state(job) == "RUNNING", "the second start")
    t.say("You need do nothing: it restarts on available nodes, from the last checkpoint, and appends to the same log.")
    where = t.type(f"xrddiff cluster status {job}")
    t.check("n2" not in where and "n[1-2]" not in where, "it runs on the node that has crashed")
    t.ends(job)
    t.say(
        "When it has ended, `logs` still begins with why it was restarted; the log shows two starts and one end, which is at the last step:"
    )
    t.type(f"xrddiff cluster status {job}")
    said = t.type(f"xrddiff cluster logs --lines 0 {job}", lines=some("the job went on", "^run: ", "^finished at step"))
    t.check(said.startswith("node n2 failed"), "logs does not begin with why the job was restarted")
    starts, ends = (len(re.findall(rf"^{x}", said, re.M)) for x in ("run: ", f"finished at step {STEPS}"))
    t.check((starts, ends) == (2, 1), f"{starts} starts and {ends} ends")
    t.say("Did it lose anything? The same words in one process, on this machine and undisturbed:")
    t.type("xrddiff run $WORDS run_name=alone", lines=some("^run: ", "^finished at step", "^report: "))
    t.file("compare.py", COMPARE)
    said = t.type(f"python compare.py {run} output/ddpm_test/alone")
    keys, others = (float(line.rpartition(" ")[2]) for line in said.splitlines())
    t.check(others <= TOLERANCE and keys <= KEY_TOLERANCE, f"the weights differ: {said}")
    t.say(f"""
The largest difference between the weights of the two runs is {others:.1e}, and {keys:.1e} in the biases of attention keys, whose gradient is nothing but rounding. The promised limits are {TOLERANCE:.0e} and {KEY_TOLERANCE:.0e}.
It is not zero because two ranks add up the gradients of a batch in a different order from one. The node is repaired:
""")
    t.type("python ~/xrddiff/slurm/lab/lab.py start n2")
    return run


def sampling(t: Tour, run: str) -> None:
    words = f"xrddiff sample {run} -n 256 threads=1"
    t.say("""
## Sample with workers, and lose one

Two worker jobs, the two nodes of `small`, draw 256 frames. They take parts of eight frames and write them straight into the store of samples.
""")
    command = f"{words} --name workers \\\n    --workers slurm:small"
    process = t.start(command)
    jobs = ["squeue", "-h", "-tR", "-nxrddiff-workers", "-o%i"]
    marks = t.work / run / "samples" / "workers" / "samples.parts" / "marks"

    def both_at_work() -> list[str]:
        t.check(process.poll() is None, "the samples were there before both workers were")
        return found if len(found := sorted(t.ask(*jobs))) == 2 and len(list(marks.glob("[0-9]*.json"))) >= 4 else []

    first, second = t.wait(both_at_work, "two workers")
    page, t.page = t.page, []
    t.type("squeue --name xrddiff-workers")
    t.type(f"scancel {second}")
    meanwhile, t.page = t.page, page
    t.came_back(
        process,
        command,
        lines=some("/256", "^dashboard", "^samples:", "^report"),
    )
    t.say("Meanwhile, in a second terminal, one of the two jobs is cancelled in the middle of a part:")
    t.page += meanwhile
    t.say(
        "Its part goes to the other job, and while there is work for two, a new job replaces it. When everything is drawn, the remaining jobs are cancelled (`CA`):"
    )
    t.type("squeue --name xrddiff-workers --states all")
    t.say(
        "Sample 17 is the same frame whoever makes it, so a single process with the same number of threads makes the same store, to the last bit. (The times say little: worker jobs need seconds to start, and all shared two cores.)"
    )
    t.type(f"{words} --name here", lines=some("/256", "^samples:", "^report"))
    said = t.type(f"(cd {run}/samples && diff -r workers/samples.zarr here/samples.zarr) && echo equal")
    t.check(said == "equal\n", "the samples differ")


def sweep(t: Tour) -> None:
    t.say("""
## A sweep

`--array` makes a task of each combination of the values separated by commas, here three learning rates for an autoencoder, in this order.
""")
    words = "model=vae_kl experiment_type=test data=sim128 data.limit=64"
    more = "data.crop=[64,64] threads=1 training.max_steps=100 run_name=sweep training.lr=1e-2,1e-3,1e-4"
    job = job_of(t.type(f"xrddiff cluster submit --profile debug --array {words} \\\n    {more}"))
    rows = t.work / "output" / "vae_kl_test"
    for name in ("sweep", "sweep-2", "sweep-3"):
        table = rows / name / "metrics" / "training_metrics.csv"
        t.wait(lambda table=table: table.exists() and table.read_text().count("\n") > 2, f"training of {name}")
    t.say(
        f"Each task has its own number, row and log; `xrddiff cluster logs {job}_1` shows one log, `xrddiff cluster cancel {job}_1` cancels one task."
    )
    t.type(f"xrddiff cluster status {job}")
    for task in range(3):
        t.ends(f"{job}_{task}")
    t.say("When all are done, the table compares them:")
    t.type(f"xrddiff cluster status {job}")


def network(t: Tour) -> None:
    t.say("""
## The network, and what more nodes would bring

Ranks add up their gradients in each step. `comm-test` checks the sums and measures how long they take, on the nodes where it is started with `srun`. Both nodes are one machine here, so the figures say nothing about a network. The last lines would name a node that is slower than the others.
""")
    said = t.type("srun -N2 xrddiff cluster comm-test")
    t.check("all sums and copies are exact" in said, "wrong sums")
    t.say("""
`scaling` predicts what that means for a training: a model of 50 million parameters, whose step takes 200 ms on one rank, over a network of 25 GB/s. With `--comm` it
uses the figures of `comm-test --json`; given run folders instead of numbers, it reports what was measured.
""")
    said = t.type("xrddiff cluster scaling --params 50M --bandwidth 25 --step-ms 200")
    t.check("100 MB of gradients, 2·bytes/bandwidth = 8 ms at 25 GB/s" in said, "another cost model")


def mistakes(t: Tour) -> None:
    t.say("""
## When something is wrong

Impossible settings are refused before anything is submitted, in one sentence:
""")
    t.check("did you mean 'small'" in t.type("xrddiff cluster submit --profile smal $WORDS", code=2), "no hint")
    t.type("xrddiff cluster submit --profile small model=vae_kl training.lr=fast", code=2)
    t.say(
        "Any script can be run on ranks. This one reads one file per rank, and the copy of the second file is truncated:"
    )
    t.type("xrddiff data simulate sim128 -n 20 -o run1.h5")
    t.type("head -c 100000 run1.h5 > run2.h5")
    t.file("brightest.py", BRIGHTEST)
    job = job_of(t.type("xrddiff cluster submit --profile small --script brightest.py -- run1.h5 run2.h5"))
    t.ends(job, "FAILED")
    t.say(
        "When a rank fails, the others are stopped, and each complains in the log. `logs` begins with the one that failed first:"
    )
    t.type(f"xrddiff cluster status {job}")
    said = t.type(f"xrddiff cluster logs {job}", lines=first_words)
    t.check(
        re.match(r"rank 1 on \S+ failed: run2.h5 is a truncated HDF5 file", said),
        "logs does not begin with the failure",
    )
    t.say("Copy the file again and resubmit the same job:")
    t.type("cp run1.h5 run2.h5")
    again = job_of(t.type(f"xrddiff cluster resume {job}"))
    t.ends(again)
    t.type(f"xrddiff cluster logs {again}", lines=some("^rank "))


def opening(t: Tour) -> str:
    """What the page is, and what made it."""
    slurm = t.ask("sinfo", "--version")[-1]
    made = f"{date.today()}, xrddiff {version('xrddiff')}, SLURM {slurm}, PyTorch {version('torch').partition('+')[0]}, dask {version('distributed')}, Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores"
    return f"""
<!-- Written by docs/cluster_tour.py: run that instead of editing this. -->

# A cluster, step by step

Train on two nodes and lose one, sample with workers and lose one, sweep, measure, go wrong: what to type, and what comes back. [Clusters](../slurm/README.md) tells
how to describe a cluster of your own.

Everything below was typed and printed in one run of `python docs/cluster_tour.py` ({made}), which checks what is claimed here. The paths of that machine were replaced by `~`, its name by `login`; `…` stands for omitted lines, and progress bars are shown in their final state.
"""


def main(page: Path = PAGE) -> None:
    # short, for the lab has sockets there
    home = Path(tempfile.mkdtemp(prefix="tour-", dir="/tmp")).resolve()
    home.chmod(0o755)
    t = Tour(home)
    lab = [sys.executable, str(ROOT / "slurm" / "lab" / "lab.py")]
    try:
        setting_up(t)
        start = opening(t)
        script(t)
        run = training(t)
        sampling(t, run)
        sweep(t)
        network(t)
        mistakes(t)
        t.say("## Afterwards\n\nRemove the cluster:")
        t.type("python ~/xrddiff/slurm/lab/lab.py down")
        text = "\n".join([start, *t.page]).strip() + "\n"
        for place in (str(home), str(ROOT), sys.prefix, socket.gethostname()):
            t.check(place not in text, f"{place} is on the page")
        page.write_text(text, encoding="utf-8")
        print(f"page: {page}")
    finally:
        if (home / "lab").exists():
            subprocess.run([*lab, "down", "--folder", str(home / "lab")], check=False)
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
