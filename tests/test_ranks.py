"""Which rank am I, under every launcher; and real processes that meet, find the port taken, or wait for one that never comes."""

from __future__ import annotations

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import clean_environment, missing

from xrddiff.core.errors import BadInput, XrddiffError
from xrddiff.core.ranks.environment import DistInfo, expand_nodelist, job_port, read_environment, set_environment
from xrddiff.core.ranks.rendezvous import (
    find_coordinator,
    host_address,
    initialize_distributed,
    listen,
    network_interface,
    receive_ranks,
)

STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NODELIST": "nid[0098-0099]",
    "SLURM_TASKS_PER_NODE": "4,3",
    "SLURMD_NODENAME": "nid0099",
}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "29411",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
MPICH = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2", "MASTER_ADDR": "n1"}


def place(env: dict) -> tuple:
    i = read_environment(env)
    return i.launcher, i.process_id, i.num_processes, i.local_process_id, i.local_processes, i.node_id, i.num_nodes


# %% Reading


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, ("single", 0, 1, 0, 1, 0, 1)),
        (STEP, ("slurm", 5, 7, 1, 3, 1, 2)),
        (STEP | {"SLURM_NODEID": "0", "SLURM_PROCID": "1"}, ("slurm", 1, 7, 1, 4, 0, 2)),
        (TORCHRUN, ("torchrun", 3, 4, 1, 2, 1, 2)),
        (OPENMPI, ("openmpi", 2, 4, 2, 4, 0, 1)),
        (MPICH, ("mpich", 2, 4, 0, 2, 1, 2)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, ("mpich", 1, 2, 1, 2, 0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, ("plain", 1, 2, 1, 2, 0, 1)),
        # one process per pod, as Kubernetes starts them
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "pod-0"}, ("plain", 1, 2, 0, 1, 1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, ("plain", 0, 1, 0, 1, 0, 1)),
        # other launchers inside a step of SLURM start processes of their own
        ({k: v for k, v in STEP.items() if k != "RANK"} | TORCHRUN, ("torchrun", 3, 4, 1, 2, 1, 2)),
        (STEP | OPENMPI, ("openmpi", 2, 4, 2, 4, 0, 1)),
        (STEP | MPICH, ("mpich", 2, 4, 0, 2, 1, 2)),
        # srun --mpi=pmi2 tells its own tasks the same place twice
        (STEP | {"PMI_RANK": "5", "PMI_SIZE": "7"}, ("slurm", 5, 7, 1, 3, 1, 2)),
    ],
)
def test_every_launcher(env, expected):
    assert place(env) == expected


@pytest.mark.parametrize("change", [{"SLURM_STEP_ID": None}, {"SLURM_STEP_ID": str(2**32 - 5)}])
def test_the_shell_of_a_job_is_alone(change):
    env = {k: v for k, v in (STEP | change).items() if v is not None}
    assert place(env)[:3] == ("single", 0, 1)


def test_a_step_smaller_than_its_job():
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "nid0099"}
    step |= {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_PROCID": "1", "SLURM_NODEID": "0"}
    info = read_environment(STEP | step)
    assert (info.num_processes, info.num_nodes, info.local_processes) == (2, 1, 2)
    assert info.coordinator_address == "nid0099"


def test_all_ranks_of_a_job_agree_and_jobs_differ():
    infos = [read_environment(STEP | {"SLURM_PROCID": str(r)}) for r in range(7)]
    assert {(i.coordinator_address, i.coordinator_port) for i in infos} == {("nid0098", job_port("slurm", "77", "0"))}
    others = {read_environment(STEP | {"SLURM_JOB_ID": str(j)}).coordinator_port for j in range(100)}
    assert len(others) > 95
    assert read_environment(STEP | {"SLURM_STEP_ID": "1"}).coordinator_port != infos[0].coordinator_port


def test_the_port_and_the_address_can_be_given():
    assert read_environment(STEP | {"MASTER_PORT": "12345"}).coordinator_port == 12345
    assert read_environment(STEP, coordinator_port=12346).coordinator_port == 12346
    assert read_environment(STEP | {"MASTER_ADDR": "10.0.0.7"}).coordinator_address == "10.0.0.7"


def test_the_node_list_goes_through_expand():
    info = read_environment(STEP | {"SLURM_JOB_NODELIST": "@rack7"}, expand=lambda text: [f"first of {text}", "n2"])
    assert info.coordinator_address == "first of @rack7"


@pytest.mark.parametrize("bad", ["", "n[1-", "n[a-b]", "n1;reboot", "$(id)", "n[1-3", "@rack"])
def test_node_lists_that_are_none(bad):
    with pytest.raises(BadInput, match="node (list|range)"):
        expand_nodelist(bad)


@pytest.mark.parametrize(
    ("env", "word"),
    [
        ({"RANK": "1"}, "RANK is 1 but WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 but RANK is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "expected a rank from 0 to 1"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one'; expected a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1'"),
        ({"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "n1", "LOCAL_RANK": "1"}, "LOCAL_WORLD_SIZE is not set"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "70000"}, "MASTER_PORT"),
        ({"PMI_RANK": "1"}, "PMI_SIZE is not set"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK is not set"),
        (OPENMPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, "set MASTER_ADDR"),
        ({k: v for k, v in STEP.items() if k != "SLURM_PROCID"}, "SLURM_PROCID is not set"),
        ({k: v for k, v in STEP.items() if k != "SLURM_LOCALID"}, "SLURM_LOCALID is not set"),
        ({k: v for k, v in STEP.items() if k != "SLURM_JOB_NODELIST"}, "SLURM_JOB_NODELIST is not set"),
        (STEP | {"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 but SLURM_NTASKS is 7"),
    ],
)
def test_half_an_environment_is_refused(env, word):
    with pytest.raises(BadInput) as refusal:
        read_environment(env)
    assert word in str(refusal.value) and "\n" not in str(refusal.value)


def test_devices():
    two = {"RANK": "1", "WORLD_SIZE": "2"}
    info = read_environment(two | {"CUDA_VISIBLE_DEVICES": "4,5,6"})
    assert (info.backend, info.device, info.local_device_count, info.global_device_count) == ("nccl", "cuda:1", 3, 2)
    assert read_environment(two | {"ROCR_VISIBLE_DEVICES": "3"}).device == "cuda:0"
    for none in ({}, {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}):
        assert (read_environment(two | none).backend, read_environment(two | none).device) == ("gloo", "cpu")
    cpu = two | {"CUDA_VISIBLE_DEVICES": "0,1", "ACCELERATE_USE_CPU": "true"}
    assert read_environment(cpu).backend == "gloo"


@pytest.mark.parametrize("env", [STEP, TORCHRUN, OPENMPI, MPICH, {"RANK": "1", "WORLD_SIZE": "2"}])
def test_what_is_set_reads_back_the_same(env):
    env, info = dict(env), read_environment(env)
    set_environment(info, env)
    assert env["RANK"] == str(info.process_id) and env["MASTER_ADDR"] == info.coordinator_address
    assert read_environment(env) == info


def test_alone_nothing_is_set():
    env: dict[str, str] = {}
    set_environment(initialize_distributed(env), env)
    assert env == {}


def test_a_host_without_an_address():
    with pytest.raises(XrddiffError, match="'no-such-host.invalid', has no IPv4 address here.*MASTER_ADDR"):
        host_address("no-such-host.invalid")
    assert host_address("127.0.0.1") == "127.0.0.1"


# %% Meeting, without PyTorch: the same sockets, in threads


def free_ports() -> int:
    """The first of ten ports that nobody listens on."""
    for first in range(23000 + os.getpid() % 8000, 65000, 10):
        try:
            with taken(range(first, first + 10)):
                return first
        except OSError:
            continue
    raise AssertionError("no free ports")


@contextmanager
def taken(ports):
    held = []
    try:
        for port in ports:
            held.append(socket.create_server(("127.0.0.1", port)))
        yield held
    finally:
        for s in held:
            s.close()


def meet(size: int, *, ranks=None, port=None, timeout=10.0, tokens=None) -> dict[int, object]:
    """What each rank gets: the port where it met the others, or its error."""
    port = port or free_ports()
    base = DistInfo(num_processes=size, local_processes=size, coordinator_port=port, launcher="plain")
    results: dict[int, object] = {}

    def rank(r: int) -> None:
        info = replace(base, process_id=r, local_process_id=r)
        token = (tokens or {}).get(r, "ours")
        try:
            if r == 0:
                with listen(info) as listener:
                    receive_ranks(listener, info, token, timeout)
                    results[r] = listener.getsockname()[1]
            else:
                results[r] = find_coordinator(info, token, timeout)
        except XrddiffError as error:
            results[r] = error

    threads = [threading.Thread(target=rank, args=(r,)) for r in (range(size) if ranks is None else ranks)]
    for thread in reversed(threads):  # rank 0 comes last
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join(timeout + 20)
    return results


def test_ranks_meet():
    port = free_ports()
    assert meet(9, port=port) == dict.fromkeys(range(9), port)


def test_a_port_in_use_all_agree_on_the_next():
    """The first port belongs to someone who never answers, the second to someone who hangs up, the third to another job."""
    port = free_ports()
    other = DistInfo(num_processes=2, coordinator_port=port + 2)
    with taken([port, port + 1]) as (_, rude):
        threading.Thread(target=lambda: [rude.accept()[0].close() for _ in range(2)], daemon=True).start()
        with listen(other) as theirs:
            waiting = threading.Thread(
                target=lambda: pytest.raises(XrddiffError, receive_ranks, theirs, other, "x", 6.0)
            )
            waiting.start()
            assert meet(3, port=port) == dict.fromkeys(range(3), port + 3)
            waiting.join()


def test_eight_ports_in_use():
    port = free_ports()
    with taken(range(port, port + 8)):
        (error,) = meet(2, ranks=[0], port=port).values()
    assert f"any of the ports {port} to {port + 7}" in str(error) and "MASTER_PORT" in str(error)


def test_a_rank_that_never_comes_is_named_on_every_rank():
    results = meet(4, ranks=[0, 1, 3], timeout=1.5)
    for r in (0, 1, 3):
        text = str(results[r])
        assert isinstance(results[r], XrddiffError), text
        assert "rank 2 of 4 did not come" in text and "127.0.0.1" in text and f"this is rank {r} on" in text
        assert "MASTER_ADDR" in text and "MASTER_PORT" in text and "GLOO_SOCKET_IFNAME" in text and "\n" not in text


def test_without_rank_0():
    results = meet(3, ranks=[1, 2], timeout=1.0)
    assert all("rank 0 of 3 did not come" in str(error) for error in results.values())


def test_a_socket_that_is_connected_to_itself(monkeypatch):
    """Where nobody listens, the kernel may give a socket the port that it asks: 1 in 30,000, and the rank then waited forever for itself."""
    info = DistInfo(num_processes=2, coordinator_port=free_ports())
    itself, create, asked, met = [], socket.create_connection, threading.Event(), []

    def from_there(address, timeout):
        made = create(address, timeout, None if itself else address)
        itself.append(made.getsockname() == made.getpeername())
        asked.set()
        return made

    def host() -> None:
        asked.wait(10)
        with listen(info) as listener:
            receive_ranks(listener, info, "ours", 10.0)
            met.append(listener.getsockname()[1])

    monkeypatch.setattr(socket, "create_connection", from_there)
    thread = threading.Thread(target=host)
    thread.start()
    found = find_coordinator(replace(info, process_id=1), "ours", 10.0)
    thread.join(15)
    assert met == [found] and itself == [True, False]


def test_many_missing_ranks_are_counted():
    (error,) = meet(100, ranks=[0], timeout=0.2).values()
    assert "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 91 more of 100 did not come" in str(error)


def test_strangers_do_not_disturb():
    """Silence, noise, a rank that is none, and one that comes twice."""
    port = free_ports()
    info = DistInfo(num_processes=3, coordinator_port=port)
    done: list[object] = []

    def host() -> None:
        with listen(info) as listener:
            receive_ranks(listener, info, "ours", 10.0)
            done.append(True)

    thread = threading.Thread(target=host)
    thread.start()
    time.sleep(0.1)
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    strangers[1].sendall(os.urandom(10000))
    strangers[2].sendall(b'{"xrddiff": "ours", "rank": 7}\n')
    strangers[3].sendall(b'{"xrddiff": "ours", "rank": 2}\n')  # came, and died before all were there
    assert json.loads(strangers[3].recv(100))["state"] == "wait"
    strangers[3].close()
    time.sleep(0.1)
    found = [None, None]

    def come(r: int) -> None:
        found[r - 1] = find_coordinator(replace(info, process_id=r), "ours", 10.0)

    threads = [threading.Thread(target=come, args=(r,)) for r in (1, 2)]
    for t in threads:
        t.start()
    for t in [*threads, thread]:
        t.join(15)
    for s in strangers:
        s.close()
    assert found == [port, port] and done == [True]


# %% Real processes

RANK = """
import json, os, sys
from xrddiff.core.ranks.rendezvous import barrier, broadcast_text, gather_objects, initialize_distributed, exit_rank
from xrddiff.core.errors import XrddiffError
assert "torch" not in sys.modules and "numpy" not in sys.modules
try:
    info = initialize_distributed(timeout=float(sys.argv[1]))
except XrddiffError as error:
    print(json.dumps(str(error)))
    sys.exit(3)
import torch.distributed as dist
held = dist.group.WORLD  # what a trainer holds until the end
from accelerate import Accelerator
accelerator = Accelerator()
seen = dict(info.__dict__, accelerate=[accelerator.process_index, accelerator.num_processes])
seen["gathered"] = gather_objects({"rank": info.process_id})
seen["text"] = broadcast_text("résumé $(x)\\n" if info.process_id == 0 else None)
seen["interface"] = os.environ.get("GLOO_SOCKET_IFNAME")
sys.path.insert(0, sys.argv[2])
from conftest import listening
seen["listens"] = sorted({place.rpartition(":")[0] for place in listening(os.getpid())})
seen["again"] = initialize_distributed() == info
barrier()
print(json.dumps(seen) + "\\n", end="")  # in one piece: two ranks share a pipe
exit_rank(0)
"""


def run_ranks(envs: list[dict[str, str]], timeout: float = 60) -> list[tuple[int, object]]:
    command = [sys.executable, "-c", RANK, str(timeout), str(Path(__file__).parent)]
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = [subprocess.Popen(command, env=clean_environment() | env, **pipe) for env in envs]
    results = []
    for process in started:
        out, err = process.communicate(timeout=120)
        assert out.strip(), err
        results.append((process.returncode, json.loads(out.strip().splitlines()[-1])))
    return results


@pytest.mark.slow
def test_two_ranks_open_a_group_though_the_port_is_taken():
    port = free_ports()
    envs = [{"RANK": str(r), "WORLD_SIZE": "2", "MASTER_PORT": str(port)} for r in range(2)]
    with taken([port]):
        results = run_ranks(envs)
    for r, (code, seen) in enumerate(results):
        assert code == 0
        assert seen["accelerate"] == [r, 2] and seen["again"]
        assert (seen["coordinator_address"], seen["coordinator_port"]) == ("127.0.0.1", port + 1)
        assert seen["gathered"] == [{"rank": 0}, {"rank": 1}] and seen["text"] == "résumé $(x)\n"
        assert seen["listens"] == ["127.0.0.1"]  # the ranks of one machine, and nobody else


@pytest.mark.slow
def test_a_missing_process_ends_the_others_with_a_diagnosis():
    port = free_ports()
    envs = [{"PMI_RANK": r, "PMI_SIZE": "3", "MASTER_PORT": str(port)} for r in ("0", "2")]
    for code, text in run_ranks(envs, timeout=3):
        assert code == 3 and "rank 1 of 3 did not come" in text and f"MASTER_PORT ({port})" in text


@pytest.mark.slow
def test_ranks_on_several_nodes_listen_where_they_meet():
    """Gloo is told the interface over which they met, and not the one of the host's own name; no other is listened at."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect(("192.0.2.1", 9))
            own = way.getsockname()[0]
    except OSError:
        own = "127.0.0.1"
    interface = network_interface(own)
    if own.startswith("127.") or interface is None:
        pytest.skip(f"this machine has no network but {own}")
    port = free_ports()
    envs = [{"RANK": str(r), "WORLD_SIZE": "2", "MASTER_ADDR": own, "MASTER_PORT": str(port)} for r in range(2)]
    for code, seen in run_ranks(envs):
        assert code == 0 and seen["num_nodes"] == 2 and seen["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert seen["interface"] == interface and seen["listens"] == [own]


def test_where_rank_0_listens():
    """At the address of its name; where that is the loopback by mistake of one node only, at all of them."""
    several = DistInfo(num_processes=2, num_nodes=2)
    nodes = {"SLURM_JOB_NODELIST": "localhost"}
    for info, env, address in (
        (DistInfo(num_processes=2), {}, "127.0.0.1"),
        (replace(several, coordinator_address="192.0.2.7"), {}, "0.0.0.0"),  # a gateway's: not ours to bind to
        (replace(several, coordinator_address="localhost"), nodes, "127.0.0.1"),
        (replace(several, coordinator_address="localhost"), {"MASTER_ADDR": "localhost"}, "127.0.0.1"),
        (replace(several, coordinator_address="localhost"), {"SLURM_JOB_NODELIST": "no-such-node"}, "0.0.0.0"),
    ):
        with listen(replace(info, coordinator_port=free_ports()), env) as listener:
            assert listener.getsockname()[0] == address


MPI = """
import sys, time
from xrddiff.core.ranks.environment import read_environment
from xrddiff.core.ranks.rendezvous import gather_objects, initialize_distributed, exit_rank
# rank 0 of the first job and rank 1 of the second come when their partners are not there yet
time.sleep(2 * (read_environment().process_id == (sys.argv[1] == "first")))
info = initialize_distributed(timeout=60)
told = gather_objects([sys.argv[1], info.launcher, info.process_id, info.local_process_id])
if info.process_id == 0:
    print("TOLD", told, flush=True)
exit_rank(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "command", "package"),
    [
        ("openmpi", "mpirun --allow-run-as-root --oversubscribe -n 2", "openmpi-bin"),
        ("mpich", "mpiexec.hydra -n 2", "mpich"),
    ],
)
def test_two_mpi_jobs_side_by_side(launcher, command, package):
    """Each of the real launchers: ranks meet those of their own job, and not those of another that started at the same time."""
    command = command.split()
    if not shutil.which(command[0]):
        missing(f"{command[0]} not found (apt-get install {package})")
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    jobs = {}
    for name in ("first", "second"):
        # Open MPI's jobs make one folder together, and one of two that start at the same moment may fail to
        own = {"OMPI_MCA_orte_tmpdir_base": tempfile.mkdtemp(prefix="ompi-")}
        command_of = [*command, sys.executable, "-c", MPI, name]
        jobs[name] = subprocess.Popen(command_of, env=clean_environment() | own, **pipe)
    for name, job in jobs.items():
        out, err = job.communicate(timeout=120)
        assert job.returncode == 0, err
        told = ast.literal_eval(out.split("TOLD", 1)[1].strip())
        assert told == [[name, launcher, rank, rank] for rank in (0, 1)]


@pytest.mark.slow
def test_torchrun(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_ports()}"]
    done = subprocess.run(
        [*command, str(script), "60", str(Path(__file__).parent)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    seen = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sorted(s["process_id"] for s in seen) == [0, 1]
    assert all(s["launcher"] == "torchrun" and s["accelerate"][1] == 2 for s in seen)
