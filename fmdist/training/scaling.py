"""The recipe's ``scaling`` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from fmdist.recipe.schema import Section


class ScalingConfig(Section):
    """On how many processes the model is trained, and what each of them gets.

    The global batch stays `train.batch_size`: the number of workers changes neither it nor the order of
    samples. With this section dropout is keyed by (seed, epoch, step, sample), so that any number of workers
    trains alike.
    """

    workers: PositiveInt | Literal["auto"] | tuple[PositiveInt, PositiveInt] = 1
    """Processes that train: a number; `auto`, as many as the cluster has room for; or `[least, most]`. Where
    there is a choice, it is the largest that divides the batch; the run goes on with fewer when machines are
    lost, and with more when machines come. May change when a run is resumed."""
    strategy: Literal["ddp", "fsdp", "zero1", "zero2", "zero3"] = "ddp"
    """`ddp`: every worker holds the whole model, and gradients are averaged (Li et al. 2020,
    arXiv:2006.15704). DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054): `zero1` shares out the
    optimizer's states, `zero2` the gradients too, `zero3` the weights too. `fsdp` shares out all three by
    torch's FSDP2. May change when a run is resumed."""
    offload: Literal["cpu"] | None = None
    """Where ZeRO's shards wait for their use: the optimizer's, with zero3 the weights too."""
    activation_checkpointing: bool = False
    """Keep only the inputs of a model's layers and compute the rest again in the backward pass: less memory,
    about a third more time."""
    gradient_compression: Literal["fp16", "bf16", "power_sgd"] | None = None
    """With ddp: send gradients in 16 bits, or as matrices of rank 1 (PowerSGD, Vogels et al. 2019,
    arXiv:1905.13727) from the tenth step on. Precision is lost, and what PowerSGD still owes is not saved."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs that Ray sets aside for each worker."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs for each worker; 0 trains on CPUs."""
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = "pack"
    """`pack`: on as few machines as can be; `spread`: on as many; the strict ones refuse anything else."""
    max_failures: int = Field(default=3, ge=0)
    """How often training goes on from the newest checkpoint after a worker or a machine was lost."""
    backoff_seconds: float = Field(default=1.0, ge=0)
    """Wait before the first of these; each further wait is twice as long, at most a minute."""
    hang_seconds: float = Field(default=1800.0, gt=0)
    """How long a worker may do nothing before it is named and all begin anew at the newest checkpoint."""
    wait_seconds: float = Field(default=0.0, ge=0)
    """How long to wait for resources that the cluster doesn't have yet; 0 refuses at once."""

    @property
    def least(self) -> int:
        """The smallest number of workers that will do."""
        if isinstance(self.workers, tuple):
            return self.workers[0]
        return 1 if self.workers == "auto" else self.workers

    @property
    def most(self) -> int | None:
        """The largest number of workers that is of use; None for any."""
        if isinstance(self.workers, tuple):
            return self.workers[1]
        return None if self.workers == "auto" else self.workers

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while the run goes on."""
        return self.least != self.most

    @model_validator(mode="after")
    def _parts_fit(self) -> ScalingConfig:
        if isinstance(self.workers, tuple) and self.workers[0] > self.workers[1]:
            msg = f"workers: [least, most] must not fall, as {list(self.workers)} does"
            raise ValueError(msg)
        if self.offload is not None and not self.strategy.startswith("zero"):
            msg = f"offload works with strategies zero1, zero2 and zero3, not {self.strategy}"
            raise ValueError(msg)
        if self.gradient_compression is not None and self.strategy != "ddp":
            msg = f"gradient_compression works with strategy ddp only, not {self.strategy}"
            raise ValueError(msg)
        return self
