"""The recipe's ``transfer`` section."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from fmdist.data.config import Location
from fmdist.recipe.schema import Section

Pattern = Annotated[str, Field(min_length=1)]
"""A glob pattern over dotted names: ``features.*``, ``*.bias``; * matches dots too."""


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), through peft; all else but the head is frozen.

    The head is every tensor whose size is the number of outputs. Exports and artifacts hold merged weights.
    """

    targets: tuple[Pattern, ...] = Field(min_length=1)
    """Glob patterns over the names of linear, convolutional and embedding layers that get an adapter, such as
    `*.query`; the head is never among them, it trains whole."""
    rank: int = Field(default=8, ge=1)
    """Rank of each adapter."""
    alpha: int = Field(default=16, ge=1)
    """Adapters count `alpha / rank` times."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of zeroing an input of an adapter in training."""


class TransferConfig(Section):
    """Start from trained weights, and choose what is trained and how fast.

    The head, every tensor whose size is the number of outputs, starts fresh where the outputs are others than
    in `init_from`. Any other tensor that doesn't fit is refused, with the names, unless `skip` or `ignore`
    covers it.
    """

    init_from: Location | None = None
    """A run, an artifact, a .safetensors file, a local Hugging Face folder, or a PyTorch state dict (.pt,
    .pth, .bin; tensors only). Read when training begins; from then on the checkpoints have all."""
    role: str | None = None
    """Which of the task's modules this is about; null: `model`, or the only one that is trained."""
    rename: dict[str, str] = Field(default_factory=dict)
    r"""Regular expression -> replacement, applied in this order to each name in `init_from`, by `re.sub`:
    `{'^module\.': ''}` takes a prefix away, `{'^': 'model.'}` adds one."""
    skip: tuple[Pattern, ...] = ()
    """Glob patterns over the model's names: these keep their fresh initialization."""
    ignore: tuple[Pattern, ...] = ()
    """Glob patterns over the names in `init_from`, renamed: these are not wanted."""
    freeze: tuple[Pattern, ...] = ()
    """Glob patterns over the names of parameters that are not trained. A normalization whose parameters are
    all frozen keeps its running statistics too."""
    lr_decay: float = Field(default=1.0, gt=0, le=1)
    """Learning rate of a layer over that of the layer above it; the top one has `train.lr` (Howard & Ruder
    2018, arXiv:1801.06146). Layers are counted in order of definition, with sequences and lists of modules
    opened; a normalization counts with the layer before it."""
    lora: LoraConfig | None = None
    """Train low-rank adapters and the head only."""

    @field_validator("rename")
    @classmethod
    def _expressions(cls, rename: dict[str, str]) -> dict[str, str]:
        for pattern, replacement in rename.items():
            try:
                re.compile(pattern)
                re.sub(f"(?:{pattern})?", replacement, "")
            except (re.error, IndexError) as error:
                message = (
                    f"not a regular expression with its replacement: {pattern!r}: {replacement!r} ({error})"
                )
                raise ValueError(message) from None
        return rename

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.init_from is None and (self.rename or self.skip or self.ignore):
            message = "rename, skip and ignore say how init_from is read; give init_from, or leave them out"
            raise ValueError(message)
        if self.lora is not None and self.freeze:
            message = "lora freezes all but its adapters and the head; leave freeze out"
            raise ValueError(message)
        if self.init_from is None and self.lora is None and not self.freeze and self.lr_decay == 1:
            message = (
                "nothing is asked for; give init_from, freeze, lr_decay or lora, or leave the section out"
            )
            raise ValueError(message)
        return self
