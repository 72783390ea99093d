"""Glob patterns over the names of parameters and layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from fmdist.errors import CapabilityError, did_you_mean

SHOWN = 12
"""Names that a message lists."""


def matching(patterns: Sequence[str], names: Iterable[str], field: str, what: str) -> list[str]:
    """Return the names that any of the patterns matches, in their order.

    Args:
        patterns: as `fnmatch.fnmatchcase` reads them; * matches dots too.
        names: to choose from.
        field: recipe key that holds the patterns, for the message.
        what: a name's noun, for the message.

    Raises:
        CapabilityError: if a pattern matches none of the names.
    """
    known = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise CapabilityError(
                field=field,
                problem=f"the pattern matches no {what}",
                value=pattern,
                allowed=listing(known),
                fix=did_you_mean(pattern, known),
            )
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]


def listing(names: Sequence[str]) -> str:
    """Return names for a message, the first `SHOWN` of them.

    >>> listing(["a", "b"])
    'a, b'
    """
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
