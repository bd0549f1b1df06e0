"""What can be chosen by name: the index of the package, and that nobody needs PyTorch to read it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import xrddiff
from xrddiff.config import compose_config
from xrddiff.errors import BadInput
from xrddiff.registry import KINDS, entries, get


def test_the_index_is_what_the_modules_register():
    """In a process of its own: importing every module registers what `registry.json` says, no more and no less."""
    code = "import json; from xrddiff.registry import collect; print(json.dumps(collect()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    index = json.loads(Path(xrddiff.__file__).with_name("registry.json").read_text(encoding="utf-8"))
    assert json.loads(out.splitlines()[-1]) == index


@pytest.mark.parametrize("kind", KINDS)
def test_everything_can_be_got(kind):
    for name, entry in entries(kind).items():
        thing = get(kind, name)
        assert callable(thing) and entry.help and not entry.help.startswith(" ") and "\n" not in entry.help


@pytest.mark.parametrize(
    "command",
    ["main(['list', 'sampler'])", "compose_config(['model=ddpm', 'inference.sampler_options={order: 3}'])"],
)
def test_names_and_options_need_no_torch(command):
    code = f"import sys; from xrddiff.cli.main import main; from xrddiff.config import compose_config; {command}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["inference.sampler_options={orders: 3}"], "the sampler unipc has no option 'orders'; did you mean 'order'?"),
        (["inference.sampler=euler", "inference.sampler_options={order: 3}"], "has no option 'order'; it has none"),
        (["inference.sampler_options={order: 4}"], "inference.sampler_options.order: found 4, expected at least 1 and"),
        (["inference.sampler_options={corrector: 1}"], "found 1, expected true or false"),
        (["inference.sampler_options={basis: bh3}"], "did you mean 'bh"),
        (["inference.order=1", "inference.sampler_options={order: 3}"], "inference.order=1 contradicts inference"),
    ],
)
def test_options_are_refused_in_the_sentences_of_words(words, says):
    with pytest.raises(BadInput) as error:
        compose_config(["model=ddpm", *words])
    assert says in str(error.value)
