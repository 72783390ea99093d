"""Ray: clusters, the workers of a training run, jobs. Nothing else in fmdist imports it."""
