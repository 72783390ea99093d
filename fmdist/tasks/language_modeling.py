"""Language modelling: predict the next token of a text, and so generate one.

Shapes: B batch, T time, V tokens of the vocabulary, N windows of text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import Batch, Dataset, DataSpec, LossOut, ModelBuilder, Roles
from fmdist.errors import CapabilityError
from fmdist.metrics import Metric, MetricCollection
from fmdist.tasks.base import TASK_HINT, OneModelTask, TaskConfig, choose_primary
from fmdist.tasks.decoding.language import CHARACTERS, CORRECT, NLL, TOKENS, token_characters


class Config(TaskConfig):
    """Cross-entropy over the tokens that follow; scored in bits per character, so that tokenizers compare.

    Source: Shannon 1951 (doi:10.1002/j.1538-7305.1951.tb01366.x). `fmdist predict` generates from a prompt.
    """

    needs: ClassVar[str] = "language"

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread evenly over the vocabulary in training (Szegedy et al. 2016,
    arXiv:1512.00567); the metrics are without it."""
    primary: str | None = None
    """Metric that chooses the best checkpoint; by default bits_per_character."""

    def build(self, spec: DataSpec, model: ModelBuilder) -> LanguageModeling:
        """Return the task; see `TaskConfig.build`."""
        if spec.target.kind != "tokens" or len(spec.inputs) != 1:
            raise CapabilityError(
                field="task.kind",
                problem="'language_modeling' learns one running text and the data is something else",
                value=f"{len(spec.inputs)} input(s), target of kind '{spec.target.kind}'",
                fix=f"use data.kind 'text_file'; {TASK_HINT}",
            )
        return LanguageModeling(self, spec, model.build(spec, spec.target.size))


class LanguageModeling(OneModelTask):
    """Targets int64 (B, T): the token after each position, 0 where none is scored."""

    def __init__(self, config: Config, spec: DataSpec, model: nn.Module) -> None:
        super().__init__(spec, model)
        self._config = config
        self._tokenizer = spec.tokenizers[spec.inputs[0].name]
        self._characters = token_characters(self._tokenizer)
        self.primary = choose_primary(
            config.primary or "bits_per_character",
            {"bits_per_character": "min", "loss": "min", "perplexity": "min", "accuracy": "max"},
        )

    def loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        """Return the cross-entropy in nats, summed over scored tokens."""
        logits_BTV = self.outputs(roles, batch)
        loss_sum = functional.cross_entropy(
            logits_BTV.flatten(0, 1),
            batch["target"].flatten(),
            ignore_index=0,
            reduction="sum",
            label_smoothing=self._config.label_smoothing,
        )
        return LossOut(loss_sum, self.count(batch))

    def count(self, batch: Batch) -> float:
        """Return the number of scored tokens."""
        return int((batch["target"] != 0).sum())

    def metrics(self) -> MetricCollection:
        """Return loss (nats per token), perplexity, bits per character and accuracy over scored tokens.

        Bits per character are too few where the tokenizer doesn't know a character, since the bits that would
        tell which one it is are missing; `bpe` knows them all.
        """
        return MetricCollection(
            {
                "loss": RowRatio(NLL, TOKENS),
                "perplexity": RowRatio(NLL, TOKENS, torch.exp),
                "bits_per_character": RowRatio(NLL, CHARACTERS, _in_bits),
                "accuracy": RowRatio(CORRECT, TOKENS),
            },
            compute_groups=False,
        )

    def decoding(self) -> dict[str, Any]:
        """Return the rule that scores windows and generates text."""
        return {
            "rule": "likelihood",
            "input": self._names[0],
            "context": self.inputs[0].longest,
            "characters": self._characters,
            "tokenizer": self._tokenizer,
        }

    def baseline(self, train: Dataset, part: Dataset) -> NDArray[np.float32]:
        """Return rows (N, 4) of the tokens' frequencies in the training text, each counted once more."""
        counts_V = np.bincount(train.targets.ravel(), minlength=self.spec.target.size) + 1.0
        counts_V[0] = 0
        nll_V = np.zeros(len(counts_V))
        nll_V[1:] = -np.log(counts_V[1:] / counts_V.sum())
        target_NT = part.targets
        columns = (
            nll_V[target_NT].sum(axis=1),
            (target_NT != 0).sum(axis=1),
            np.array(self._characters)[target_NT].sum(axis=1),
            (target_NT == counts_V.argmax()).sum(axis=1),
        )
        return np.stack(columns, axis=1).astype(np.float32)


class RowRatio(Metric):
    """The sum of one column of the rows over the sum of another, right whatever their batches and ranks."""

    full_state_update = False
    upper: Tensor
    lower: Tensor

    def __init__(self, upper: int, lower: int, finish: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self._columns = (upper, lower)
        self._finish = finish
        self.add_state("upper", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("lower", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, rows_NS: Tensor, target: Tensor) -> None:
        """Add the rows (N, S) of a batch."""
        upper, lower = self._columns
        self.upper += rows_NS[:, upper].double().sum()
        self.lower += rows_NS[:, lower].double().sum()

    def compute(self) -> Tensor:
        """Return the finished ratio."""
        ratio = self.upper / self.lower
        return ratio if self._finish is None else self._finish(ratio)


def _in_bits(nats: Tensor) -> Tensor:
    return nats / math.log(2)
