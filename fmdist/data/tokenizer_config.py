"""The recipe section of a tokenizer; `fmdist.data.tokenizer` fits and runs it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fmdist.data.tokenizer import SMALLEST_BPE, SPECIAL
from fmdist.recipe.schema import Section


class TokenizerConfig(Section):
    """How texts become token ids; fitted on the training split only, and saved with the model.

    Sources: `bpe` is the byte-level byte-pair encoding of Sennrich et al. 2016 (arXiv:1508.07909) and Radford
    et al. 2019 (GPT-2); the tokenizers library (github.com/huggingface/tokenizers) does the work.
    """

    kind: Literal["character", "word", "bpe"] = "word"
    """``character``: one token each; ``word``: words and punctuation marks; ``bpe``: pieces of words, down to
    single bytes, so that no text holds anything unknown."""
    vocabulary: int = Field(default=8000, gt=len(SPECIAL))
    """Most tokens to learn, the four special ones included; the most frequent are kept."""
    lowercase: bool = False
    """Read all texts in lower case."""
    min_count: int = Field(default=1, ge=1)
    """How often a character or word (`bpe`: a pair to merge) must occur in the training split, or more."""

    @model_validator(mode="after")
    def _holds_all_bytes(self) -> Self:
        if self.kind == "bpe" and self.vocabulary < SMALLEST_BPE:
            message = f"bpe needs a vocabulary of at least {SMALLEST_BPE}: 256 bytes and 4 special tokens"
            raise ValueError(message)
        return self
