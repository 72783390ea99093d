"""What `benchmarks.compression` runs in processes of its own: each peer makes a model, the scorer runs all.

``python -m benchmarks.compression_peers.NAME JOB.json``: a job, see `benchmarks.compression_peers.job`, holds
the files of one trained model. A peer ends by `job.tell`.
"""
