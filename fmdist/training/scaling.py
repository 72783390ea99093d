"""The recipe's ``scaling`` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fmdist.recipe.schema import Section


class ScalingConfig(Section):
    """On how many processes the model is trained, and what each of them gets.

    The global batch stays `train.batch_size`: the number of workers changes neither it nor the order of
    samples. With this section dropout is keyed by (seed, epoch, step, sample), so that any number of workers
    trains alike.
    """

    workers: int = Field(default=1, ge=1)
    """Processes that train. May change when a run is resumed."""
    strategy: Literal["ddp"] = "ddp"
    """`ddp`: every worker holds the whole model, and gradients are averaged (Li et al. 2020,
    arXiv:2006.15704)."""
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
    wait_seconds: float = Field(default=0.0, ge=0)
    """How long to wait for resources that the cluster doesn't have yet; 0 refuses at once."""
