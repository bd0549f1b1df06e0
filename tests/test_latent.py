"""Latent statistics, the space and the loader: real ranks, the trainer in the latent, quantised autoencoders, and what is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import warm

from xrddiff.core.errors import BadInput, XrddiffError
from xrddiff.learn.models.autoencoder import make_autoencoder
from xrddiff.learn.models.latent_space import (
    LatentSpace,
    LatentStatistics,
    LatentSums,
    final_latent_stats,
    measure_latents,
    pairwise_mse,
)
from xrddiff.learn.recipes.latents import LatentLoader, measure_checkpoint, open_latent_space, weights_sha256

FRAMES, BATCH = 22, 5


def make_loader(rank=0, world_size=1, batch_size=BATCH, bad=None, size=22, **words):
    """Counts of 22 × 22 with a dead corner, padded to 32 × 32 (downsampling 8, then 2 of the network); frame `bad` holds a NaN that the loader refuses."""
    from xrddiff.data.frames.frames import make_frames
    from xrddiff.data.transforms.pipelines import make_transform
    from xrddiff.learn.loading.loader import FrameLoader

    rng = np.random.default_rng(1)
    counts = rng.poisson(4.0, (FRAMES + 3, size, size)).astype(np.float32)
    counts[np.arange(FRAMES + 3), rng.integers(0, size, FRAMES + 3), rng.integers(0, 15, FRAMES + 3)] = 300
    mask = np.ones((size, size), bool)
    mask[:6, 16:] = False
    transform = make_transform("asinh").fit(make_frames(counts, mask=mask, wavelength=1.3), np.arange(FRAMES))
    if bad is not None:
        counts[bad, 12, 3] = np.nan
    crystals = {"crystals": rng.integers(0, 3, FRAMES + 3)}
    frames = make_frames(counts, mask=mask, wavelength=1.3, variables=crystals)
    words = {"multiple": 16, "prefetch": 0, **words}
    index = np.arange(1, FRAMES + 1)
    return FrameLoader(frames, transform, index, batch_size=batch_size, rank=rank, world_size=world_size, **words)


def make_model(kind="kl", **words):
    torch.manual_seed(3)
    words = {"latent_channels": 3, "downsampling": 8, **words}
    return make_autoencoder("tiny", kind=kind, **words).eval()


def save(folder, model, step=10, **groups):
    from xrddiff.learn.training.checkpoints import save_checkpoint

    return save_checkpoint(folder, step, {"model": model.state_dict(), **groups}, {"step": step, "model": model.config})


@pytest.fixture(scope="module")
def space():
    model = make_model()
    return LatentSpace(model, measure_latents(model.encode, make_loader(), sha256="ab"))


def close(a: LatentStatistics, b: LatentStatistics) -> float:
    """The largest relative difference of two statistics."""
    pairs = [(np.array(getattr(a, k)), np.array(getattr(b, k))) for k in ("mean", "std", "noise", "low", "high")]
    assert a.frames == b.frames and a.shape == b.shape
    return max(float((np.abs(x - y) / np.abs(np.array(a.std))).max()) for x, y in pairs)


# Sums.


def test_sums_are_those_of_numpy_far_from_zero():
    rng = np.random.default_rng(0)
    mu = 1e6 + 1e-2 * rng.standard_normal((40, 3, 4, 5))
    sigma = 1e-3 * rng.random(mu.shape)
    sums = LatentSums()
    for part in np.array_split(np.arange(40), 7):
        sums.add(torch.from_numpy(mu[part]), torch.from_numpy(sigma[part]))
    s = LatentStatistics.from_sums(sums, (3, 4, 5))
    wanted = np.sqrt(mu.var((0, 2, 3)) + (sigma**2).mean((0, 2, 3)))
    assert np.allclose(s.std, wanted, rtol=1e-7)  # Σμ² − nm² would have lost all digits
    assert np.allclose(s.mean, mu.mean((0, 2, 3)), rtol=1e-15) and s.frames == 40
    assert np.array_equal(s.low, (mu - 3 * sigma).min((0, 2, 3)))


def test_empty_sums_merge():
    part = LatentSums().add(torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2))
    assert LatentSums().merge(part) == part.merge(LatentSums())


def test_batch_sizes_agree():
    model = make_model()
    one = measure_latents(model.encode, make_loader(batch_size=1))
    for batch_size in (3, 7, FRAMES):
        assert close(measure_latents(model.encode, make_loader(batch_size=batch_size)), one) < 1e-12


def test_scale_factor_is_one_over_the_standard_deviation_of_everything(space):
    batch = make_loader().batch(range(1, FRAMES + 1))
    code = space.autoencoder.encode(batch["x"], batch["mask"])
    total = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=torch.zeros(code.mean.numel(), dtype=torch.float64)),
        torch.distributions.Normal(code.mean.flatten().double(), (0.5 * code.logvar).exp().flatten().double()),
    )
    assert space.statistics.scale_factor == pytest.approx(float(total.variance) ** -0.5, rel=1e-6)


def test_a_channel_that_never_varies_keeps_its_scale():
    s = LatentStatistics.from_sums(LatentSums().add(torch.full((2, 1, 3, 3), 5.0), torch.zeros(2, 1, 3, 3)), (1, 3, 3))
    assert s.mean == (5.0,) and s.std == (1.0,)


# Ranks, as real processes.


class Placed:
    """What `Ranks` reads of an accelerator."""

    def __init__(self, rank, ranks):
        self.process_index, self.num_processes = rank, ranks


def script_ranks(folder):
    """Statistics of 1 and 3 ranks (an uneven last batch: one share is empty); a bad frame is known to all."""
    import torch.distributed as dist
    from test_training import on_ranks

    from xrddiff.core.ranks.agreement import Ranks

    def work(rank, n, bad, name):
        if n > 1:
            dist.init_process_group("gloo", rank=rank, world_size=n)
        ranks = Ranks(Placed(rank, n))
        try:
            s = measure_checkpoint(folder / name, make_loader(rank, n, 7, bad), ranks=ranks if n > 1 else None)
            out = s.state()
        except XrddiffError as e:
            out = str(e)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(out))

    model = make_model()
    for n in (1, 3):
        save(folder / f"all-{n}" / "checkpoints", model)
        on_ranks(n, lambda r, n=n: work(r, n, None, f"all-{n}"))
    save(folder / "bad" / "checkpoints", model)
    on_ranks(3, lambda r: work(r, 3, 9, "bad"))
    return {p.stem: json.loads(p.read_text()) for p in folder.glob("*.json")}


def test_ranks_agree_and_a_bad_frame_stops_all(tmp_path):
    done = warm.run(__file__, "ranks", tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    alone = LatentStatistics.from_state(found["all-1-0"])
    for name in ("all-3-0", "all-3-1", "all-3-2"):
        assert found[name] == found[name[:-1] + "0"]  # every rank has the same bits
        assert close(LatentStatistics.from_state(found[name]), alone) < 1e-12
    kept = open_latent_space(tmp_path / "all-3").statistics
    assert kept == LatentStatistics.from_state(found["all-3-0"])
    assert len({found[f"bad-{r}"] for r in range(3)}) == 1 and "frame 9" in found["bad-0"]
    with pytest.raises(BadInput, match="no latent statistics"):
        open_latent_space(tmp_path / "bad")


# The space.


@pytest.mark.parametrize("kind", ["kl", "vq", "fsq"])
def test_latents_are_normalised_and_come_back(kind):
    model = make_model(kind, **({} if kind == "kl" else {"latent_channels": 4}))
    loader = make_loader()
    space = LatentSpace(model, measure_latents(model.encode, loader))
    assert space.draws == (kind == "kl")
    batch = loader.batch(loader.index)
    z = space.encode(batch["x"], batch["mask"])
    noise = np.array(space.statistics.noise) / np.array(space.statistics.std)
    assert z.mean((0, 2, 3)).abs().max() < 1e-4
    assert np.allclose(z.double().var((0, 2, 3), correction=0) + noise**2, 1, atol=1e-4)
    back = space.decode(z.double())
    assert back.dtype == torch.float32 and back.shape == batch["x"].shape
    if kind == "kl":
        assert torch.allclose(back, model(batch["x"], batch["mask"]).frame, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert space.decode(z[:2]).dtype == torch.float32


def test_space_stays_frozen(space):
    holder = torch.nn.ModuleList([space])
    holder.train()
    assert not any(m.training for m in space.modules()) and not any(p.requires_grad for p in space.parameters())
    z = torch.zeros(1, *space.shape(32, 32), requires_grad=True)
    space.decode(z).sum().backward()  # guidance in the space of pixels needs this
    assert z.grad.abs().max() > 0
    low, high = space.range()
    assert (low < 0).all() and (high > 0).all()


# Checkpoints.


def test_averaged_and_trained_weights_have_statistics_of_their_own(tmp_path):
    model = make_model()
    average = {k: v * 1.01 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    path = save(tmp_path, model, ema=average)
    s = measure_checkpoint(path, make_loader())
    assert open_latent_space(path, expected=s.sha256, channels=3).statistics == s
    with pytest.raises(BadInput, match="trained weights"):
        open_latent_space(path, ema=False)
    t = measure_checkpoint(path, make_loader(), ema=False)
    assert t.sha256 != s.sha256 and open_latent_space(path, ema=False).statistics == t
    with pytest.raises(BadInput, match="measure them again"):
        open_latent_space(path)


def test_trained_further_means_measured_again(tmp_path):
    model = make_model()
    old = save(tmp_path / "checkpoints", model, 10)
    s = measure_checkpoint(tmp_path, make_loader())
    with torch.no_grad():
        model.quant_conv.bias += 1
    save(tmp_path / "checkpoints", model, 20)
    with pytest.raises(BadInput, match="no latent statistics"):
        open_latent_space(tmp_path)
    assert open_latent_space(old).statistics == s
    measure_checkpoint(tmp_path, make_loader())
    with pytest.raises(BadInput, match="autoencoder it was trained with"):
        open_latent_space(tmp_path, expected=s.sha256)


def test_quantised_autoencoder_opens(tmp_path):
    from xrddiff.learn.training.checkpoints import load_checkpoint

    model = make_model("vq", latent_channels=4, codes=32)
    path = save(tmp_path, model)
    s = measure_checkpoint(path, make_loader())
    space = open_latent_space(path)
    assert type(space.autoencoder) is type(model) and s.sha256 == weights_sha256(load_checkpoint(path))
    batch = make_loader().batch([1, 2])
    assert torch.equal(space.encode(batch["x"], batch["mask"]), LatentSpace(model, s).encode(batch["x"], batch["mask"]))


def test_garbled_statistics_are_refused(space):
    state = space.statistics.state()
    for broken in (
        {},
        state | {"std": [1.0]},
        state | {"std": [1.0, 0.0, 1.0]},
        state | {"mean": None},
        {**state, "shape": []},
    ):
        with pytest.raises(BadInput, match="latent statistics"):
            LatentStatistics.from_state(broken)
    with pytest.raises(BadInput, match="3 channels"):
        LatentSpace(make_model(latent_channels=2), space.statistics)


# The loader.


class Counted:
    """A function that counts its calls."""

    def __init__(self, f):
        self.f, self.calls = f, 0

    def __call__(self, *args):
        self.calls += 1
        return self.f(*args)


@pytest.mark.parametrize("kept", [FRAMES, 9, 0])
def test_frames_are_encoded_once(space, kept, monkeypatch):
    frames = make_loader()
    reads, encodes = Counted(frames.batch), Counted(space.autoencoder.encode)
    monkeypatch.setattr(frames, "batch", reads)
    monkeypatch.setattr(space.autoencoder, "encode", encodes)
    row = 2 * 4 * 3 * 16 + 4 + 8  # μ and σ (3 × 4 × 4), wavelength, crystals
    loader = LatentLoader(frames, space, max_bytes=kept * row, cache=kept > 0)
    once = [b for e in range(3) for b in loader.batches(e)]
    assert encodes.calls == FRAMES + 2 * (FRAMES - kept)
    if kept == FRAMES:
        assert reads.calls == len(loader) == 5
    for batch, again in zip(
        once, (b for e in range(3) for b in LatentLoader(make_loader(), space).batches(e)), strict=True
    ):
        assert torch.equal(batch["x"], again["x"]) and torch.equal(batch["cond"]["crystals"], again["cond"]["crystals"])


@pytest.mark.parametrize("world_size", [2, 3])
def test_shares_are_those_of_the_frames(space, world_size):
    whole = LatentLoader(make_loader(), space)
    loaders = [LatentLoader(make_loader(r, world_size), space) for r in range(world_size)]
    for epoch, start in ((0, 0), (1, 10)):
        parts = zip(*(x.batches(epoch, start) for x in loaders), strict=True)
        for batch, shares in zip(whole.batches(epoch, start), parts, strict=True):
            for name in ("x", "mask", "index"):
                assert torch.equal(torch.cat([s[name] for s in shares]), batch[name])
            assert torch.equal(torch.cat([s["cond"]["crystals"] for s in shares]), batch["cond"]["crystals"])
    last = [list(x.batches(0))[-1]["x"].shape for x in loaders]  # 22 = 4·5 + 2
    assert [s[0] for s in last] == ([1, 1] if world_size == 2 else [1, 1, 0])


def test_sides_that_do_not_divide_are_refused(space):
    with pytest.raises(BadInput, match="multiples of its downsampling"):
        LatentLoader(make_loader(multiple=1, size=26), space)


def train(folder, space, max_steps, resume=False, validation=True):
    """A small denoiser in the latent; its trainer after `max_steps`."""
    from xrddiff.learn.diffusion.denoisers import Denoiser
    from xrddiff.learn.diffusion.objectives import DenoisingObjective
    from xrddiff.learn.models.unet import UNet
    from xrddiff.learn.training.trainer import Trainer

    torch.manual_seed(0)
    net = UNet(3, 3, widths=(8, 8), layers_per_block=1, norm_groups=4, mid_attention=False, conditions={"crystals": 3})
    trainer = Trainer(
        DenoisingObjective(Denoiser(net, sigma_data=1.0)),
        LatentLoader(make_loader(), space),
        folder,
        validation_loader=LatentLoader(make_loader(shuffle=False), space) if validation else None,
        max_steps=max_steps,
        ema_decay=None,
        lr=1e-3,
        checkpoint_every=1,
        progress=False,
        checkpoint_state={"model": net.config, "latent": space.statistics.state()},
    )
    return trainer, trainer.fit(resume)


def test_trainer_resumes_in_the_latent_to_the_bit(tmp_path, space):
    straight, result = train(tmp_path / "straight", space, 8)
    assert result.state == "finished" and np.isfinite([r["loss"] for r in straight.tables.history.rows]).all()
    train(
        tmp_path / "parts", space, 3, validation=False
    )  # ends within an epoch; codes are not kept from one part to the next
    parts, _ = train(tmp_path / "parts", space, 8, resume=True)
    for a, b in zip(straight.parameters, parts.parameters, strict=True):
        assert torch.equal(a, b)


def test_latents_have_sigma_data_one(space):
    from xrddiff.learn.diffusion.denoisers import measure_sigma_data

    assert measure_sigma_data(LatentLoader(make_loader(), space).batches(0)) == pytest.approx(1, abs=0.02)


# After sampling.


def test_final_latent_stats(space):
    loader = LatentLoader(make_loader(), space)
    z = torch.cat([loader.batch(loader.index, e)["x"] for e in range(4)])
    row = final_latent_stats(z, space.statistics)
    raw = (z * space.std + space.mean).double().numpy()
    assert row["std"] == pytest.approx(raw.std(), rel=1e-6) and row["mean"] == pytest.approx(raw.mean(), abs=1e-6)
    for name, tolerance in (("mean", 0.02), ("std", 0.02)):
        assert row[name] == pytest.approx(row[f"target_{name}"], abs=tolerance * row["target_std"])
    assert row["target_std"] == pytest.approx(1 / space.statistics.scale_factor)
    assert np.allclose(row["channel_std"], 1, atol=0.05) and row["not_finite"] == 0
    z[0, 0, 0, 0] = float("nan")
    json.dumps(with_nan := final_latent_stats(z, space.statistics), allow_nan=False)
    assert with_nan["not_finite"] == 1 and with_nan["std"] == pytest.approx(row["std"], rel=1e-2)
    with pytest.raises(BadInput, match="finite"):
        final_latent_stats(torch.full_like(z, float("inf")), space.statistics)
    with pytest.raises(BadInput, match="expected"):
        final_latent_stats(z[:, :2], space.statistics)


def test_pairwise_mse_far_from_zero():
    z = 1e4 + torch.randn(9, 3, 4, 4)
    d = torch.stack([(z[i].double() - z[j].double()).square().mean() for i in range(9) for j in range(i)])
    got = pairwise_mse(z)
    wanted = dict(mean=d.mean(), std=d.std(correction=0), min=d.min(), max=d.max())
    for name, value in wanted.items():
        assert got[f"pairwise_mse_{name}"] == pytest.approx(float(value), rel=1e-9)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(globals()[f"script_{sys.argv[1]}"](Path(sys.argv[2]))))
