"""A posterior on a cluster of 1, 2 and 4 nodes, of which one loses its power: the same particles as from one process.

    python bench/particle_cluster.py [--particles 12] [--steps 12]

As root, with SLURM installed: the toy cluster of slurm/lab is started, whose nodes share this machine. `xrddiff submit --nodes N … posterior crystal` of a simulated still is sent with 1, 2 and 4 nodes of one rank; on two nodes the first one is cut off once a state is saved, and started again. Writes bench/results/particle_cluster.md and .json.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from harness import machine, make_parser, markdown, write_results

HERE = Path(__file__).resolve()
ROOT = HERE.parent.parent
LAB = ROOT / "slurm" / "lab" / "lab.py"
PROFILE = "nodes: 1\ncpus_per_node: 1\nmemory_per_cpu: 3G\ntime_limit: 00:20:00\n"
STILL = "posterior crystal still.h5 --prior edges=0.003 --prior distance=0.001 --distance-range 0.01".split()


class Lab:
    """The toy cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self("up", f"--until={os.getpid()}")
        self.env = os.environ | runpy.run_path(str(LAB))["environment"](folder)
        self.env |= {"XRDDIFF_STATE": str(folder / "state"), "OMP_NUM_THREADS": "1"}

    def __call__(self, name: str, *words: str) -> str:
        command = [sys.executable, str(LAB), name, "--folder", str(self.folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout

    def ask(self, *command: str) -> str:
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=True, cwd=self.folder).stdout

    def job(self, number: str) -> dict[str, str]:
        line = self.ask("scontrol", "show", "job", "-o", number).splitlines()[0]
        return dict(re.findall(r"([A-Za-z][\w:/]*)=(.*?)(?= [A-Za-z][\w:/]*=|$)", line))


def write_still(file: Path) -> None:
    """A simulated still of one crystal."""
    from dataclasses import replace

    import numpy as np

    from xrddiff.data.formats.store import save_frames
    from xrddiff.physics.simulation.experiments import find_experiment
    from xrddiff.physics.simulation.simulate import draw_shots, simulate

    base = find_experiment("sim128")
    quiet = replace(base.background, ice_probability=0.0)
    experiment = replace(base, sample=replace(base.sample, hits=(0.0, 1.0)), background=quiet)
    shot = int(np.flatnonzero(draw_shots(experiment, range(8)).crystals == 1)[1])
    save_frames(simulate(experiment, [shot]), file)


def wait(true, seconds: float = 600):
    end = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > end:
            raise SystemExit("waited in vain")
        time.sleep(0.3)
    return found


def submit(lab: Lab, nodes: int, more: list[str], crash: bool) -> dict:
    """One job: its particles, seconds and restarts."""
    (lab.folder / "one.yaml").write_text(PROFILE)
    words = [str(Path(sys.executable).parent / "xrddiff"), "submit", "--config", "one.yaml", "--nodes", str(nodes), *STILL, *more]  # fmt: skip
    said, began = lab.ask(*words), time.monotonic()
    number, run = re.search(r"submitted job (\d+)", said)[1], Path(re.search(r"^run: (.*)$", said, re.M)[1])
    lost = None
    if crash:
        wait(lambda: len(list(run.glob("state/step-*"))) > 1)
        node = lab.job(number)["BatchHost"]
        lab("crash", node)
        wait(lambda: lab.job(number)["JobState"] == "PENDING")
        lost = sorted(p.name for p in run.glob("state/step-*"))[-1]
        lab("start", node)
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    state = wait(lambda: lab.job(number)["JobState"] if lab.job(number)["JobState"] in ended else None)
    if state != "COMPLETED":
        raise SystemExit(Path(lab.job(number)["StdOut"]).read_text()[-3000:])
    rows = [line.split(",") for line in (run / "particles.csv").read_text().splitlines()[1:]]
    return dict(
        nodes=nodes, seconds=time.monotonic() - began, restarts=int(lab.job(number)["Restarts"]), lost_at=lost,
        particles=[[float(v) for v in row[1:]] for row in rows],
    )  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--particles", type=int, default=12)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    import numpy as np

    more = ["--particles", str(args.particles), "--steps", str(args.steps)]
    with tempfile.TemporaryDirectory(prefix="lab-", dir="/tmp") as folder:
        lab = Lab(Path(folder))
        try:
            write_still(Path(folder) / "still.h5")
            found = [submit(lab, nodes, more, crash) for nodes, crash in ((1, False), (2, True), (4, False))]
        finally:
            lab("down")
    one = np.array(found[0]["particles"])
    rows = []
    for job in found:
        x = np.array(job.pop("particles"))
        spread = one.std(0) + (one.std(0) == 0)
        job["largest_difference"] = float(np.abs((x - one) / spread).max())
        cells = [job["nodes"], job["restarts"], job["lost_at"] or "", f"{job['seconds']:.0f}"]
        rows.append([*cells, f"{job['largest_difference']:.1e}"])
    head = ["nodes", "restarts", "newest state when the node was lost", "clock, s", "largest difference from one node"]
    command = f"python bench/particle_cluster.py --particles {args.particles} --steps {args.steps}"
    about = dict(command=command, machine=machine("cores"), date=f"{datetime.now():%Y-%m-%d}", load=os.getloadavg()[1], jobs=found)  # fmt: skip
    text = [
        "# A posterior on a cluster", "",
        f"`{command}` on {about['machine']}, {about['date']}, load average {about['load']:.0f} with other work", "",
        f"`xrddiff submit --nodes N {' '.join(STILL)} {' '.join(more)}` on the toy cluster of [slurm/lab](../../slurm/README.md), whose nodes share this machine, so the clock says nothing of speed. On two nodes the first lost its power when a state was saved; SLURM put the job back into the queue. "
        "The difference is the largest of any column of `particles.csv` and of any particle, in standard deviations of the column.", "",
        *markdown(head, rows, "l"), "",
    ]  # fmt: skip
    print(write_results("particle_cluster", text, about))


if __name__ == "__main__":
    main()
