"""Compression: export a trained model, run passes over it, verify and measure what comes out.

May import training, deployment, reports and what is below them. Plug-ins live in `fmdist.compression.passes`;
importing this package or `fmdist.compression.config` loads neither torch nor a runtime.
"""
