"""The perceptron: one linear layer on the flattened input."""

from __future__ import annotations

import math

from torch import nn

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig, fixed_shape


class Config(ModelConfig):
    """A weight per input and output, and no hidden layer (Rosenblatt 1958, doi:10.1037/h0042519).

    Trained by the task's loss instead of the paper's error correction: with cross-entropy this is multinomial
    logistic regression, with the squared error it is linear regression. A reference for what depth adds.
    """

    def build(self, spec: DataSpec, outputs: int) -> nn.Sequential:
        """Return a module from images or table rows (B, ...) to (B, outputs)."""
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(fixed_shape(spec, self.kind())), outputs))
