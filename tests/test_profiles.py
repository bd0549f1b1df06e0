"""Profiles: those that come with the package, and files by people in a hurry or of ill will."""

from __future__ import annotations

import random
import subprocess
from dataclasses import fields, replace
from pathlib import Path

import pytest
from conftest import Lab

from xrddiff.core.errors import BadInput
from xrddiff.run.slurm.profiles import Profile, list_profiles, load_profile, shell_text, slurm_folder
from xrddiff.run.slurm.scripts import site_lines

HOSTILE = [
    "a b",
    "a\nb",
    "a;b",
    "$(id)",
    "`id`",
    "a'b",
    'a"b',
    "-p",
    "a$b",
    "a\\b",
    "a>b",
    "#a",
    "a\x00b",
    "ä",
    " a",
    "a\n",
]


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_file_is_a_profile_of_its_name():
    files = {path.stem for path in (slurm_folder() / "profiles").iterdir()}
    assert files == {p.name for p in list_profiles()}
    assert files == set(
        "debug small medium large production frontier perlmutter s3df midway3 bigbatch infiniband ethernet".split()
    )
    assert all(p == load_profile(p.name) and p.description for p in list_profiles())


def test_frontier_has_what_its_network_and_its_kernel_cache_need():
    p = load_profile("frontier")
    assert (p.nodes, p.tasks_per_node, p.gpus_per_node, p.cpus_per_task) == (10, 8, 8, 7)
    assert (p.partition, p.qos, p.time_limit, p.gpu_bind) == ("batch", "debug", "02:00:00", "closest")
    assert p.modules_to_load[0] == "PrgEnv-amd" and p.modules_to_load[-1] == "cray-mpich"
    wanted = dict(
        NCCL_SOCKET_IFNAME="hsn0", GLOO_SOCKET_IFNAME="hsn0", NCCL_SOCKET_FAMILY="AF_INET", NCCL_IB_DISABLE="1"
    )
    assert wanted.items() <= p.env_vars.items()
    assert p.env_vars["MIOPEN_USER_DB_PATH"] == p.setup[0][-1] == p.cleanup[0][-1]


def test_no_profile_spends_somebody_elses_allocation():
    assert all(p.account is None and p.mail_user is None for p in list_profiles())


def test_midway3_asks_for_what_its_site_gives():
    p = load_profile("midway3")
    assert (p.ranks, p.gpus_per_node, p.cpus_per_node, p.time_seconds) == (4, 4, 32, 8 * 3600)
    assert p.cpus_per_node * int(p.memory_per_cpu.removesuffix("M")) == 200 * 1024


def test_gpu_profiles_compute_in_bf16_and_track_offline():
    for p in list_profiles():
        wanted = dict(ACCELERATE_MIXED_PRECISION="bf16", WANDB_MODE="offline", WANDB_DIR="{home}/wandb_offline_logs")
        assert (wanted.items() <= p.variables.items()) == (p.platform != "cpu")


def test_networks_have_their_settings():
    fast, slow = load_profile("infiniband"), load_profile("ethernet")
    assert dict(NCCL_IB_DISABLE="0", NCCL_NET_GDR_LEVEL="5", NCCL_SOCKET_IFNAME="ib0").items() <= fast.variables.items()
    assert dict(NCCL_SOCKET_IFNAME="eth0", NCCL_SOCKET_NTHREADS="8").items() <= slow.variables.items()
    lines = site_lines(replace(fast, env_vars={"NCCL_SOCKET_IFNAME": "ib1"}))
    assert "export NCCL_IB_DISABLE=0" in lines and "export NCCL_SOCKET_IFNAME=ib1" in lines
    with pytest.raises(BadInput, match="network: found 'wifi'; expected one of infiniband, ethernet"):
        replace(fast, network="wifi")


def test_a_conda_environment_runs_the_job(tmp_path):
    """With a conda that says what it is asked, the job's Python is that of the environment."""
    (tmp_path / "conda").write_text(
        '#!/bin/bash\n[ "$1" = shell.bash ] && echo \'conda() { echo "conda $*"; export CONDA_PREFIX=/envs/$2; }\'\n'
    )
    (tmp_path / "conda").chmod(0o755)
    lines = site_lines(Profile("x", conda="my-env", modules_to_load=["anaconda3"]))
    assert lines.index("module load anaconda3") < lines.index("conda activate my-env || exit")
    script = "\n".join(["module() { :; }", "PYTHON=/usr/bin/python", *lines, 'echo "$PYTHON"'])
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    said = subprocess.run(["bash"], input=script, env=env, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["conda activate my-env", "/envs/my-env/bin/python"]
    for wrong in ("a b", "a;b", "$(id)", "-p"):
        with pytest.raises(BadInput, match="conda: found"):
            Profile("x", conda=wrong)


def test_ones_own_file_may_be_anywhere(tmp_path, monkeypatch):
    path = write(
        tmp_path,
        "nodes: 3\ncpus_per_node: 16\nmemory_per_cpu: 8G\npartition: compute\ncoordinator_port: 12345\nenv_vars:\n  A: 01\n",
    )
    p = load_profile(path)
    assert (p.name, p.nodes, p.coordinator_port, p.env_vars) == ("mine", 3, 12345, {"A": "01"})
    monkeypatch.chdir(tmp_path)
    assert load_profile("mine.yaml") == load_profile("./mine.yaml") == p


def test_yaml_does_not_reinterpret_what_was_written(tmp_path):
    p = load_profile(
        write(
            tmp_path,
            "time_limit: 12:00:00\naccount: 0123\nqos: no\nenv_vars: {A: yes, B: 1e3, C: null}\nexclusive: true",
        )
    )
    assert (p.time_seconds, p.account, p.qos, p.exclusive) == (43200, "0123", "no", True)
    assert p.env_vars == {"A": "yes", "B": "1e3", "C": "null"}


def test_nothing_stands_for_none_and_for_an_empty_list(tmp_path):
    p = load_profile(write(tmp_path, "partition:\naccount: null\nqos: ~\nenv_vars:\nmodules_to_load: null\nsetup:\n"))
    assert (p.partition, p.account, p.qos, p.env_vars, p.modules_to_load, p.setup) == (None, None, None, {}, [], [])


OPTIONS = "name memory_per_cpu time_limit partition account qos constraint reservation platform gpu_bind mail_user mail_type".split()


@pytest.mark.parametrize("field", OPTIONS)
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_reaches_an_option_of_sbatch_that_could_mean_something_else(field, text):
    with pytest.raises(BadInput, match=f"{field}: found"):
        Profile(**{"name": "x", field: text})


@pytest.mark.parametrize("field", [f.name for f in fields(Profile)])
@pytest.mark.parametrize(
    "value", [-1, 1.5, object(), b"x", "\x1b[31m", "two\nlines", ["a", 3], {"a": 3}, [[]], {3: "a"}, {"a b": "c"}]
)
def test_every_field_refuses_what_it_cannot_be(field, value):
    with pytest.raises(BadInput, match=f"^{field}: found .*; expected "):
        Profile(**{"name": "x", field: value})


def test_a_changed_profile_is_checked_too():
    with pytest.raises(BadInput, match="nodes: found 0; expected a whole number"):
        replace(load_profile("debug"), nodes=0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nodes: 4\ncpu_per_node: 8", "line 2: there is no field 'cpu_per_node'; did you mean 'cpus_per_node'"),
        ("nodes: 4\nnodes: 4", "line 2: found 'nodes' twice"),
        ("env_vars: {A: 1, A: 2}", "found 'A' twice"),
        ("nodes: 4\n\tname: x", "not YAML in line 2"),
        ("- nodes", "found no fields"),
        ("just text", "found no fields"),
        ("", "found no fields"),
        ("nodes: 1\n---\nnodes: 2", "not YAML"),
        (b"\xff\xfe\x00", "not text"),
        (b"nodes: \x00", "not YAML"),
        ("? [a, b]\n: 1", "there is no field"),
        ("nodes: [4]", r"nodes: found \['4'\]"),
        ("nodes:", "nodes: found ''; expected a whole number"),
        ("nodes: 1e3", "nodes: found '1e3'"),
        ("nodes: 99999999999999999999", "nodes: found"),
        ("env_vars: {SLURM_NTASKS: 4}", "env_vars: found 'SLURM_NTASKS'"),
        ("env_vars: {A: [1]}", "env_vars: found"),
        ("modules_to_load: gcc", "modules_to_load: found 'gcc'; expected a list"),
        ("modules_to_load: [gcc; reboot]", "modules_to_load: found 'gcc; reboot'"),
        ("setup: [[]]", r"setup: found \[\]; expected"),
        ("time_limit: 00:00:00", "time_limit: found '00:00:00'"),
        (
            "time_limit: 00:01:00",
            "time_limit: found 00:01:00, which is 60 s; expected at least 240 s, twice signal_seconds",
        ),
        ("time_limit: 3", "time_limit: found 3, which is 180 s; expected at least 240 s"),
        ("platform: rocm", "gpus_per_node: found 0; expected one for each"),
        ("platform: gpu", "platform: found 'gpu'; expected one of cpu, cuda, rocm"),
        ("gpu_bind: closest", "gpu_bind: found 'closest' without GPUs"),
        ("a: &a [x, x]\nb: &b [*a, *a]", "there is no field"),
        ("setup: &a [*a]", "found an alias"),
        ("setup: [&a [x, y], *a, *a]", "line 1: found an alias"),
        ("nodes: !!python/object/apply:os.system [id]", "nodes: found"),
    ],
)
def test_a_malformed_file_is_refused_with_one_sentence(tmp_path, text, says):
    with pytest.raises(BadInput, match=says) as error:
        load_profile(write(tmp_path, text))
    assert str(error.value).startswith(f"{tmp_path}/mine.yaml: ") and "\n" not in str(error.value)


def test_a_path_that_is_no_file_is_refused(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(BadInput, match=f"^{path}:? .*expected a YAML file"):
            load_profile(path)
    with pytest.raises(BadInput, match="there is no profile 'perlmuter'.*did you mean 'perlmutter'"):
        load_profile("perlmuter")


def test_any_text_is_one_word_of_a_script():
    draw = random.Random(0)
    characters = " \"'$`\\!*?[]{}()<>|&;#~=%-ab/äß🙂"
    texts = ["".join(draw.choices(characters, k=draw.randint(0, 12))) for _ in range(300)]
    texts = [t for t in texts if not any(p in t for p in ("{job_id}", "{nodes}", "{user}"))] + [
        "{user}{job_id}",
        "-n",
        "~",
        "",
    ]
    script = "printf '%s\\n' " + " ".join(map(shell_text, texts))
    env = dict(USER="a  *", SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="2", LANG="C.UTF-8")
    said = subprocess.run(["bash", "-u"], input=script, env=env, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [t.replace("{user}", "a  *").replace("{job_id}", "7") for t in texts]


def test_the_cache_of_frontier_is_made_and_removed_on_every_node(lab: Lab, tmp_path: Path):
    """As a job script would: set-up, then something that looks, then clean-up."""
    p = load_profile("frontier")

    def lines(commands: list[list[str]]) -> list[str]:
        return [" ".join(map(shell_text, words)) for words in commands]

    cache = shell_text(p.env_vars["MIOPEN_USER_DB_PATH"])
    body = [
        "#!/bin/bash",
        "set -e",
        *lines(p.setup),
        f"srun -n2 -N2 ls -d {cache}",
        *lines(p.cleanup),
        f"test ! -e {cache}",
    ]
    (tmp_path / "job.sh").write_text("\n".join(body) + "\n")
    env = lab.env | {"USER": "beamline"}
    job = lab.submit(
        "-N2",
        "--ntasks-per-node=8",
        f"--output={tmp_path}/out",
        f"--error={tmp_path}/err",
        f"{tmp_path}/job.sh",
        env=env,
    )
    lab.wait(job, "COMPLETED")
    assert (tmp_path / "out").read_text().split() == [f"/tmp/xrddiff-miopen-beamline-{job}"] * 2
