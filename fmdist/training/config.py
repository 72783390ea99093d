"""The recipe's ``train`` section."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fmdist.recipe.schema import Section
from fmdist.training.optim import check_options, optimizer_class


class EmaConfig(Section):
    """An exponential moving average of the weights, which evaluation and the final model use."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    """Share of the old average kept at each step."""


class EarlyStoppingConfig(Section):
    """Stop when the primary metric on the validation split no longer improves."""

    patience: int = Field(default=5, ge=1)
    """Evaluations without improvement after which training stops."""
    min_delta: float = Field(default=0.0, ge=0)
    """Improvement, in units of the primary metric, that counts as one."""


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept. Best and last are always kept."""

    every_steps: int | None = Field(default=None, ge=1)
    """Also save every so many steps; an epoch's end, SIGTERM and SIGINT always save."""
    every_epochs: int = Field(default=1, ge=1)
    """Save at the end of every so many epochs."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest checkpoints are kept."""
    beside: bool = True
    """Write in a thread while training goes on; at most one is being written. False lets training wait."""
    store: str | None = None
    """Folder of a store that fsspec knows, such as `s3://bucket/runs`: checkpoints are copied there, into a
    folder of the run's name, and those that the run has lost are brought back."""
    max_age_hours: float | None = Field(default=None, gt=0)
    """Remove older ones even among the newest `keep`; null keeps them."""

    def due(self, step: int) -> bool:
        """Return whether `every_steps` asks for a checkpoint after optimizer step ``step``."""
        return self.every_steps is not None and step % self.every_steps == 0


class PhaseConfig(Section):
    """What differs for one of the optimizers of a task that has several, such as a GAN."""

    lr: float | None = Field(default=None, gt=0)
    """Learning rate instead of `train.lr`."""
    optimizer: str | None = None
    """Optimizer instead of `train.optimizer`."""
    options: dict[str, Any] | None = None
    """Options instead of `train.options`."""

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str | None) -> str | None:
        if name is not None:
            optimizer_class(name)
        return name


class TrainConfig(Section):
    """How the model is trained."""

    epochs: int = Field(default=10, ge=1)
    """Passes over the training split. May be raised when a run is resumed."""
    batch_size: int = Field(default=64, ge=1)
    """Samples per optimizer step over all workers and accumulated parts."""
    accumulate: int = Field(default=1, ge=1)
    """Parts into which a batch is split to save memory; the step stays the same."""
    drop_last: bool = False
    """Leave out the epoch's last batch if it is smaller."""
    optimizer: str = "AdamW"
    """Name of a class in torch.optim."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate after warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay; not applied to biases, normalization and other one-dimensional parameters."""
    options: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """Further arguments of the optimizer, such as `betas: [0.9, 0.95]` or `momentum: 0.9`."""
    schedule: Literal["constant", "cosine", "linear", "step", "exponential"] = "constant"
    """How the learning rate falls after warm-up, by step: to `final_lr_ratio` at the end of training for
    cosine and linear; by `gamma` every `step_epochs` epochs for step, and every epoch for exponential."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs (parts allowed) over which the learning rate rises linearly to `lr`."""
    final_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Final learning rate over `lr`, for cosine and linear."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """Factor of the step and exponential schedules."""
    step_epochs: int = Field(default=30, ge=1)
    """Epochs between two drops of the step schedule."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest L2 norm of each phase's gradients; null is off."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass under autocast; fp16 scales the loss and needs a GPU."""
    compile: bool = False
    """Compile the modules with torch.compile (needs a C++ compiler on CPU)."""
    deterministic: bool = False
    """Only deterministic algorithms; the same run gives the same bits on the same machine and threads."""
    device: str = "auto"
    """`auto`, or a torch device such as `cpu`, `cuda`, `cuda:1`."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; null leaves torch's default."""
    workers: int = Field(default=0, ge=0)
    """Processes that load batches; 0 loads in the training process."""
    non_finite: Literal["stop", "skip"] = "stop"
    """On a loss that is nan or infinite, or with `clip_norm` such a gradient norm: stop before the update, or
    skip the update."""
    max_skipped: int = Field(default=10, ge=1)
    """Updates skipped in a row after which training stops all the same."""
    evaluate_every_epochs: int = Field(default=1, ge=1)
    """Epochs between two evaluations on the validation split; the last epoch is always evaluated."""
    evaluation_batch_size: int = Field(default=512, ge=1)
    """Samples per batch where no gradient is needed."""
    log_every_steps: int = Field(default=100, ge=1)
    """Steps between two training records in metrics.jsonl and the trackers."""
    ema: EmaConfig | None = None
    """Average the weights."""
    early_stopping: EarlyStoppingConfig | None = None
    """Stop early."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save and what to keep."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where metrics go besides metrics.jsonl; wandb and mlflow are extras."""
    phases: dict[str, PhaseConfig] = Field(default_factory=dict)
    """Differences by role, for tasks with several optimizers: `discriminator: {lr: 4e-4}`."""

    def evaluates(self, epoch: int) -> bool:
        """Return whether epoch ``epoch`` (from 0) ends with an evaluation."""
        return (epoch + 1) % self.evaluate_every_epochs == 0 or epoch + 1 == self.epochs

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        optimizer_class(name)
        return name

    @field_validator("options")
    @classmethod
    def _known_options(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "optimizer" in info.data:
            check_options(info.data["optimizer"], options, info.data.get("weight_decay", 0.0))
        return options

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            msg = f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> TrainConfig:
        for role, phase in self.phases.items():
            options = self.options if phase.options is None else phase.options
            try:
                check_options(phase.optimizer or self.optimizer, options, self.weight_decay)
            except ValueError as error:
                msg = f"phases.{role}: {error}"
                raise ValueError(msg) from None
        return self


RESUMABLE = frozenset(
    {
        "epochs",
        "early_stopping",
        "checkpoint",
        "trackers",
        "log_every_steps",
        "evaluation_batch_size",
        "workers",
        "device",
        "threads",
    }
)
"""Keys of this section that may change when a run is resumed: none of them changes a step already made."""
