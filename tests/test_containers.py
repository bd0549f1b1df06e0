"""Dockerfile, dev container and binder name files, commands and versions that there are. Where docker runs, CI builds the image (.ci/run)."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from xrddiff.app.verbs.main import parse

ROOT = Path(__file__).resolve().parent.parent
INSTRUCTIONS = "ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL RUN SHELL USER VOLUME WORKDIR".split()


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as pairs of instruction and what follows, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def check_command(words: list[str]) -> None:
    """A command that this repository has: `xrddiff …` is parsed, a target of make is looked up."""
    if words[0] == "xrddiff":
        parse(words[1:])
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in targets, words


def test_the_dockerfile_copies_what_there_is_and_runs_what_there_is():
    found = instructions()
    assert [name for name, _ in found if name not in INSTRUCTIONS] == []
    assert found[0][0] == "FROM" and re.fullmatch(r"python:3\.1\d-slim-\w+", found[0][1])
    copied = [source for name, rest in found if name == "COPY" for source in rest.split()[:-1]]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M)
    assert set(copied) == set(kept), "what is copied must not be ignored"
    # what setup.py reads has to be there when pip builds the wheel
    assert {"settings.ini", "setup.py", "README.md", "nbs", "slurm", "xrddiff"} <= set(copied)
    users = [rest for name, rest in found if name == "USER"]
    assert users and users[-1] not in ("root", "0")
    command = json.loads(next(rest for name, rest in found if name == "CMD"))
    check_command(command)
    assert "--no-browser" in command and parse(command[1:]).options == ["--ServerApp.ip=0.0.0.0", "--port=8888"]
    for extra in re.findall(r'"\.\[([\w,]+)\]"', " ".join(rest for _, rest in found)):
        known = re.findall(r"^(\w+)_requirements", (ROOT / "settings.ini").read_text(), re.M)
        assert set(extra.split(",")) <= set(known)


def test_the_dev_container_runs_commands_that_there_are():
    said = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    commands = [shlex.split(part) for part in said["postCreateCommand"].split("&&")]
    assert ["make", "dev"] in commands
    for words in commands:
        check_command(words)
    assert said["image"].endswith("python:3.11-bookworm")


def test_binder_installs_the_versions_that_the_tests_ran_with():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.M))
    for name, version in re.findall(r"^([\w-]+)==(\S+)", (ROOT / "binder" / "requirements.txt").read_text(), re.M):
        assert pins[name] == version
    assert (ROOT / "binder" / "runtime.txt").read_text() == "python-3.11\n"
    script = ROOT / "binder" / "postBuild"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    from xrddiff.app.verbs.lab import KERNEL, copy_tutorials

    assert f"--name {KERNEL} " in script.read_text() and copy_tutorials.__name__ in script.read_text()


def test_hadolint_finds_no_fault():
    if not shutil.which("hadolint"):
        pytest.skip("hadolint is not installed")
    said = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout
