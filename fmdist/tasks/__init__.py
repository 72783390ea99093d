"""What is learned: phases, loss, metrics and decoding, one file per task.

May import `fmdist.recipe` and the ground floor; models and data reach a task through the contracts only.
"""
