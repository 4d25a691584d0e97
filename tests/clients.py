"""What tests of a client's work share: small configs, and one client that does its work."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fakes import tiny_config, tiny_images, tiny_spec, tiny_tree

from fedistill import config_file, worker
from fedistill.client import make_share
from fedistill.config import Config
from fedistill.distillers.sre2l import SRe2L
from fedistill.images import DataSpec, ImageSet
from fedistill.shares import Share

SPEC, SHARD = tiny_spec(), tiny_images()
COUNTS = (2, 0, 1)
NARROW = {"name": "convnet", "depth": 2, "width": 4}
SHALLOW = {"name": "convnet", "depth": 1, "width": 4}


def small(**sections: Any) -> Config:
    return tiny_config(**{"model": NARROW, **sections})


CONFIG = small()
TWO = small(teacher={"count": 2})


def work(
    config: Config = CONFIG,
    *,
    spec: DataSpec = SPEC,
    shard: ImageSet = SHARD,
    counts: Sequence[int] = COUNTS,
    partition_id: int = 0,
    **options: Any,
) -> Share:
    return make_share(config, spec, shard, counts, partition_id=partition_id, **options)


def assert_same(first: Share, second: Share) -> None:
    assert torch.equal(first.images, second.images)
    assert len(first.teachers) == len(second.teachers)
    for one, other in zip(first.teachers, second.teachers, strict=True):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert tensor.dtype == other[name].dtype
            assert torch.equal(tensor, other[name]), name
    for name in ("partition_id", "counts", "teacher_curve", "recover_curve"):
        assert getattr(first, name) == getattr(second, name), name


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("it should have been read from the store")

    monkeypatch.setattr(worker, "squeeze", fail)
    monkeypatch.setattr(SRe2L, "distill", fail)


# Its images are optimised for each other, so every size has images of its own.
DM = config_file.from_dict(
    {
        **tiny_tree(model=NARROW),
        "distill": {"name": "dm", "iterations": 2, "width": 4, "ipc": [1, 2]},
    }
)
