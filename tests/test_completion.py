"""The Tab key: a real bash, zsh and fish, which ask the command how a line goes on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import missing

BASH = r"""
eval "$(xrddiff config completion bash)"
COMP_WORDBREAKS=$' \t\n"'"'"'><=;|&(:'
COMP_LINE="$LINE"; COMP_POINT=${#LINE}; COMP_TYPE=9; COMPREPLY=()
_python_argcomplete xrddiff
printf '%s\n' "${COMPREPLY[@]}"
"""
ZSH = r"""
autoload -U compinit; compinit -D
eval "$(xrddiff config completion zsh)"
echo $_comps[xrddiff]
"""


def shell(name: str, script: str, folder: Path, line: str = "") -> list[str]:
    """The lines that a script of a shell prints; the shell finds this environment's `xrddiff`, and no start-up files."""
    if shutil.which(name) is None:
        missing(f"{name} is not installed")
    options = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}[name]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "LINE": line, "HOME": str(folder), "TERM": "dumb"}
    done = subprocess.run(
        [name, *options, "-c", script], env=env, cwd=folder, capture_output=True, text=True, check=True
    )
    return [said.strip() for said in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("xrddiff clus", {"cluster"}),
        ("xrddiff data in", {"inspect", "index"}),
        ("xrddiff run --mul", {"--multirun"}),
        ("xrddiff run data=sim128 model=vae", {"vae_kl"}),
        ("xrddiff cluster submit --profile deb", {"debug"}),
        ("xrddiff config list samp", {"sampler"}),
        ("xrddiff data fetch sim-", {"sim-422", "sim-522"}),
        ("xrddiff sample RUN inference.guid", {"inference.guidance_scale="}),
        ("xrddiff merge fra", {"frames.h5"}),
    ],
)
def test_bash_completes_commands_options_words_and_files(line, offered, tmp_path):
    (tmp_path / "frames.h5").touch()
    found = set(shell("bash", BASH, tmp_path, line))
    assert offered <= found and (offered == found or "guid" in line or "vae" in line)


def test_fish_and_zsh_complete_too(tmp_path):
    fish = 'xrddiff config completion fish | source\ncomplete -C "xrddiff data in"\ncomplete -C "xrddiff run model=dd"'
    offered = [line.partition("\t")[0] for line in shell("fish", fish, tmp_path)]
    assert {"index", "inspect", "model=ddpm"} <= set(offered)
    assert shell("zsh", ZSH, tmp_path) == ["_python_argcomplete"]
