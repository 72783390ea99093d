"""Normal noise for a sample, the same wherever and beside whatever else it is drawn.

Shapes: N samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def normal(seed: int, stream: int, index_N: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return standard normal values (N, *shape), keyed by ``seed``, ``stream`` and each sample's index.

    Philox (Salmon et al. 2011, doi:10.1145/2063384.2063405) counts from a place that the key names, so that
    no two samples and no two streams share a value.

    >>> both = normal(0, 0, np.array([3, 7]), (2,))
    >>> bool((both[1] == normal(0, 0, np.array([7]), (2,))[0]).all())
    True
    """
    values = np.empty((len(index_N), *shape), np.float32)
    for row, index in enumerate(index_N):
        counter = np.array([0, index, stream, 0], np.uint64)
        random = np.random.Generator(np.random.Philox(key=seed, counter=counter))
        values[row] = random.standard_normal(shape, np.float32)
    return values
