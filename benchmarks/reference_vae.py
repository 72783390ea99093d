"""``recipes/digits_conv_vae.yaml`` beside a VAE of the same size in 40 lines of torch; its samples judged.

Run with ``python -m benchmarks.reference_vae``; takes about 10 minutes of one core. For seeds 0 to 2 both
train on the same split for the same epochs. The reference is Adam in batches of 64, at each of `RATES`, and
the better of them on the test split counts, which favours it. Reported are the ELBO and the
importance-weighted bound (Burda et al. 2016) of the test split with 64 draws. Then the CNN of
``recipes/digits.yaml`` names 1,000 images that our model makes of noise.

Shapes: B batch, K draws, Z latent variables.
"""

from __future__ import annotations

import logging
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.harness import ROOT, conclude
from fmdist import stages, storage
from fmdist.contracts import Draw
from fmdist.data.splits import Samples
from fmdist.stages.modules import open_task
from fmdist.tasks.decoding.noise import normal
from fmdist.tasks.frechet import Judge

RECIPE = ROOT / "recipes" / "digits_conv_vae.yaml"
SEEDS = range(3)
SAMPLES = 1000
RATES = (1e-3, 4e-3)
"""Learning rates of the reference, constant."""


def reference(train: Tensor, test: Tensor, epochs: int, lr: float, seed: int) -> dict[str, float]:
    """Train on images (N, 1, 8, 8) in [0, 1]; return ELBO and bound of ``test`` in nats per image."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(
        nn.Conv2d(1, 32, 4, 2, 1), nn.GELU(), nn.Conv2d(32, 64, 4, 2, 1), nn.GELU(),
        nn.Flatten(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 16),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(8, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Unflatten(1, (64, 2, 2)),
        nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.GELU(), nn.ConvTranspose2d(32, 1, 4, 2, 1),
    )  # fmt: skip
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr)

    def terms(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = encoder(x).chunk(2, dim=1)
        noise = torch.randn_like(mean)
        z = mean + (log_variance / 2).exp() * noise
        losses = functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="none")
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1)
        ratio = 0.5 * (noise**2 + log_variance - z**2).sum(dim=1)
        return -losses.sum(dim=(1, 2, 3)), kl, ratio

    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(train)), 64):
            reconstruction, kl, _ = terms(train[rows])
            optimizer.zero_grad()
            torch.autograd.backward((kl - reconstruction).mean())
            optimizer.step()
    with torch.no_grad():
        draws = [terms(test) for _ in range(64)]
    elbo = torch.stack([reconstruction - kl for reconstruction, kl, _ in draws]).mean()
    weights_KB = torch.stack([reconstruction + ratio for reconstruction, _, ratio in draws])
    return {"elbo": float(elbo), "iw_bound": float((weights_KB.logsumexp(dim=0) - math.log(64)).mean())}


def images(split: Samples) -> Tensor:
    """Return all images of a split."""
    batch: Tensor = split.__getitems__(Draw(0, np.arange(len(split))))["image"]
    return batch


def judged(run: Path, judge: Path) -> dict[str, Any]:
    """Return how the classifier of a run names `SAMPLES` images that the VAE of another makes of noise."""
    task, builder = open_task(run), open_task(judge)
    signature = storage.read_json(judge / "signature.json")["preprocessing"]
    classifier = Judge(builder.served(builder.roles()), signature["mean"], signature["std"])
    latent = task.inputs[1].shape[0] or 0
    noise = torch.from_numpy(normal(1, 0, np.arange(SAMPLES), (latent,)))
    with torch.no_grad():
        served = task.served(task.roles())
        logits = served(torch.zeros(SAMPLES, 1, 8, 8), noise, torch.zeros(SAMPLES, 1))[:, :64]
    probabilities = classifier(logits.sigmoid().reshape(-1, 1, 8, 8))[1].softmax(dim=1)
    named = probabilities.argmax(dim=1).bincount(minlength=10)
    return {"confidence": float(probabilities.amax(dim=1).mean()), "named": named.tolist()}


def main() -> int:
    """Measure, write results/reference_vae.json, return 1 if a bar is missed."""
    logging.basicConfig(level=logging.WARNING)
    recipe = stages.load_recipe(RECIPE)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        judge = Path(name) / "judge"
        stages.train(ROOT / "recipes" / "digits.yaml", output=judge)
        for seed in SEEDS:
            ours = stages.train(RECIPE, output=Path(name) / str(seed), overrides=[f"seed={seed}"])
            data = recipe.data.build(seed)
            split = images(data.train), images(data.test)
            tried = [reference(*split, recipe.train.epochs, rate, seed) for rate in RATES]
            theirs = {key: max(figures[key] for figures in tried) for key in ("elbo", "iw_bound")}
            figures = {key: ours.metrics[key] for key in theirs}
            rows.append({"seed": seed, "ours": figures, "reference": theirs, **judged(ours.folder, judge)})
            sys.stdout.write(f"{rows[-1]}\n")
            sys.stdout.flush()
    means = {
        side: {key: statistics.fmean(row[side][key] for row in rows) for key in ("elbo", "iw_bound")}
        for side in ("ours", "reference")
    }
    bars = {
        "ELBO not below the reference's": means["ours"]["elbo"] >= means["reference"]["elbo"],
        "bound not below the reference's": means["ours"]["iw_bound"] >= means["reference"]["iw_bound"],
        "confidence at least 0.80": min(row["confidence"] for row in rows) >= 0.80,
        "all ten digits among the samples": all(min(row["named"]) > 0 for row in rows),
    }
    return conclude("reference_vae", bars, {"means": means, "runs": rows})


if __name__ == "__main__":
    sys.exit(main())
