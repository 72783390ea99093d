"""One script per claim; each measures the other side in the same run and writes results/<name>.json."""
