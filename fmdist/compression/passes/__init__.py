"""Compression passes, one file per kind, each with a ``Config`` that derives from `base.PassConfig`."""
