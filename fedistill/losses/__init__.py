"""Losses: one idea a file. A file with a `Regularizer` can be named in `distill.regularizers`."""
