"""What a general compressor needs for a text, the yardstick of the language models."""

from __future__ import annotations

import lzma

PRESET = 9 | lzma.PRESET_EXTREME


def xz_bits_per_character(train: bytes, test: bytes) -> float:
    """Return the bits per character by which ``test`` lengthens the xz file of ``train``, both UTF-8.

    So xz is conditioned on the training text, as a language model is by its weights; its window (64 MiB)
    holds all of it, where a model's context holds a few hundred tokens.
    """
    longer, before = (len(lzma.compress(text, preset=PRESET)) for text in (train + test, train))
    return 8 * (longer - before) / len(test.decode())
