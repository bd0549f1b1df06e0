#!/usr/bin/env python3
"""A toy SLURM cluster on one machine, for tests and for trying things out: real daemons, pretended nodes.

    python slurm/lab/lab.py up
    . <(python slurm/lab/lab.py env)        # sbatch, srun, squeue of this shell now mean the lab
    srun -N2 hostname
    python slurm/lab/lab.py crash n2        # a power cut
    python slurm/lab/lab.py start n2
    python slurm/lab/lab.py restart-controller
    python slurm/lab/lab.py down

Needs root and Debian's packages slurm-wlm and munge (slurm 22.05 was tried); no systemd, no cgroups, no database, so no sacct.
Nodes claim more CPUs, memory and GPUs than the machine has: SLURM believes them. Several labs live side by side, each in its
folder on its own ports. Everything a lab has started is a descendant of one process per daemon that it keeps, so it can be
stopped to the last process, and nothing else is.
"""

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOOLS = "munged munge slurmctld slurmd sinfo scontrol srun".split()
NEW_UTS = 0x04000000  # linux/sched.h: CLONE_NEWUTS
SET_NAME, SUBREAPER = 15, 36  # linux/prctl.h
LIBC = ctypes.CDLL(None, use_errno=True)
# found here, once: a signal in the middle of looking would leave tempfile's own lock held, and `down` would wait for it for ever
LOCK = Path(tempfile.gettempdir()) / "xrddiff-lab.lock"
ENDINGS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}

CONF = """\
# numbers of jobs begin at 1 again in the next lab: its name tells whose they are
ClusterName=lab_{name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.slurm
SlurmdPidFile={folder}/run/%n.slurm
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
AuthType=auth/munge
CredType=cred/munge
# a requeued job must wait until credentials of its former life are void: seconds, where SLURM's default is two minutes
AuthInfo=socket={folder}/run/munge.sock,cred_expire={cred_expire}
# a node that has been silent for so long, at the next ping, is down and its jobs go back into the queue
SlurmdTimeout={node_timeout}
# how long an answer may take; a ping that fails is tried again until it has
MessageTimeout=5
SlurmctldTimeout=60
# down because it was silent, back as soon as it speaks
ReturnToService=2
JobRequeue=1
KillWait=5
InactiveLimit=0
MinJobAge=86400
# the nodes' claims count, not what slurmd finds on the machine
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU={memory_per_cpu}
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
# what can never run is refused at once, not kept pending for ever
EnforcePartLimits=ALL
NodeName=DEFAULT CPUs={cpus} Boards=1 Sockets=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory}{gres}{feature} State=UNKNOWN
{node_lines}
PartitionName=DEFAULT Nodes=ALL DefaultTime=10 MaxTime=INFINITE State=UP
{partition_lines}
"""


class LabError(Exception):
    """What keeps the lab from doing as it was told, as one sentence."""


# --- processes -------------------------------------------------------------------------------------------------------


def born(pid: int) -> str | None:
    """When a process began, in ticks since boot; None if it is gone or a zombie. With the pid it names a process for good."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    children.setdefault(int(fields[1]), []).append(int(entry))
    found = list(children.get(pid, []))
    for child in found:  # grows while we go through it
        found += children.get(child, [])
    return found


def send(pids: list[int], number: int) -> None:
    """A signal to each process that still lives."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def undisturbed():
    """SIGTERM, Ctrl-C and a hang-up wait until the block has ended: what is begun in it is also written down."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_until(true, seconds: float, otherwise: str) -> None:
    """Ask twenty times a second until it is true."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise LabError(f"{otherwise} after {seconds:g} s")
        time.sleep(0.05)


def detach(name: str, log: Path) -> None:
    """Become a process of no terminal and no parent's files, under a name that `ps` shows."""
    os.setsid()
    for number in ENDINGS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)  # a daemon would inherit the mask
    LIBC.prctl(SET_NAME, f"lab {name}".encode()[:15], 0, 0, 0)
    null, out = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for target, source in ((0, null), (1, out), (2, out)):
        os.dup2(source, target)
    os.closerange(3, 1024)
    os.chdir("/")


def keep(name: str, command: list[str], log: Path, env: dict[str, str], host: str | None) -> int:
    """Run `command` below a process of its own, its keeper, and return the keeper's pid.

    slurmd starts a step as a process that detaches itself from its parent. The keeper adopts whatever is orphaned below it, so the tree
    under the keeper is all there is of a node; it also reaps, where init of a container does not, and ends when nothing is left.
    `host` gives the tree a host name of its own, where the kernel lets us.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        detach(name, log)
        LIBC.prctl(SUBREAPER, 1, 0, 0, 0)
        if host and LIBC.unshare(NEW_UTS) == 0:
            socket.sethostname(host)
        subprocess.Popen(command, env=env)  # in the foreground: our child, and only ours
        while True:
            os.wait()
    except ChildProcessError:
        os._exit(0)
    except BaseException as error:
        os.write(2, f"{name}: {error!r}\n".encode())
        os._exit(1)


def can_name_hosts() -> bool:
    """May a process have a host name of its own here? Tried in a child, for its own name changes with it."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if LIBC.unshare(NEW_UTS) == 0 else 1)
    return os.waitpid(pid, 0)[1] == 0


# --- the machine's names ---------------------------------------------------------------------------------------------


_alone = False  # does this process hold the lock?


@contextlib.contextmanager
def alone():
    """One lab at a time looks for ports or edits the machine's host names.

    A signal may end `up` just when it has the lock, before its block has begun: then nothing gives the lock back, and
    `down`, which cleans up, must not wait for it.
    """
    global _alone
    if _alone:
        yield
        return
    with open(LOCK, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _alone = True
        try:
            yield
        finally:
            _alone = False


def set_hosts(folder: Path, addresses: dict[str, str]) -> None:
    """Names of this lab's nodes in /etc/hosts: each line carries the lab's folder, so that it alone takes them out again."""
    mark, hosts = f"# slurm lab {folder}", Path("/etc/hosts")
    old = hosts.read_text()
    lines = [line for line in old.splitlines() if not line.endswith(mark)]
    lines += [f"{address} {name} {mark}" for name, address in addresses.items()]
    if (text := "\n".join(lines) + "\n") != old:
        with undisturbed():
            hosts.write_text(text)  # in place: in a container it is a mount, which cannot be renamed over


def address_of(host: str) -> str:
    """IPv4 address of this machine by its name, or the loopback's where the name has none."""
    try:
        return socket.gethostbyname(host)
    except OSError:
        return "127.0.0.1"


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on, below those that the kernel gives to outgoing connections."""
    for first in random.sample(range(10_000, 20_000 - count), 200):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("", port))
            return first
    raise LabError(f"there are no {count} free ports in a row between 10000 and 20000")


# --- the lab ---------------------------------------------------------------------------------------------------------


class Lab:
    """The cluster in `folder`."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).absolute()
        self.conf, self.file = self.folder / "slurm.conf", self.folder / "lab.json"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN"))}
        self.env |= {"SLURM_CONF": str(self.conf)}
        self.env["PATH"] = os.pathsep.join(
            dict.fromkeys([*self.env.get("PATH", "").split(os.pathsep), "/usr/sbin", "/sbin"])
        )

    @property
    def settings(self) -> dict:
        """What the lab was brought up with."""
        try:
            return json.loads(self.file.read_text())
        except OSError:
            raise LabError(
                f"there is no lab in {self.folder}; bring one up with `lab.py up --folder {self.folder}`"
            ) from None

    @property
    def nodes(self) -> list[str]:
        """n1, n2, …"""
        return [f"n{i + 1}" for i in range(self.settings["nodes"])]

    def ask(self, *command: str, timeout: float = 30) -> str:
        """Standard output of a SLURM command; empty if it fails."""
        try:
            return subprocess.run(
                command, env=self.env, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
            ).stdout
        except subprocess.TimeoutExpired:
            return ""

    # daemons

    def keeper(self, name: str) -> int | None:
        """Pid of the process above a daemon, if it lives."""
        try:
            pid, birth = (self.folder / "run" / f"{name}.pid").read_text().split()
        except (OSError, ValueError):
            return None
        return int(pid) if born(int(pid)) == birth else None

    def launch(self, name: str, *command: str) -> None:
        """Start a daemon under a keeper."""
        if self.keeper(name):
            raise LabError(f"{name} runs already")
        host = name if name in self.nodes else None
        program = shutil.which(command[0], path=self.env["PATH"])
        with undisturbed():
            self.note(name, keep(name, [program, *command[1:]], self.log(name), self.env, host))

    def note(self, name: str, pid: int) -> None:
        """Remember a process of ours."""
        (self.folder / "run" / f"{name}.pid").write_text(f"{pid} {born(pid)}")

    def log(self, name: str) -> Path:
        """Where a daemon's own words before and beside its log go."""
        return self.folder / "log" / f"{name}.out"

    def cut(self, name: str) -> None:
        """The power goes: a daemon and everything under it is gone at once, with no last word to anybody."""
        if (keeper := self.keeper(name)) is None:
            return

        def gone() -> bool:
            # all are stopped before any is killed: a step that sees its task die would report a failed job, and no node is lost
            held: list[int] = []
            while fresh := [pid for pid in descendants(keeper) if pid not in held]:
                send(fresh, signal.SIGSTOP)
                held += fresh
            # children first: an orphaned group of stopped processes would be woken by the kernel
            send(held[::-1], signal.SIGKILL)
            return self.keeper(name) is None

        # again and again: a keeper may be only about to start its daemon, and it ends when nothing is left below it
        wait_until(gone, 60, f"{name} does not end")
        with contextlib.suppress(ChildProcessError):  # if it was us who started it
            os.waitpid(keeper, 0)
        (self.folder / "run" / f"{name}.pid").unlink(missing_ok=True)

    def start_controller(self) -> None:
        """slurmctld, until it answers."""
        self.launch("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
        wait_until(
            lambda: "is UP" in self.ask("scontrol", "ping"), 30, f"slurmctld does not answer, see {self.folder}/log,"
        )

    def start_node(self, name: str) -> None:
        """slurmd of a node; the controller takes it back when it registers."""
        self.check_node(name)
        self.launch(name, "slurmd", "-D", "-N", name, "-f", str(self.conf))

    def check_node(self, name: str) -> None:
        """Refuse what is no node."""
        if name not in self.nodes:
            raise LabError(f"there is no node '{name}'; expected one of {', '.join(self.nodes)}")

    # commands

    def watch(self, owner: int) -> None:
        """A process that takes the lab down when `owner` has ended, however it ended."""
        birth = born(owner)
        with undisturbed():
            if pid := os.fork():
                self.note("watch", pid)
                return
            self.wait_for(owner, birth)

    def wait_for(self, owner: int, birth: str | None) -> None:
        """The watcher's life."""
        try:
            detach("watch", self.log("watch"))
            while birth and born(owner) == birth:
                time.sleep(0.5)
            self.down()
        finally:
            os._exit(0)

    def up(self, *, nodes: int, port: int | None = None, until: int | None = None, **claims: int | str) -> None:
        """A cold cluster, ready for jobs when this returns."""
        if os.geteuid() != 0:
            raise LabError("the lab needs root: slurmd runs jobs as their users")
        if missing := [p for p in TOOLS if not shutil.which(p, path=self.env["PATH"])]:
            raise LabError(f"{', '.join(missing)} not found: apt-get install --no-install-recommends slurm-wlm munge")
        if len(str(self.folder)) > 80:
            raise LabError(
                f"{self.folder} is too long for the path of a socket; choose a folder of at most 80 characters"
            )
        if self.file.exists():
            if any(self.keeper(name) for name in ["munged", "slurmctld", *self.nodes]):
                raise LabError(f"a lab is up in {self.folder} already; take it down first")
            shutil.rmtree(self.folder)
        if self.folder.exists() and any(self.folder.iterdir()):
            raise LabError(f"{self.folder} is not empty and no lab; choose another folder")
        with undisturbed():  # from here on `down` knows what to end
            for part in ("run", "log", "state", "spool", "dev", "munge"):
                (self.folder / part).mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(dict(nodes=nodes)))
        for part in (self.folder, self.folder / "run"):
            part.chmod(0o755)  # munge clients of every user get to the socket
        (self.folder / "munge").chmod(0o700)
        try:
            with alone():
                port = port or free_ports(nodes + 1)
                self.write_conf(port, **claims)
                self.start_munge()
                self.start_controller()
                for name in self.nodes:
                    self.start_node(name)
            idle = ["idle"] * nodes
            wait_until(
                lambda: self.ask("sinfo", "-hN", "-p", "main", "-o%T").split() == idle,
                40,
                f"nodes are not idle, see {self.folder}/log,",
            )
            trial = ["srun", "--job-name=lab", "--immediate=60", f"-N{nodes}", "echo", "it runs"]
            if "it runs" not in self.ask(*trial, timeout=90):
                raise LabError(f"a job over all nodes does not run, see {self.folder}/log")
            if until:
                self.watch(until)
        except BaseException:
            self.down(keep=True)
            raise

    def write_conf(self, port: int, *, cpus: int, memory: int, gpus: int, partitions: str, features: str) -> None:
        """slurm.conf and what belongs to it, and the nodes' names."""
        host = socket.gethostname().partition(".")[0]
        names, own = self.nodes, can_name_hosts()
        lines = [
            f"NodeName={n} NodeHostname={n if own else host} NodeAddr=127.0.0.1 Port={port + 1 + i}"
            for i, n in enumerate(names)
        ]
        parts = [f"PartitionName={p}" for p in ["main", *partitions.split(",")] if p]
        self.conf.write_text(
            CONF.format(
                name=os.urandom(3).hex(),
                host=host,
                port=port,
                folder=self.folder,
                cpus=cpus,
                memory=memory,
                memory_per_cpu=memory // cpus,
                # also what starting a step may take at most, on a machine that may be busy
                cred_expire=5,
                node_timeout=8,
                gres=f" Gres=gpu:{gpus}" if gpus else "",
                feature=f" Feature={features}" if features else "",
                node_lines="\n".join(lines),
                partition_lines="\n".join([f"{parts[0]} Default=YES", *parts[1:]]),
            )
        )
        # slurmd loads a cgroup plugin even if nothing asks for one, and finding out which fails where none is mounted
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "gres.conf").write_text(self.gres(gpus))
        # ranks find each other by these names, and torch's rendezvous asks whether an address is its own machine's
        set_hosts(self.folder, {n: f"127.0.1.{i + 1}" if own else address_of(host) for i, n in enumerate(names)})

    def gres(self, gpus: int) -> str:
        """gres.conf: a pretended GPU is a name for the null device."""
        for i in range(gpus):
            (self.folder / "dev" / f"gpu{i}").symlink_to(os.devnull)
        return f"NodeName=n[1-{len(self.nodes)}] Name=gpu File={self.folder}/dev/gpu[0-{gpus - 1}]\n" if gpus else ""

    def start_munge(self) -> None:
        """The daemon that vouches for who asks, with a key and a socket of this lab."""
        key, run = self.folder / "munge" / "key", self.folder / "run"
        key.touch(0o400)
        key.write_bytes(os.urandom(1024))
        options = {
            "key-file": key,
            "socket": run / "munge.sock",
            "pid-file": run / "munged.munge",
            "log-file": self.folder / "munge" / "log",
            "seed-file": self.folder / "munge" / "seed",
        }
        self.launch("munged", "munged", "--foreground", "--num-threads=2", *(f"--{k}={v}" for k, v in options.items()))
        works = ["munge", "-n", "-S", str(run / "munge.sock")]
        wait_until(
            lambda: self.ask(*works).startswith("MUNGE"), 10, f"munged does not answer, see {self.log('munged')},"
        )

    def down(self, keep: bool = False) -> None:
        """End everything that the lab has started, jobs too, and remove its folder unless it is to be kept."""
        with undisturbed():
            if (watcher := self.keeper("watch")) and watcher != os.getpid():
                send([watcher], signal.SIGKILL)
            for name in [*self.nodes, "slurmctld", "munged"]:
                self.cut(name)
            with alone():
                set_hosts(self.folder, {})
            if not keep:
                shutil.rmtree(self.folder)

    def crash(self, node: str) -> None:
        """Cut the power of a node: SLURM learns of it by silence, and requeues its jobs."""
        self.check_node(node)
        if not self.keeper(node):
            raise LabError(f"{node} is not running")
        self.cut(node)

    def restart_controller(self, crash: bool = False) -> None:
        """End slurmctld, in order or by a power cut, and start it again; jobs go on meanwhile."""
        keeper = self.keeper("slurmctld")
        if keeper and not crash:
            send(descendants(keeper)[:1], signal.SIGTERM)
            with contextlib.suppress(LabError):
                wait_until(lambda: self.keeper("slurmctld") is None, 20, "slurmctld does not end")
        self.cut("slurmctld")
        self.start_controller()

    def status(self) -> str:
        """Which daemons run, and what SLURM thinks of its nodes and jobs."""
        names = ["munged", "slurmctld", *self.nodes]
        alive = [f"{name}: {'runs' if self.keeper(name) else 'does not run'}" for name in names]
        return "\n".join([*alive, "", self.ask("sinfo", "-Nl"), self.ask("squeue", "-a")])


def environment(folder: str | os.PathLike) -> dict[str, str]:
    """This process's environment, in which sbatch, srun and squeue mean the lab in `folder`; nothing of another cluster's is left in it."""
    lab = Lab(folder)
    lab.settings  # noqa: B018  there must be a lab
    return lab.env


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="lab.py", description="A toy SLURM cluster on this machine, for tests and to try things out."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        own = os.environ.get("XRDDIFF_LAB") or "/tmp/xrddiff-lab"
        sub.add_argument("--folder", default=own, help="where the lab keeps its files; $XRDDIFF_LAB where that is set")
        return sub

    up = command("up", "bring up a cluster")
    up.add_argument("--port", type=int, help="of slurmctld; the nodes take the next ones (chosen if not given)")
    up.add_argument("--nodes", type=int, default=8, help="how many nodes, named n1, n2, …")
    up.add_argument("--cpus", type=int, default=32, help="what each node claims to have")
    up.add_argument("--memory", type=int, default=256 * 1024, help="what each node claims to have, MB")
    up.add_argument("--gpus", type=int, default=4, help="what each node claims to have")
    up.add_argument("--partitions", default="", help="further partitions beside main: a,b")
    up.add_argument("--features", default="", help="of every node, for --constraint: a,b")
    up.add_argument("--until", type=int, metavar="PID", help="take the lab down when this process has ended")
    down = command("down", "end all its processes and remove its folder")
    down.add_argument("--keep", action="store_true", help="keep the folder, with the logs")
    command("env", "print the shell commands that point SLURM's tools to the lab")
    command("status", "what runs")
    command("crash", "cut the power of a node").add_argument("node")
    command("start", "start a node that is not running").add_argument("node")
    restart = command("restart-controller", "end slurmctld and start it again")
    restart.add_argument("--crash", action="store_true", help="end it by a power cut")

    options = vars(parser.parse_args(argv))
    name, lab = options.pop("command"), Lab(options.pop("folder"))
    try:
        if name == "env":
            found = environment(lab.folder)
            print("\n".join(f"export {k}={shlex.quote(found[k])}" for k in ("SLURM_CONF", "PATH")))
        elif name == "status":
            print(lab.status())
        else:
            call = dict(up=lab.up, down=lab.down, crash=lab.crash, start=lab.start_node)
            call.get(name, lab.restart_controller)(
                *([options["node"]] if "node" in options else []), **{} if "node" in options else options
            )
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # a lab that is told to end while it comes up takes itself down; whoever calls `main` keeps his own handlers
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    code = main()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)  # too late: the lab is up, and the exit code says so
    sys.exit(code)
