"""Quantisers: parity with vector-quantize-pytorch number by number, any cut of a step, processes, resuming, and codes that stay in use."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from conftest import need
from test_training import final, on_ranks

from xrddiff.core.errors import BadInput
from xrddiff.core.seeds import keyed_normal
from xrddiff.learn.losses import VQObjective
from xrddiff.learn.models.autoencoder import AutoencoderVQ, make_autoencoder
from xrddiff.learn.models.codebook import FSQ, VectorQuantizer, kmeans, nearest_code, perplexity

torch.set_num_threads(1)


# vector-quantize-pytorch: the same numbers.


@pytest.mark.parametrize("rotation_trick", [False, True])
def test_twenty_updates_equal_vector_quantize_pytorch(rotation_trick):
    peer = need("vector_quantize_pytorch").VectorQuantize(
        4, 128, decay=0.99, rotation_trick=rotation_trick, commitment_weight=0.25, accept_image_fmap=True
    )
    ours = VectorQuantizer(128, 4, decay=0.99, kmeans_init=False, dead_threshold=0, rotation_trick=rotation_trick)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(128, 4, generator=generator)
    for book in (peer._codebook.embed[0], peer._codebook.embed_avg[0], ours.embed, ours.embed_avg):
        book.copy_(start)
    for _ in range(20):
        z = 1.5 * torch.randn(3, 4, 10, 12, generator=generator)
        g = torch.randn(3, 4, 10, 12, generator=generator)
        one, two = z.clone().requires_grad_(), z.clone().requires_grad_()

        quantized, codes, loss = peer(one)
        out = ours(two)
        commitment = 0.25 * (two - out.z.detach()).square().mean()
        ours.update(z.movedim(1, -1).flatten(0, -2), out.codes.flatten())

        assert torch.equal(out.codes, codes)
        assert torch.allclose(out.z, quantized, atol=1e-6) and torch.allclose(commitment, loss, atol=1e-6)
        ((quantized * g).sum() + loss).backward()
        ((out.z * g).sum() + commitment).backward()
        assert torch.allclose(one.grad, two.grad, atol=1e-5, rtol=1e-5)
        for name in ("embed", "embed_avg", "cluster_size"):
            assert (getattr(ours, name) - getattr(peer._codebook, name)[0]).abs().max() < 1e-6, name
    assert (ours.embed - start).abs().max() > 0.1  # twenty updates did move it


@pytest.mark.parametrize("levels", [(8, 8, 4, 4), (8, 5, 5, 5), (7, 3)])
def test_fsq_equals_vector_quantize_pytorch(levels):
    peer = need("vector_quantize_pytorch").FSQ(list(levels))
    ours = FSQ(levels)
    z = (2 * torch.randn(2, len(levels), 30, 20)).requires_grad_()
    out = ours(ours.bound(z))
    quantized, codes = peer(z)
    assert torch.equal(out.codes, codes.long()) and torch.allclose(out.z, quantized, atol=1e-7)
    g = torch.randn_like(z)
    assert torch.allclose(*(torch.autograd.grad(q, z, g)[0] for q in (out.z, quantized)), atol=1e-6)
    assert torch.equal(ours.lookup(out.codes), out.z) and torch.equal(ours(out.z).codes, out.codes)


# The codebook.


def test_nearest_code_over_pieces_and_in_pairs_that_are_equal():
    z, embed = torch.randn(9000, 3), torch.randn(1024, 3)  # 9000 x 1024 is more than a piece
    embed[700] = embed[3]
    codes = nearest_code(z, embed)
    distance = torch.cdist(z.double(), embed.double())
    assert ((distance.gather(1, codes[:, None])[:, 0] - distance.amin(1)).abs() < 1e-5).all()
    assert not (codes == 700).any()


def test_codes_that_nobody_uses_come_back_where_the_data_are():
    vq = VectorQuantizer(64, 2, kmeans_init=False, dead_threshold=0.1, decay=0.9)
    vq.embed.copy_(torch.randn(64, 2))
    vq.embed[32:] += 100
    vq.embed_avg.copy_(vq.embed)
    for _ in range(60):
        z = torch.randn(1000, 2)
        vq.update(z, nearest_code(z, vq.embed))
    assert vq.embed.abs().max() < 10
    z = torch.randn(20_000, 2)
    counts = torch.bincount(nearest_code(z, vq.embed), minlength=64)
    assert (counts > 0).all() and perplexity(counts) > 45 and vq.usage == 1


def test_few_vectors_make_few_codes_and_more_steps_more():
    vq = VectorQuantizer(64, 2, dead_threshold=0.1)
    assert torch.equal(vq(torch.ones(1, 2, 3, 3)).z, torch.ones(1, 2, 3, 3))  # not started: the latent passes
    vq.update(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    assert not vq.initialised  # no vectors, no start
    used = []
    for _ in range(6):
        z = torch.randn(20, 2)
        vq.update(z, nearest_code(z, vq.embed))
        assert vq.embed.isfinite().all() and vq.initialised
        used.append(int((vq.cluster_size > 0).sum()))
    assert used[0] <= 20 and used[-1] == 64
    centres, counts = kmeans(torch.zeros(0, 2), 4)
    assert centres.shape == (4, 2) and counts.sum() == 0


def test_a_grid_is_used_evenly_whatever_the_encoder_gives():
    generator = torch.Generator().manual_seed(0)
    mix = 0.1 * torch.randn(4, 4, generator=generator)
    fsq = FSQ((8, 8, 4, 4), decay=0.9)
    for step in range(30):  # an encoder that moves
        noise = torch.randn(2, 4, 40, 40, generator=generator)
        z = torch.einsum("ij,bjhw->bihw", mix + 0.001 * step, noise) + step / 1000
        out = fsq(b := fsq.bound(z))
        fsq.update(b.movedim(1, -1).flatten(0, -2), out.codes.flatten())
    rows = z.movedim(1, -1).flatten(0, -2)
    assert torch.allclose(fsq.covariance, torch.cov(rows.T), atol=0.02) and (fsq.mean - rows.mean(0)).abs().max() < 0.03
    assert fsq.usage > 0.95 and fsq.perplexity > 600
    constant = FSQ((4, 4))
    constant.update(torch.zeros(50, 2), torch.zeros(50, dtype=torch.long))  # a channel without variance
    assert constant.bound(torch.randn(1, 2, 4, 4)).isfinite().all()


def test_a_masked_place_counts_for_nothing():
    books = []
    for junk in (0.0, 50.0):
        vq = VectorQuantizer(16, 2, dead_threshold=0.2)
        for step in range(5):
            z = keyed_normal((2,), "z", step, index=range(200))
            weight = (torch.arange(200) < 120).float()
            z[120:] = junk
            uv = torch.from_numpy(np.random.default_rng(step).random((200, 2)))
            vq.update(z, nearest_code(z, vq.embed), weight, draw=lambda uv=uv: uv)
        books.append(vq.embed)
    assert torch.equal(*books) and books[0].abs().max() < 5


def test_in_bfloat16_only_the_body_is():
    torch.manual_seed(0)
    model = make_autoencoder("tiny", kind="vq", codes=32, kmeans_init=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(torch.randn(1, 1, 32, 32))
    assert out.frame.dtype == out.z.dtype == out.quantized.dtype == torch.float32
    assert torch.equal(out.codes.flatten(), nearest_code(out.z.movedim(1, -1).reshape(-1, 4), model.quantizer.embed))


@pytest.mark.parametrize(
    "kind, words", [("vq", {"codes": 32, "rotation_trick": True}), ("fsq", {"levels": (5, 5, 4, 4)})]
)
def test_a_model_is_its_config_and_its_state(kind, words):
    model = make_autoencoder("tiny", kind=kind, **words)
    config = json.loads(json.dumps(model.config))
    again = AutoencoderVQ(**config)
    again.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(again(x).frame, model(x).frame) and again.config == model.config


def test_what_does_not_fit_is_refused():
    model = make_autoencoder("tiny", kind="vq", codes=8)
    for sentence, work in {
        "is 5; expected": lambda: make_autoencoder("tiny", kind="vq", decay=5),
        "did you mean 'vq'": lambda: make_autoencoder("tiny", kind="vqv"),
        r"levels\[1\] of fsq is 2; expected 3": lambda: FSQ((4, 2)),
        "power of two": lambda: make_autoencoder("tiny", kind="fsq", codes=1000),
        "expected one for each channel": lambda: make_autoencoder("tiny", kind="fsq", levels=(8, 8)),
        r"latent of shape \(1, 3, 4, 4\)": lambda: model.decode(torch.zeros(1, 3, 4, 4)),
        "commitment is -1": lambda: VQObjective(model, recons_loss="mse", commitment=-1),
    }.items():
        with pytest.raises(BadInput, match=sentence):
            work()


# Processes, as in test_training: this file as a script forks the ranks.

FRAMES, BATCH = 14, 4


class Frames:
    """14 frames of 32 x 32 pixels, some pixels masked, in the order of an epoch."""

    def __init__(self, rank=0, world_size=1, batch_size=BATCH):
        self.num_frames, self.batch_size, self.rank, self.world_size = FRAMES, batch_size, rank, world_size
        self.x = keyed_normal((1, 32, 32), "frames", index=range(FRAMES)).cumsum(3) / 3
        self.mask = keyed_normal((1, 32, 32), "mask", index=range(FRAMES)) < 1.5
        self.mask[:, :, :, :8] = False

    def batches(self, epoch, start=0):
        order = np.random.default_rng(epoch).permutation(FRAMES)
        for k in range(start, FRAMES, self.batch_size):
            i = np.array_split(order[k : k + self.batch_size], self.world_size)[self.rank]
            yield {"x": self.x[i], "mask": self.mask[i], "index": torch.from_numpy(i), "cond": {}}


def train(folder, *, kind="vq", resume=False, **options):
    from xrddiff.learn.training.trainer import Trainer

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    torch.manual_seed(0)
    words = {"codes": 32, "dead_threshold": 0.4, "decay": 0.9} if kind == "vq" else {"levels": [4, 4, 4, 4]}
    model = make_autoencoder("tiny", kind=kind, widths=(8, 16), norm_groups=4, **words)
    options = {
        "max_steps": 12,
        "global_batch_size": BATCH,
        "batch_size": BATCH,
        "lr": 1e-4,
        "progress": False,
        **options,
    }
    objective = VQObjective(model, recons_loss="mse")
    trainer = Trainer(
        objective, Frames(rank, world), folder, validation_loader=Frames(rank, world, 5), ema_decay=0.9, **options
    )
    trainer.fit(resume)
    return trainer


def script(folder):
    """One rank against three with pieces of one frame (the last batch of an epoch leaves a rank without), and runs stopped after 5 steps against one that was not."""

    def differ(one, two):
        return float((final(folder / one)[1] - final(folder / two)[1]).abs().max())

    for kind in ("vq", "fsq"):
        on_ranks(1, lambda r, kind=kind: train(folder / kind, kind=kind))
        on_ranks(3, lambda r, kind=kind: train(folder / f"{kind}-3", kind=kind, batch_size=1))
    for name, n in (("one", 1), ("two", 2)):
        on_ranks(n, lambda r, name=name: train(folder / name, max_steps=5))
        on_ranks(1, lambda r, name=name: train(folder / name, resume=True))
    return {name: differ("fsq" if name == "fsq-3" else "vq", name) for name in ("vq-3", "fsq-3", "one", "two")}


@pytest.fixture(scope="module")
def differ(tmp_path_factory):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = warm.run(__file__, tmp_path_factory.mktemp("ranks"), env=env, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_one_rank_and_many_agree(differ):
    # Codebooks that started from k-means and replaced codes on the way.
    assert differ["vq-3"] <= 1e-5 and differ["fsq-3"] <= 1e-5


@pytest.mark.slow
def test_resumed_equals_whole(differ):
    assert differ["one"] == 0 and differ["two"] <= 1e-5


if __name__ == "__main__":
    import torch._dynamo

    import xrddiff.learn.training.trainer  # noqa: F401

    print(json.dumps(script(Path(sys.argv[1]))))
