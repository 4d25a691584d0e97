"""Distillers: one method a file; the file name is `distill.name`."""
