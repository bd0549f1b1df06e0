"""Diffusion objectives in the trainer: cut and resumed steps, bad frames, precision, and the loss of diffusers in every language it has."""

import warnings

import pytest
import torch
from torch import nn

from xrddiff.core.seeds import keyed_normal, numpy_rng
from xrddiff.learn.diffusion.denoisers import Denoiser, like
from xrddiff.learn.diffusion.objectives import DenoisingObjective, loss_weight, training_pair
from xrddiff.learn.diffusion.schedules import DiscreteUniform, FlowTime, alphas_bar, make_noise, sigmas_of
from xrddiff.learn.telemetry.health import Diverged
from xrddiff.learn.training.checkpoints import latest_checkpoint
from xrddiff.learn.training.posthoc import PowerEMA, reconstruct, save_snapshot
from xrddiff.learn.training.trainer import Trainer

torch.set_num_threads(1)
FRAMES, SHAPE = 24, (2, 8, 8)


class Net(nn.Module):
    """Two convolutions that know the noise level and the class."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        self.level, self.label = nn.Linear(1, 8), nn.Embedding(4, 8)

    def forward(self, x, noise_label, cond=None):
        h = self.level(noise_label[:, None] / 10)
        if cond and "crystals" in cond:
            h = h + self.label(cond["crystals"] + 1)
        return self.out(torch.tanh(self.into(x) + h[:, :, None, None]))


class Loader:
    """Frames that are functions of their index, with a class, and with a mask or (as latents) none."""

    num_frames, batch_size = FRAMES, 8

    def __init__(self, masked=True, bad=()):
        self.x = keyed_normal(SHAPE, "frames", index=range(FRAMES))
        self.x[list(bad)] = float("nan")
        self.mask = keyed_normal((1, 8, 8), "mask", index=range(FRAMES)) > -1 if masked else None

    def batches(self, epoch, start=0):
        order = numpy_rng(0, "order", epoch).permutation(FRAMES)
        for k in range(start, FRAMES, self.batch_size):
            i = torch.from_numpy(order[k : k + self.batch_size])
            mask = None if self.mask is None else self.mask[i]
            yield {"x": self.x[i], "mask": mask, "index": i, "cond": {"crystals": i % 3}}


def train(folder, *, resume=False, masked=True, bad=(), **options):
    objective = DenoisingObjective(Denoiser(Net(), "edm", sigma_data=1.0), condition_dropout=0.3)
    options = {"num_epochs": 3, "batch_size": 8, "lr": 1e-3, "ema_decay": 0.9, "progress": False, **options}
    trainer = Trainer(objective, Loader(masked, bad), folder, validation_loader=Loader(masked), **options)
    trainer.fit(resume)
    return trainer


def same(a, b, **tolerance):
    torch.testing.assert_close(list(a.objective.model.parameters()), list(b.objective.model.parameters()), **tolerance)


@pytest.mark.parametrize("masked", [True, False])
def test_how_a_step_is_cut_does_not_matter(tmp_path, masked):
    whole = train(tmp_path / "whole", masked=masked)
    pieces = train(tmp_path / "pieces", masked=masked, batch_size=3, global_batch_size=8)
    same(whole, pieces, rtol=0, atol=1e-5)
    assert whole.tables.history.rows[-1]["loss"] == pytest.approx(pieces.tables.history.rows[-1]["loss"], rel=1e-5)


def test_stopped_and_resumed_with_tracks_is_the_same(tmp_path):
    options = {"ema_tracks": (0.05, 0.1), "ema_snapshots": 3}
    whole = train(tmp_path / "whole", **options)
    train(tmp_path / "part", max_steps=4, **options, lr_schedule="constant")
    resumed = train(tmp_path / "part", resume=True, **options)
    same(whole, resumed, rtol=0, atol=0)
    for a, b in zip(whole.averages.tracks, resumed.averages.tracks, strict=True):
        assert a.updates == b.updates == 9
        torch.testing.assert_close(a.averages, b.averages, rtol=0, atol=0)
    model = Net()
    model.load_state_dict(reconstruct(tmp_path / "part", 0.1))
    torch.testing.assert_close(
        model.into.weight, whole.averages.tracks[1].averages["into.weight"], rtol=2e-3, atol=1e-4
    )
    with pytest.raises(ValueError, match=r"keeps the averages \['power-0.05', 'power-0.1'\], but ema_tracks sets \[\]"):
        train(tmp_path / "part", resume=True)


def test_a_frame_that_is_not_a_number_stops_the_run_and_is_named(tmp_path):
    """The frame is met in the first epoch; the checkpoint before it is kept."""
    order = numpy_rng(0, "order", 0).permutation(FRAMES)
    bad = int(order[-1])
    with pytest.raises(
        Diverged, match=f"at step 3 .epoch 1.: 'loss' is NaN and 'error' is NaN for frame {bad} .*step-00000002"
    ):
        train(tmp_path, masked=False, bad=[bad], checkpoint_every=1)
    assert latest_checkpoint(tmp_path / "checkpoints").name == "step-00000002"


def test_bf16_and_compile_give_nearly_the_same_loss():
    net, batch = Net(), next(Loader().batches(0))
    objective = DenoisingObjective(Denoiser(net, "edm", sigma_data=1.0))
    loss = objective(batch, 3)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(batch, 3)["loss"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss, rtol=0.05, atol=0)
    compiled = DenoisingObjective(Denoiser(torch.compile(net, backend="aot_eager"), "edm", sigma_data=1.0))
    torch.testing.assert_close(compiled(batch, 3)["loss"], loss)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", ["eps", "v", "x0"])
def test_input_and_target_are_those_of_diffusers_elementwise(name, schedule):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import DDPMScheduler

    scheduler, t = DDPMScheduler(beta_schedule=schedule), torch.tensor([0, 1, 10, 500, 990, 998])
    x0, eps = torch.randn(2, 6, 1, 8, 8, dtype=torch.float64)
    denoiser, abar = Denoiser(None, name, schedule=schedule), alphas_bar(schedule)
    scaled, target = training_pair(denoiser, x0, eps, sigmas_of(abar)[t])
    for table, limit in ((scheduler.alphas_cumprod, 2e-5), (abar, 1e-12)):  # their float32 table; their formula on ours
        scheduler.alphas_cumprod = table
        theirs = {"eps": eps, "x0": x0, "v": scheduler.get_velocity(x0, eps, t)}[name]
        assert (scaled - scheduler.add_noise(x0, eps, t)).abs().max() < limit
        assert (target - theirs).abs().max() < limit


def test_every_timestep_has_its_own_label():
    for schedule in ("linear", "squaredcos_cap_v2", "cosine"):
        for T in (1000, 600, 2):
            label = Denoiser(None, "eps", schedule=schedule, timesteps=T).noise_label(
                sigmas_of(alphas_bar(schedule, T))
            )
            assert torch.equal(label.float(), torch.arange(float(T)))


def test_draws_stay_finite_in_the_tails():
    z = torch.tensor([-9.0, -6.0, 6.0, 9.0])
    for noise in (make_noise(), DiscreteUniform(alphas_bar("cosine")), FlowTime(), FlowTime(3.0, 0.0, 1.0)):
        sigma = noise.sigma(z)
        assert sigma.isfinite().all() and (sigma > 0).all() and (sigma.diff() >= 0).all()
        for name in ("edm", "eps", "v", "flow"):
            scaled, target = training_pair(Denoiser(None, name), torch.ones(4, 1), torch.ones(4, 1), sigma)
            assert scaled.isfinite().all() and target.isfinite().all()
            assert loss_weight(Denoiser(None, name), sigma, "min_snr").isfinite().all()


def test_near_zero_noise_the_denoiser_keeps_float64():
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    denoise = Denoiser(lambda x, label, cond=None: 0 * x, "edm")
    assert torch.equal(denoise(x, 1e-9), x * (0.25 / (0.25 + 1e-18)))


def test_masked_places_follow_training_in_a_sampler():
    """In training a masked pixel is 0 + σε. Euler steps on the answer 0 keep it exactly that, all the way down."""
    mask = torch.rand(1, 1, 8, 8) > 0.5
    denoise, eps = Denoiser(lambda x, label, cond=None: x + 1), torch.randn(1, 1, 8, 8, dtype=torch.float64)
    x, sigmas = 10 * eps, [10.0, 3.0, 0.5, 0.0]
    for a, b in zip(sigmas, sigmas[1:], strict=False):
        x = x + (b - a) * (x - denoise(x, a, {"mask": mask})) / a
        torch.testing.assert_close(x[~mask], b * eps[~mask])


def test_a_broken_snapshot_is_left_out(tmp_path):
    net = Net()
    track = PowerEMA(net, 0.1)
    for step in (1, 2, 3):
        track.update()
        save_snapshot(tmp_path / "averages", step, [track])
    (tmp_path / "averages" / "step-00000001" / "power-0.1.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="step-00000001 is broken: .* it is skipped"):
        torch.testing.assert_close(reconstruct(tmp_path, 0.1)["out.bias"], net.out.bias.detach(), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="cannot be reconstructed from the 2 snapshots"), pytest.warns(UserWarning):
        reconstruct(tmp_path, 0.02)


def test_like_puts_axes_at_the_end():
    assert like(torch.ones(2, 3).double(), torch.ones(2, 3, 4, 5)).shape == (2, 3, 1, 1)
    assert like(torch.ones(()).double(), torch.ones(2, 3)).dtype == torch.float32


def test_frames_may_lie_on_another_device_than_the_draws():
    """Draws and scalings are made on the CPU; nothing of them meets the frames before it has come to their device (here "meta", which computes nothing)."""
    batch = {k: v.to("meta") if k in ("x", "mask") else v for k, v in next(Loader().batches(0)).items()}
    batch["cond"] = {k: v.to("meta") for k, v in batch["cond"].items()}
    objective = DenoisingObjective(Denoiser(Net().to("meta"), "eps"), "discrete", weighting="min_snr")
    assert {v.device.type for v in objective(batch, 1).values()} == {"meta"}
    denoised = objective.denoiser(batch["x"], torch.ones(8), {"mask": batch["mask"], **batch["cond"]})
    assert denoised.device.type == "meta" and denoised.shape == batch["x"].shape
