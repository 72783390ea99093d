"""A small trained subject that the compression tests share."""

from __future__ import annotations

import pytest

from fmdist.compression.subject import Subject


@pytest.fixture(scope="session")
def subject() -> Subject:
    """A digits CNN of 5,000 parameters after two epochs."""
    from tests.trained import digits_cnn

    return digits_cnn("tiny", channels=(8, 16), blocks=2, epochs=2, lr=0.01)
