"""Architectures, one file per family, each with its export facts.

May import `fmdist.recipe` and the ground floor; never tasks or data.
"""
