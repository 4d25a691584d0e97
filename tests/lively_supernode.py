"""flower-supernode with signs of life every few seconds, so that its death is noticed in 20 s.

Flower's own interval cannot be set: a SuperLink gives a silent node up after a minute. The interval
travels with each sign of life, so a SuperLink needs no change.
"""

from flwr.supercore import heartbeat
from flwr.supernode import fleet_http_connection
from flwr.supernode.cli import flower_supernode

INTERVAL_S = 10  # the least that a SuperLink takes; twice this, and a silent node is given up

if __name__ == "__main__":
    for module in (heartbeat, fleet_http_connection):
        assert hasattr(module, "HEARTBEAT_DEFAULT_INTERVAL")
        setattr(module, "HEARTBEAT_DEFAULT_INTERVAL", INTERVAL_S)  # noqa: B010
    flower_supernode()
