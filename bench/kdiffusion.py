"""Record what k-diffusion's samplers make of a denoiser in closed form, for the tests to compare with.

    python -m venv PEERS && PEERS/bin/pip install -r bench/requirements.txt k-diffusion && PEERS/bin/python bench/kdiffusion.py [--out tests/kdiffusion.npz]

Only `k_diffusion.sampling` is loaded. The package itself imports image libraries that a CPU environment may lack, and that no sampler used here needs: the package's own start-up is passed over, and what is missing
is replaced by an empty stand-in. State and levels are float64. The noise that the stochastic samplers draw is recorded with the result.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import torch

MEANS = [[-1.0, 0.0], [1.0, 0.5], [0.5, -1.0]]
SCALES, WEIGHTS = [0.1, 0.3, 0.2], [0.25, 0.5, 0.25]
CHURN = {"s_churn": 5.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}


def load_sampling() -> ModuleType:
    """k_diffusion.sampling without k_diffusion/__init__.py."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        sys.exit("k-diffusion is not installed; expected `pip install k-diffusion` in this environment")
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["k_diffusion"] = package
    while True:
        try:
            return importlib.import_module("k_diffusion.sampling")
        except (ImportError, OSError, RuntimeError) as error:
            missing = getattr(error, "name", None) or "torchvision"
            if missing in sys.modules and isinstance(sys.modules[missing], MagicMock):
                raise
            for name in [n for n in sys.modules if n.startswith("k_diffusion.")]:
                del sys.modules[name]
            sys.modules[missing] = MagicMock(__path__=[], __spec__=None)


def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[x₀ | x] under the mixture of three Gaussians above, written out here so that the record stands alone."""
    means = torch.tensor(MEANS, dtype=x.dtype)
    v = torch.tensor(SCALES, dtype=x.dtype) ** 2 + sigma[:, None] ** 2
    square = (x[:, None] - means).square().sum(-1)
    posterior = (torch.tensor(WEIGHTS, dtype=x.dtype).log() - square / (2 * v) - v.log()).softmax(1)
    s2 = torch.tensor(SCALES, dtype=x.dtype) ** 2
    guess = (s2[:, None] * x[:, None] + (sigma**2)[:, None, None] * means) / v[..., None]
    return (posterior[..., None] * guess).sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "kdiffusion.npz")
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    sampling = load_sampling()

    n = args.steps
    sigmas = sampling.get_sigmas_karras(n, 0.002, 80.0, 7.0).double()
    generator = torch.Generator().manual_seed(0)
    x = 80 * torch.randn(16, 2, dtype=torch.float64, generator=generator)
    noise = torch.randn(n, *x.shape, dtype=torch.float64, generator=generator)
    runs = {
        "euler": (sampling.sample_euler, {}),
        "heun": (sampling.sample_heun, {}),
        "heun_churn": (sampling.sample_heun, CHURN),
        "ancestral": (sampling.sample_euler_ancestral, {}),
        "dpmpp_2m": (sampling.sample_dpmpp_2m, {}),
        "dpmpp_3m": (sampling.sample_dpmpp_3m_sde, {"eta": 0.0, "noise_sampler": lambda a, b: torch.zeros_like(x)}),
    }
    arrays = {"sigmas": sigmas.numpy(), "x": x.numpy(), "noise": noise.numpy()}
    for name, (sampler, words) in runs.items():
        draws = iter(noise)
        sampling.torch.randn_like = lambda _, draws=draws: next(draws)
        arrays[name] = sampler(denoise, x, sigmas, disable=True, **words).numpy()
    np.savez_compressed(args.out, **arrays)
    print(
        f"k-diffusion {version('k-diffusion')}, {n} steps, {len(x)} samples -> {args.out} ({args.out.stat().st_size} bytes)"
    )


if __name__ == "__main__":
    main()
