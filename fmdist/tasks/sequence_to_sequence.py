"""Sequence to sequence: write one text from another, such as its translation.

Shapes: B batch, N samples, S and T time of source and target, V tokens of the target's vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fmdist import component
from fmdist.contracts import Batch, Dataset, DataSpec, Draw, LossOut, ModelBuilder, Roles
from fmdist.errors import CapabilityError
from fmdist.metrics import Metric, MetricCollection
from fmdist.tasks.base import TASK_HINT, OneModelTask, SummedLoss, TaskConfig, choose_primary
from fmdist.tasks.decoding.beam import END
from fmdist.tasks.decoding.language import written_texts
from fmdist.tasks.decoding.translation import LOSS, TEXT, TOKENS

REQUIRES = ("text",)

UNKNOWN = 1
"""The id of what the tokenizer doesn't know; it is never written, so a target that holds it is never met."""


class Config(TaskConfig):
    """Cross-entropy of each target token given the source and the true tokens before it (teacher forcing).

    Sources: Sutskever et al. 2014 (arXiv:1409.3215); scored by BLEU (Papineni et al. 2002,
    doi:10.3115/1073083.1073135) and chrF (Popovic 2015, doi:10.18653/v1/W15-3049) as sacrebleu computes them
    (Post 2018, arXiv:1804.08771), on texts as the target's tokenizer writes them.
    """

    needs: ClassVar[str] = "pair"

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread evenly over the vocabulary (Szegedy et al. 2016, arXiv:1512.00567)."""
    beam_width: int = Field(default=1, ge=1, le=100)
    """Hypotheses that are followed when a text is written, in every evaluation too; 1 is greedy search."""
    length_penalty: float = Field(default=0.6, ge=0, le=2)
    """Alpha of Wu et al. 2016 (arXiv:1609.08144): more favours long texts; none in greedy search."""
    primary: str | None = None
    """Metric that chooses the best checkpoint: bleu, chrf, exact_match or loss; by default chrf."""

    def build(self, spec: DataSpec, model: ModelBuilder) -> SequenceToSequence:
        """Return the task; see `TaskConfig.build`."""
        if spec.target.kind != "tokens" or len(spec.inputs) != 2:
            raise CapabilityError(
                field="task.kind",
                problem="'sequence_to_sequence' learns pairs of texts and the data is something else",
                value=f"{len(spec.inputs)} input(s), target of kind '{spec.target.kind}'",
                fix=f"use data.kind 'parallel_text'; {TASK_HINT}",
            )
        return SequenceToSequence(self, spec, model.build(spec, spec.target.size))


class SequenceToSequence(OneModelTask):
    """Targets int64 (B, T), padded with 0; the model's outputs are logits (B, T, V)."""

    def __init__(self, config: Config, spec: DataSpec, model: nn.Module) -> None:
        super().__init__(spec, model)
        self._config = config
        self.primary = choose_primary(
            config.primary or "chrf", {"bleu": "max", "chrf": "max", "exact_match": "max", "loss": "min"}
        )

    def loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        """Return the cross-entropy in nats, summed over the targets' tokens."""
        loss_sum = functional.cross_entropy(
            self.outputs(roles, batch).flatten(0, 1),
            batch["target"].flatten(),
            ignore_index=0,
            reduction="sum",
            label_smoothing=self._config.label_smoothing,
        )
        return LossOut(loss_sum, self.count(batch))

    def count(self, batch: Batch) -> float:
        """Return the number of target tokens, those that end the texts included."""
        return int((batch["target"] != 0).sum())

    def metrics(self) -> MetricCollection:
        """Return loss (nats per token), BLEU and chrF in [0, 100], and the share of targets met exactly."""
        tokenizer = self.spec.tokenizers["target"]
        return MetricCollection(
            {
                "loss": SummedLoss(_loss),
                "bleu": CorpusScore("bleu", tokenizer),
                "chrf": CorpusScore("chrf", tokenizer),
                "exact_match": SummedLoss(_exact),
            },
            compute_groups=False,
        )

    def decoding(self) -> dict[str, Any]:
        """Return the rule that writes and scores texts, at most as long as the longest in training."""
        return {
            "rule": "translate",
            "inputs": list(self._names),
            "tokenizer": self.spec.tokenizers["target"],
            "vocabulary": self.spec.target.size,
            "label_smoothing": self._config.label_smoothing,
            "beam_width": self._config.beam_width,
            "length_penalty": self._config.length_penalty,
            "max_length": self.inputs[1].longest,
        }

    def baseline(self, train: Dataset, part: Dataset) -> NDArray[np.float32]:
        """Return rows that copy the source, scored by the tokens' frequencies in training (each plus one)."""
        from tokenizers import Tokenizer

        counts_V = np.bincount(train.targets.ravel(), minlength=self.spec.target.size) + 1.0
        counts_V[0] = 1.0  # what was counted there is padding
        log_p_V = np.log(counts_V / counts_V.sum())
        share = self._config.label_smoothing
        loss_V = -(1 - share) * log_p_V - share * log_p_V.mean()
        scored_NT = part.targets != 0
        rows = np.zeros((len(part), TEXT + self.inputs[1].longest), np.float32)
        rows[:, LOSS] = (loss_V[part.targets] * scored_NT).sum(axis=1)
        rows[:, TOKENS] = scored_NT.sum(axis=1)
        source_NS = part.__getitems__(Draw(0, np.arange(len(part))))[self._names[0]].tolist()
        library = Tokenizer.from_str(self.spec.tokenizers["target"])
        library.encode_special_tokens = True  # a text that holds "</s>" doesn't end there
        for row, text in enumerate(written_texts(self.spec.tokenizers["source"], source_NS)):
            ids = [*library.encode(text, add_special_tokens=False).ids, END][: rows.shape[1] - TEXT]
            rows[row, TEXT : TEXT + len(ids)] = ids
        return rows


class CorpusScore(Metric):
    """BLEU or chrF of all texts together, in [0, 100]: sacrebleu's ``corpus_score``.

    Its statistics of single texts are summed, so that ranks merge and resamples cost nothing but a sum.
    """

    higher_is_better = True
    full_state_update = False
    statistics: Tensor

    def __init__(self, name: Literal["bleu", "chrf"], tokenizer: str) -> None:
        super().__init__()
        component.require("text", needed_by=f"the metric '{name}'")
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        # Texts are joined from tokens here, so that BLEU's warning of tokenized texts would be wrong.
        self._score = BLEU(force=True) if name == "bleu" else CHRF()
        self._tokenizer = tokenizer
        self._known: dict[tuple[bytes, bytes], NDArray[np.int64]] = {}
        size = len(self._score._extract_corpus_statistics([""], [[""]])[0])
        self.add_state("statistics", torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, rows_NS: Tensor, target_NT: Tensor) -> None:
        """Add rows (N, S) of the rule and the true ids (N, T)."""
        written = rows_NS[:, TEXT:].long().cpu().numpy()
        truth = target_NT.cpu().numpy()
        keys = [(text.tobytes(), true.tobytes()) for text, true in zip(written, truth, strict=True)]
        new = [row for row, key in enumerate(keys) if key not in self._known]
        if new:
            pairs = self._texts(written[new]), [self._texts(truth[new])]
            for row, found in zip(new, self._score._extract_corpus_statistics(*pairs), strict=True):
                self._known[keys[row]] = np.array(found, np.int64)
        total = np.sum([self._known[key] for key in keys], axis=0)
        self.statistics += torch.from_numpy(total).to(self.statistics.device)

    def compute(self) -> Tensor:
        """Return the score."""
        score = self._score._compute_score_from_stats(self.statistics.tolist()).score
        return torch.tensor(score, dtype=torch.float64)

    def _texts(self, ids_NT: NDArray[np.int64]) -> list[str]:
        """Return ids as texts, with U+FFFD for what the tokenizer doesn't know."""
        from tokenizers import Tokenizer

        library = Tokenizer.from_str(self._tokenizer)
        kept = [[token for token in ids if token > END or token == UNKNOWN] for ids in ids_NT.tolist()]
        texts = [library.decode(ids, skip_special_tokens=False) for ids in kept]
        return [text.replace(str(library.id_to_token(UNKNOWN)), "\ufffd") for text in texts]


def _loss(rows_NS: Tensor, target_NT: Tensor) -> tuple[Tensor, float]:
    return rows_NS[:, LOSS].double().sum(), float(rows_NS[:, TOKENS].double().sum())


def _exact(rows_NS: Tensor, target_NT: Tensor) -> tuple[Tensor, float]:
    """Return how many rows equal their target, and how many there are."""
    written_NT = rows_NS[:, TEXT:].long()
    width = max(written_NT.shape[1], target_NT.shape[1])
    written_NT = functional.pad(written_NT, (0, width - written_NT.shape[1]))
    target_NT = functional.pad(target_NT, (0, width - target_NT.shape[1]))
    return (written_NT == target_NT).all(dim=1).sum(), len(target_NT)
