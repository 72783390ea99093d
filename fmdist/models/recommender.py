"""What the recommenders share: embeddings of ids, and the two ways in which all of them are asked.

Ids are int64; id 0 stands for a user, item or category that training never saw, and its embedding is zero.
A user is described by the inputs ``user`` and ``user.*``, an item by ``item`` and ``item.*``.
Shapes: B pairs of a user and an item, I items of the catalogue, W width, L ids of a list.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fmdist.contracts import DataSpec, InputSpec
from fmdist.errors import CapabilityError


class IdEmbedding(nn.Embedding):
    """Embeddings of ids; those of a list are summed, so that the padding 0 adds nothing."""

    def __init__(self, item: InputSpec, width: int, std: float) -> None:
        super().__init__(item.size, width, padding_idx=0)
        with torch.no_grad():
            self.weight.normal_(0, std)[0] = 0
        self._list = len(item.shape) == 1

    def forward(self, ids: Tensor) -> Tensor:
        """Return (B, W) for ids (B,) or lists of ids (B, L)."""
        found: Tensor = super().forward(ids)
        return found.sum(dim=1) if self._list else found


class Recommender(nn.Module):
    """The base of all: a user and an item each become tensors, which a rule makes a score.

    A subclass says what a side is (`side`), and, unless it is a dot product, how two sides make a score.
    """

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.sides = {name: side_inputs(spec, name) for name in ("user", "item")}
        self._users = len(self.sides["user"])
        self._catalogue = catalogue(spec)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return scores (B, 1) of pairs; the inputs are in the order of the data: the user's, the item's."""
        user, item = self.side("user", inputs[: self._users]), self.side("item", inputs[self._users :])
        return self.score_pairs(user, item)

    def rank(self, *user_inputs: Tensor) -> Tensor:
        """Return scores (B, I) of all items for each user."""
        known = [values.to(user_inputs[0].device) for values in self._catalogue]
        return self.score_all(self.side("user", user_inputs), self.side("item", known))

    def side(self, name: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return what is known of users or items, each (B, ...)."""
        raise NotImplementedError

    def score_pairs(self, user: tuple[Tensor, ...], item: tuple[Tensor, ...]) -> Tensor:
        """Return scores (B, 1) from sides of (B, ...): by default their dot product plus both biases."""
        (user_BW, user_B1), (item_BW, item_B1) = user, item
        return (user_BW * item_BW).sum(dim=1, keepdim=True) + user_B1 + item_B1

    def score_all(self, user: tuple[Tensor, ...], item: tuple[Tensor, ...]) -> Tensor:
        """Return scores (B, I) from sides of (B, ...) and (I, ...)."""
        (user_BW, user_B1), (item_IW, item_I1) = user, item
        return user_BW @ item_IW.T + user_B1 + item_I1.T


def side_inputs(spec: DataSpec, name: str) -> tuple[InputSpec, ...]:
    """Return the inputs that describe the ``user`` or the ``item``, its id first.

    Raises:
        CapabilityError: if the data has none, so isn't of users and items.
    """
    found = tuple(item for item in spec.inputs if item.name == name or item.name.startswith(f"{name}."))
    if not found:
        raise CapabilityError(
            field="model.kind",
            problem=f"a recommender needs an input '{name}' and the data has none",
            value=[item.name for item in spec.inputs],
            fix="use data.kind 'interactions'",
        )
    return found


def catalogue(spec: DataSpec) -> list[Tensor]:
    """Return the item's inputs of all items that training saw, each (I, ...)."""
    item, *features = side_inputs(spec, "item")
    tables = [torch.tensor(spec.tables[feature.name])[1:] for feature in features]
    return [
        torch.arange(1, item.size),
        *(table if feature.shape else table[:, 0] for table, feature in zip(tables, features, strict=True)),
    ]
