"""Loading and running artifacts without torch and without any model's code.

May import `fmdist.data.preprocess`, `fmdist.tasks.decoding` and the ground floor; never `fmdist.models`.
"""
