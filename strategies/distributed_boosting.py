"""Distributed Boosting: every view of every image is labelled by a random client's teacher.

DB (seed paper), stage 3: integrate and mix-relabel. `relabel.name` chooses the controls
`single` (one teacher for all) and `mean` (the average of all) instead of `mix`.
"""

from strategies.integrate import Integrate


class DistributedBoosting(Integrate):
    """Unite the shares; let the teachers of all clients label them."""

    labeller = None  # the config's choice
