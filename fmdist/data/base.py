"""The base of every data kind: a kind says how to read; the rest is the same for all.

read -> quarantine -> duplicates -> split -> outliers (training only) -> preprocessing (fitted on training);
see `fmdist.data.building`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from fmdist.data.config import AugmentConfig, CleanConfig, SplitConfig
from fmdist.data.raw import RawData
from fmdist.recipe.schema import ComponentConfig

if TYPE_CHECKING:
    from fmdist.data.splits import DataSplits


class DataConfig(ComponentConfig):
    """The fields that all data kinds share."""

    modality: ClassVar[str] = "image"
    """``image``, ``table`` or another, such as ``text``; decides which of the shared fields make sense."""

    split: SplitConfig = Field(default_factory=SplitConfig)
    """How rows are divided into training, validation and test."""
    clean: CleanConfig = Field(default_factory=CleanConfig)
    """What is removed before anything is learned."""
    normalize: bool = True
    """Bring every channel or numeric column to mean 0 and standard deviation 1 of the training split."""
    augment: AugmentConfig | None = None
    """Images: random changes of training samples; null for none."""

    @field_validator("augment")
    @classmethod
    def _augment_fits(cls, augment: AugmentConfig | None) -> AugmentConfig | None:
        if augment is not None and cls.modality != "image":
            message = f"{cls.kind()} has no images to augment; remove data.augment"
            raise ValueError(message)
        return augment

    @field_validator("clean")
    @classmethod
    def _clean_fits(cls, clean: CleanConfig) -> CleanConfig:
        if clean.outliers != "none" and cls.modality != "table":
            message = (
                f"outliers are defined for tables, not for {cls.kind()}; set data.clean.outliers to none"
            )
            raise ValueError(message)
        return clean

    def read(self) -> RawData:
        """Return all rows; each kind implements this.

        Raises:
            DataError: if the data is missing, empty or not what the kind expects.
        """
        raise NotImplementedError

    def build(self, seed: int, quarantine: Path | None = None) -> DataSplits:
        """Read, clean, split and preprocess.

        Args:
            seed: the recipe's seed; keys the split (unless ``split.seed`` is set) and the augmentation.
            quarantine: the file for records that can't be used, JSON lines; None writes none.

        Raises:
            DataError: if the data is missing, or can't be used as asked; names the field and the fix.
            DependencyMissing: if augmentation or a file format needs an extra that is not installed.
        """
        # torch is loaded when data is, not when a recipe is validated
        from fmdist.data.building import build_splits

        return build_splits(
            self.read(), self.split, self.clean, self.augment, self.normalize, seed, quarantine
        )
