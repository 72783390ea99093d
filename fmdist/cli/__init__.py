"""The command line: one thin file per verb, on the frame of `fmdist.cli.frame`.

May import everything below, but only inside a verb's function: no file here imports torch, pydantic, yaml or
rich at its top, so that ``--help`` answers at once.
"""
