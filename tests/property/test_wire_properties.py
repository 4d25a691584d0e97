"""Any share and any config travel without a change."""

import numpy as np
import torch
from fakes import tiny_config, tiny_spec, tiny_teacher
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedistill import wire
from fedistill.shares import Share
from fedistill.wire import DistillRequest

CONFIG = tiny_config(teacher={"count": 2})
TEACHER = tiny_teacher().state_dict()
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def teachers(draw: st.DrawFn) -> dict[str, Tensor]:
    """A state with numbers of any size, at any places."""
    state = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in TEACHER.items()
    }
    for name in draw(st.lists(st.sampled_from(sorted(state)), max_size=4)):
        tensor = state[name].view(-1)
        value = draw(finite if tensor.is_floating_point() else st.integers(0, 2**62))
        tensor[draw(st.integers(0, len(tensor) - 1))] = abs(value) if "var" in name else value
    return state


curves = st.lists(st.tuples(st.integers(0, 10**6), finite), max_size=4)
seconds = st.floats(0, 1e9)
names = st.from_regex(r"[a-z]+/[a-z0-9_-]{1,20}", fullmatch=True)


@st.composite
def shares(draw: st.DrawFn) -> Share:
    counts = tuple(draw(st.lists(st.integers(0, 3), min_size=3, max_size=3)))
    pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(
        0, 256, (sum(counts), 1, 8, 8)
    )
    return Share(
        partition_id=draw(st.integers(0, 2**31)),
        images=torch.from_numpy(pixels.astype(np.uint8)),
        counts=counts,
        teachers=(draw(teachers()), draw(teachers())),
        teacher_curve=draw(curves),
        recover_curve=draw(curves),
        curves=draw(st.dictionaries(names, curves, max_size=3)),
        seconds={"squeeze": draw(seconds), "recover": draw(seconds)},
    )


@given(share=shares())
def test_any_share_arrives_bit_for_bit(share: Share):
    request = DistillRequest(
        config=CONFIG,
        spec=tiny_spec(),
        partition_id=share.partition_id,
        counts=list(share.counts),
    )
    proto = recorddict_to_proto(wire.encode_share(share))
    content = recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))
    arrived = wire.decode_share(content, request)
    assert torch.equal(arrived.images, share.images)
    assert len(arrived.teachers) == len(share.teachers)
    for found, wanted in zip(arrived.teachers, share.teachers, strict=True):
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
    for name in ("partition_id", "counts", "teacher_curve", "recover_curve", "curves", "seconds"):
        assert getattr(arrived, name) == getattr(share, name), name
