"""Data sets: one file per kind, and what turns their raw rows into clean, split, preprocessed batches."""
