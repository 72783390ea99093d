"""Freed memory is kept by the process while it trains, since fetching it anew at every step is slow."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3

_MIB = 1 << 20


@contextmanager
def freed_is_kept() -> Iterator[None]:
    """Have glibc keep what is freed for what comes next while entered; other C libraries are left alone.

    By default it hands blocks of more than some MiB back to the kernel, which zeroes them page by page when
    they are asked for again: activations come and go at every step, and that takes up to a third of a step of
    a small CNN on a CPU. The process stays at its peak in exchange.

    Afterwards the thresholds are where glibc's own adaptation (mallopt(3)) ends, and free memory is returned.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    try:
        _set(libc, {_TRIM_THRESHOLD: 1024 * _MIB, _TOP_PAD: 64 * _MIB, _MMAP_THRESHOLD: 1024 * _MIB})
        yield
    finally:
        _set(libc, {_TRIM_THRESHOLD: 64 * _MIB, _TOP_PAD: _MIB // 8, _MMAP_THRESHOLD: 32 * _MIB})
        libc.malloc_trim(0)


def _set(libc: ctypes.CDLL, values: dict[int, int]) -> None:
    for parameter, value in values.items():
        libc.mallopt(parameter, value)
