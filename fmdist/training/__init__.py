"""The one training loop, its engine, its checkpoints and what listens to it.

May import tasks, models, data, recipe and the ground floor. Never sees Ray: it receives a `Context`.
"""
