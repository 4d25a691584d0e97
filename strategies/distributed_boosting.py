"""Distributed Boosting: every view of every image is labelled by a random client's teacher.

Stage 3 of DB: integrate and mix-relabel. `relabel.name: mix` chooses it, and so do its controls
`single` (one teacher for all) and `mean` (the average of all); `consensus` is for clients that hold
different classes.
"""

from strategies.integrate import Integrate


class DistributedBoosting(Integrate):
    """Unite the shares; let the teachers of all clients label them."""

    labels = ("mix", "single", "mean", "consensus")
