"""Reconstructions, and the bounds on the likelihood of variational autoencoders.

``{"rule": "reconstruct", "inputs": [name], "shape": [...]}``: the model maps an input to its reconstruction;
rows are (N, 2 + D): mean squared error, mean absolute error, the reconstruction.

``{"rule": "elbo", "inputs": [name], "shape": [...], "latent": Z, "samples": K, "seed": 0, "likelihood":
"bernoulli"}`` or ``"gaussian"`` with ``"deviation"``: the model maps an input, ``noise`` (N, Z) and
``posterior`` (N, 1) to (N, D + 2 Z): logits or means of p(x|z), and the mean and log variance of q(z|x). z is
drawn from q where ``posterior`` is 1, and is the noise itself, that is from the prior, where it is 0. Rows
are (N, 3 + 2 D): reconstruction (nats), KL divergence (nats), importance-weighted bound (nats), the
reconstruction at q's mean, and an input drawn from the model; these two in the input's units.

Shapes: N samples, D values of an input, Z latent variables, K draws per sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmdist.tasks.decoding.direct import sigmoid
from fmdist.tasks.decoding.noise import normal
from fmdist.tasks.decoding.run import Arrays, Run, take

OPTIONS: tuple[str, ...] = ()
"""What `answer` can be told."""

Rule = Mapping[str, Any]
Floats = NDArray[np.floating[Any]]

_DRAWS, _PRIOR, _CALIBRATION = range(3)
"""Streams of noise."""


def feed(rule: Rule, batch: Arrays) -> dict[str, NDArray[Any]]:
    """Return the inputs of one call; every second sample's code is drawn from the prior, if there is one."""
    inputs = take(batch, rule["inputs"])
    if rule["rule"] == "reconstruct":
        return inputs
    index = np.asarray(batch["index"])
    noise = normal(rule["seed"], _CALIBRATION, index, (rule["latent"],))
    posterior = (index % 2 == 0).astype(np.float32)[:, None]
    return {**inputs, "noise": noise, "posterior": posterior}


def rows(rule: Rule, run: Run, batch: Arrays) -> NDArray[np.float32]:
    """Return what the module's docstring says; an ``elbo`` runs the model K + 2 times."""
    inputs = take(batch, rule["inputs"])
    values_ND = next(iter(inputs.values())).reshape(len(batch["index"]), -1)
    if rule["rule"] == "reconstruct":
        return error_rows(values_ND, run(inputs).reshape(values_ND.shape))
    return _elbo_rows(rule, run, inputs, values_ND, np.asarray(batch["index"]))


def answer(rule: Rule, run: Run, batch: Arrays, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return `decode` of the rows."""
    return decode(rule, rows(rule, run, batch))


def decode(rule: Rule, rows: Floats) -> list[dict[str, Any]]:
    """Return the error or the bounds, and the reconstruction in the model's units, for each row.

    >>> decode({"rule": "reconstruct", "shape": [1]}, np.array([[0.25, 0.5, 2.0]]))
    [{'mse': 0.25, 'mae': 0.5, 'reconstruction': [2.0]}]
    """
    shape = tuple(rule["shape"])
    size = math.prod(shape)
    if rule["rule"] == "reconstruct":
        return [
            {"mse": float(row[0]), "mae": float(row[1]), "reconstruction": row[2:].reshape(shape).tolist()}
            for row in rows
        ]
    return [
        {
            "elbo": float(row[0] - row[1]),
            "importance_weighted_bound": float(row[2]),
            "reconstruction": row[3 : 3 + size].reshape(shape).tolist(),
        }
        for row in rows
    ]


def errors(rule: Rule, rows: Floats, target: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean squared error, or the negative ELBO (nats), of each sample (N,)."""
    if rule["rule"] == "reconstruct":
        return np.asarray(rows[:, 0], np.float64)
    return np.asarray(rows[:, 1].astype(np.float64) - rows[:, 0])


def error_rows(values_ND: Floats, reconstructed_ND: Floats) -> NDArray[np.float32]:
    """Return (N, 2 + D): mean squared error, mean absolute error, the reconstruction."""
    difference_ND = reconstructed_ND.astype(np.float64) - values_ND
    scores = np.stack([(difference_ND**2).mean(axis=1), np.abs(difference_ND).mean(axis=1)], axis=1)
    return np.concatenate([scores, reconstructed_ND], axis=1).astype(np.float32)


def log_likelihood(rule: Rule, values_ND: Floats, decoded_ND: Floats) -> NDArray[np.float64]:
    """Return log p(x|z) in nats (N,) of values given the decoder's logits or means.

    Bernoulli with grey values x in [0, 1] is the expectation over black and white pixels that are white with
    probability x: sum x log p + (1 - x) log(1 - p). It is no density over [0, 1], but the common measure.

    >>> rule = {"likelihood": "bernoulli"}
    >>> round(float(log_likelihood(rule, np.array([[1.0, 0.25]]), np.zeros((1, 2)))[0]), 6) == -1.386294
    True
    """
    values, decoded = values_ND.astype(np.float64), decoded_ND.astype(np.float64)
    if rule["likelihood"] == "bernoulli":
        # log(1 + exp(decoded)) without overflow
        terms = values * decoded - np.logaddexp(0, decoded)
    else:
        deviation = rule["deviation"]
        terms = -0.5 * ((values - decoded) / deviation) ** 2 - math.log(deviation * math.sqrt(2 * math.pi))
    return np.asarray(terms.sum(axis=1))


def kl_divergence(mean_NZ: Floats, log_variance_NZ: Floats) -> NDArray[np.float64]:
    """Return KL(N(mean, variance) || N(0, 1)) in nats (N,), summed over Z (Kingma & Welling 2013, B).

    >>> kl_divergence(np.array([[1.0, 0.0]]), np.zeros((1, 2)))
    array([0.5])
    """
    mean, log_variance = mean_NZ.astype(np.float64), log_variance_NZ.astype(np.float64)
    return np.asarray(0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(axis=1))


def _elbo_rows(
    rule: Rule, run: Run, inputs: Arrays, values_ND: Floats, index: NDArray[Any]
) -> NDArray[np.float32]:
    size, seed, draws, latent = values_ND.shape[1], rule["seed"], rule["samples"], rule["latent"]

    def call(noise: Floats, posterior: float) -> Floats:
        gate = np.full((len(index), 1), posterior, np.float32)
        return run({**inputs, "noise": np.ascontiguousarray(noise, np.float32), "posterior": gate})

    noise_NKZ = normal(seed, _DRAWS, index, (draws, latent))
    reconstruction_NK = np.empty((len(index), draws))
    weight_NK = np.empty((len(index), draws))
    centre = call(np.zeros((len(index), latent)), 1.0)
    mean, log_variance = (part.astype(np.float64) for part in np.split(centre[:, size:], 2, axis=1))
    for draw in range(draws):
        noise = noise_NKZ[:, draw]
        decoded = call(noise, 1.0)[:, :size]
        code = mean + np.exp(0.5 * log_variance) * noise
        # log p(z) - log q(z|x): the constants cancel
        ratio = 0.5 * (noise.astype(np.float64) ** 2 + log_variance - code**2).sum(axis=1)
        reconstruction_NK[:, draw] = log_likelihood(rule, values_ND, decoded)
        weight_NK[:, draw] = reconstruction_NK[:, draw] + ratio
    drawn = call(normal(seed, _PRIOR, index, (latent,)), 0.0)[:, :size]
    scores = [
        reconstruction_NK.mean(axis=1),
        kl_divergence(mean, log_variance),
        np.logaddexp.reduce(weight_NK, axis=1) - math.log(draws),
    ]
    pictures = [_shown(rule, centre[:, :size]), _shown(rule, drawn)]
    return np.concatenate([np.stack(scores, axis=1), *pictures], axis=1).astype(np.float32)


def _shown(rule: Rule, decoded_ND: Floats) -> Floats:
    return sigmoid(decoded_ND) if rule["likelihood"] == "bernoulli" else decoded_ND
