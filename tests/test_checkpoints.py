"""Checkpoints on disks that fill up, under readers, and in files that were tampered with."""

import errno
import json
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

from xrddiff.core.errors import BadInput, XrddiffError
from xrddiff.learn.telemetry.history import History, read_history
from xrddiff.learn.training import checkpoints
from xrddiff.learn.training.checkpoints import (
    CheckpointError,
    add_to_checkpoint,
    clean_checkpoints,
    find_fault,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)


def tensors(n=1000, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"model": {"w": torch.randn(n, generator=g)}, "ema": {"w": torch.randn(n, generator=g)}}


def save(folder, step, n=1000, **options):
    return save_checkpoint(folder, step, tensors(n, step), {"step": step}, **options)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 300 kB; without the right to mount one, the test is left to `test_full_disk_by_limit`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk(small_disk):
    folder = small_disk / "checkpoints"
    save(folder, 1, 12_000)  # 96 kB each: three do not fit beside each other and a table
    save(folder, 2, 12_000)
    with pytest.raises(CheckpointError) as e:
        save(folder, 3, 24_000)
    said = str(e.value)
    assert (
        "step-00000003 could not be written" in said
        and "No space left on device" in said
        and "step-00000002 is intact" in said
    )
    assert "192 kB needed" in said and "kB free" in said and "\n" not in said
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000001", "step-00000002"]
    assert latest_checkpoint(folder).name == "step-00000002"
    save(folder, 3, 1000, keep=1)  # once there is room it goes on
    assert [p.name for p in folder.iterdir()] == ["step-00000003"]


def test_full_disk_for_the_table_and_for_additions(small_disk):
    path = save(small_disk / "checkpoints", 1, 12_000)
    history = History(small_disk / "metrics")
    history.append(step=1, epoch=1, frames=8, split="train", lr=0.1, loss=0.5)
    history.save()
    before = (small_disk / "metrics" / "training_metrics.csv").read_bytes()
    with pytest.raises(OSError) as e:
        (small_disk / "filler").write_bytes(bytes(1_000_000))
    assert e.value.errno == errno.ENOSPC
    with pytest.raises(XrddiffError, match="training_metrics could not be written .*No space left on device"):
        for step in range(2000):
            history.append(step=step, epoch=1, frames=8 * step, split="train", lr=0.1, loss=0.5)
        history.save()
    assert (small_disk / "metrics" / "training_metrics.csv").read_bytes() == before
    with pytest.raises(CheckpointError, match="could not be added to: No space left on device; it is unchanged"):
        add_to_checkpoint(path, latent_statistics={"mean": list(range(2000))})
    assert find_fault(path) is None and load_checkpoint(path).state == {"step": 1}
    assert not [p for p in small_disk.rglob(".*")]


def test_full_disk_by_limit(tmp_path):
    """The same by a limit on file sizes, which needs no rights."""
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_checkpoints import *\n"
        "folder = Path(sys.argv[2]); save(folder, 1)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        "try: save(folder, 2, 50_000)\n"
        "except CheckpointError as e: print(e)\n"
    )
    words = [sys.executable, "-c", code, Path(__file__).parent, tmp_path / "c"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert (
        "step-00000002 could not be written" in said
        and "File too large (400 kB needed" in said
        and "step-00000001 is intact" in said
    )
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["step-00000001"]
    assert find_fault(tmp_path / "c" / "step-00000001") is None


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        CheckpointError, match="could not be written to .*: Not a directory .*no earlier checkpoint exists"
    ):
        save(tmp_path / "file" / "checkpoints", 1)
    with pytest.raises(XrddiffError, match="training_metrics could not be written to .*: Not a directory"):
        History(tmp_path / "file" / "metrics").save()


def test_a_reader_never_meets_half_a_checkpoint(tmp_path):
    """A second thread opens the newest checkpoint and the table over and over while they are replaced."""
    done, met = threading.Event(), []
    history = History(tmp_path / "metrics")
    history.append(step=0, epoch=1, frames=0, split="train", lr=0.1, loss=1.0)
    save(tmp_path / "c", 0, keep=3)

    def read():
        while not done.is_set():
            newest = max((p for p in (tmp_path / "c").glob("step-*")), default=None)
            if newest is not None:
                fault = find_fault(newest)
                met.append(fault if newest.exists() else None)  # it may be removed while a slow reader is at it
            if not len(read_history(tmp_path)):
                met.append("an empty table")

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(1, 40):
        save(tmp_path / "c", step, keep=3)
        history.append(step=step, epoch=1, frames=8 * step, split="train", lr=0.1, loss=1 / step)
        history.save()
    done.set()
    reader.join()
    assert len(met) > 5 and set(met) == {None}


def test_a_checkpoint_that_goes_while_it_is_read_is_not_called_damaged(tmp_path, monkeypatch, recwarn):
    save(tmp_path, 1)
    save(tmp_path, 2)
    look = checkpoints.find_fault

    def slow(path, **words):
        if path.name == "step-00000001":  # a training goes on meanwhile, and keeps two
            save(tmp_path, 3, keep=2)
        return look(path, **words)

    (tmp_path / "step-00000002" / "state.json").unlink()  # damaged, and still there: said
    monkeypatch.setattr(checkpoints, "find_fault", slow)
    assert latest_checkpoint(tmp_path).name == "step-00000003"
    assert [str(w.message).rsplit(" is skipped")[0][-13:] for w in recwarn] == ["step-00000002"]


@pytest.mark.parametrize(
    "damage", ["flip", "cut", "grow", "empty", "gone", "manifest", "no manifest", "format", "path"]
)
def test_damage_is_found_and_the_one_before_is_taken(tmp_path, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    file, manifest = path / "model.safetensors", path / "manifest.json"
    whole = file.read_bytes()
    words = json.loads(manifest.read_text())
    if damage == "flip":
        file.write_bytes(whole[:2000] + bytes([whole[2000] ^ 4]) + whole[2001:])
    elif damage in ("cut", "grow", "empty"):
        file.write_bytes({"cut": whole[:-1], "grow": whole + b" ", "empty": b""}[damage])
    elif damage == "gone":
        file.unlink()
    elif damage == "manifest":
        manifest.write_bytes(manifest.read_bytes()[:40])
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "format":
        manifest.write_text(json.dumps({**words, "version": 3}))
    else:  # a manifest must not lead out of its folder
        (tmp_path / "x").write_bytes(whole)
        words["files"]["../x"] = words["files"].pop("model.safetensors")
        manifest.write_text(json.dumps(words))
    with pytest.raises(CheckpointError, match="step-00000002 is broken: "):
        load_checkpoint(path)
    with pytest.warns(UserWarning, match="step-00000002 is skipped: "):
        assert load_checkpoint(tmp_path).step == 1


def test_any_damage_to_a_manifest_costs_that_checkpoint_alone(tmp_path):
    """Each bit of it flipped in turn, and whatever JSON can be instead: resume goes on from the checkpoint before, with a warning."""
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    add_to_checkpoint(path, note={"a": 1})
    manifest = path / "manifest.json"
    whole, words = manifest.read_bytes(), json.loads(manifest.read_text())
    flipped = [whole[:i] + bytes([whole[i] ^ (1 << i % 7)]) + whole[i + 1 :] for i in range(len(whole))]
    others = [[words], {**words, "files": {}}, {**words, "added": {"note": "gone.json"}}, 7, None]
    texts = [*map(json.dumps, others), "[" * 100_000]
    for damaged in [*flipped, *(text.encode() for text in texts)]:
        manifest.write_bytes(damaged)
        try:
            same = json.loads(damaged) == words
        except (ValueError, RecursionError):
            same = False
        if same:  # a space for a line break says the same
            continue
        with pytest.warns(UserWarning, match="step-00000002 is skipped: "):
            assert load_checkpoint(tmp_path).step == 1, damaged
        with pytest.raises(CheckpointError, match="step-00000002 is broken: "):
            load_checkpoint(path, verify=False)


def test_damaged_words_are_found_without_the_hashes_of_weights(tmp_path):
    save(tmp_path, 1)
    state = save(tmp_path, 2) / "state.json"
    state.write_bytes(state.read_bytes().replace(b'"step"', b'"sreo"'))
    with pytest.warns(UserWarning, match="step-00000002 is skipped: the sha256 of state.json"):
        assert latest_checkpoint(tmp_path, hashes=False).name == "step-00000001"


def test_state_and_every_type_come_back(tmp_path):
    kinds = {
        str(d): torch.arange(6).reshape(2, 3).to(d)
        for d in (
            torch.float64,
            torch.float32,
            torch.bfloat16,
            torch.float16,
            torch.int64,
            torch.int8,
            torch.uint8,
            torch.bool,
        )
    }
    kinds["scalar"], kinds["nan"] = torch.tensor(3.5), torch.tensor([float("nan"), float("inf"), -0.0])
    kinds["transposed"] = torch.randn(3, 4).T
    kinds["a"] = torch.randn(5)
    kinds["tied"], kinds["view"] = kinds["a"], kinds["a"][1:3]
    state = {
        "step": 3,
        "transform": {"name": "Asinh", "scale": 0.1 + 0.2},
        "config": {"x": None, "deep": [[1, "ü"], {"b": True}]},
    }
    checkpoint = load_checkpoint(save_checkpoint(tmp_path, 3, {"model": kinds, "empty": {}}, state))
    assert checkpoint.state == state and checkpoint.tensors("empty") == {}
    back = checkpoint.tensors("model")
    assert set(back) == set(kinds)
    for name, t in kinds.items():
        assert back[name].dtype == t.dtype and back[name].shape == t.shape
        assert torch.equal(
            back[name].contiguous().reshape(-1).view(torch.uint8), t.contiguous().reshape(-1).view(torch.uint8)
        )
    with pytest.raises(BadInput, match="holds no 'ema'; it holds empty, model"):
        checkpoint.tensors("ema")
    assert torch.equal(checkpoint.weights()["a"], kinds["a"])  # no average: the weights themselves


def test_what_a_kill_leaves_is_cleaned_or_put_back(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    half = tmp_path / ".step-00000003.writing"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    path.rename(tmp_path / ".step-00000002.old")  # killed between the two renames that replace a checkpoint
    assert latest_checkpoint(tmp_path).name == "step-00000001"
    clean_checkpoints(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    assert latest_checkpoint(tmp_path).name == "step-00000002"
    clean_checkpoints(tmp_path / "nowhere")


def test_what_is_asked_for_is_found(tmp_path):
    path = save(tmp_path / "run" / "checkpoints", 12)
    for asked in (path, path.parent, tmp_path / "run", str(tmp_path / "run")):
        assert load_checkpoint(asked).path == path
    moved = path.rename(tmp_path / "best")  # under another name it is a checkpoint still
    assert load_checkpoint(moved).step == 12
    with pytest.raises(CheckpointError, match="holds no intact checkpoint"):
        load_checkpoint(tmp_path / "run")
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load_checkpoint(tmp_path / "nowhere")
    assert latest_checkpoint(tmp_path / "nowhere") is None
    for name in ("step-12", "step-0000000x", "step-00000099.writing"):
        (tmp_path / "run" / "checkpoints" / name).mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert latest_checkpoint(tmp_path / "run" / "checkpoints") is None


def test_an_optimizer_of_another_kind_or_model_is_refused():
    def trained(*sizes, kind=torch.optim.AdamW):
        model = torch.nn.Sequential(*[torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)])
        optimizer = kind(model.parameters(), lr=0.1)
        model(torch.ones(1, sizes[0])).sum().backward()
        optimizer.step()
        return model, optimizer

    model, optimizer = trained(2, 3, 1)
    moments, words = pack_optimizer(optimizer, model)
    assert json.loads(json.dumps(words)) == words
    other, momentum = trained(2, 3, 1, kind=torch.optim.RMSprop)
    with pytest.raises(BadInput, match="optimizer is AdamW; expected RMSprop"):
        unpack_optimizer(momentum, other, moments, words)
    small, adam = trained(2, 3)
    with pytest.raises(BadInput, match="a state for 1.weight, which this model does not train"):
        unpack_optimizer(adam, small, moments, words)
    with pytest.raises(BadInput, match=r"has, but the model does not have, 1\.bias and 1 more"):
        load_weights(small, model.state_dict())
    with pytest.raises(BadInput, match=r"lacks 1\.bias and 1 more"):
        load_weights(model, small.state_dict())


def test_no_pickle_inside(tmp_path):
    path = save(tmp_path, 1)
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}
    source = Path(sys.modules["xrddiff.learn.training.checkpoints"].__file__).read_text()
    assert "torch.load" not in source and "import pickle" not in source
