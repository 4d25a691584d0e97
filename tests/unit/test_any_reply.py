"""Anything in the place of anything in a reply: property-based."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from replies import REPLIES, SHARE, TEACHER, raw_header, sent

from fedistill.counts import Counts
from fedistill.errors import WireError
from fedistill.shares import Share
from fedistill.wire import Description

scalars = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    st.lists(st.floats(), max_size=5),
)
values = st.one_of(
    scalars,
    st.booleans(),
    st.text(max_size=30),
    st.binary(max_size=30),
    st.lists(st.booleans(), max_size=3),
    st.lists(st.text(max_size=9), max_size=3),
)
shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)
arrays = st.one_of(
    st.builds(np.zeros, shapes, st.sampled_from(["u1", "f4", "f2", "i8", "c8", "?", "U2", "M8[s]"]))
    .map(Array),
    st.builds(
        Array,
        st.text(max_size=8),
        st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
        st.sampled_from(["numpy.ndarray", "pickle", ""]),
        st.one_of(
            st.binary(max_size=200),
            st.text(max_size=150).map(lambda text: raw_header(text).data),
        ),
    ),
)  # fmt: skip
keys = st.one_of(st.text(max_size=12), st.sampled_from(["images", "counts", "name", "logits"]))
any_record = st.one_of(
    st.dictionaries(keys, scalars, max_size=3).map(MetricRecord),
    st.dictionaries(keys, values, max_size=3).map(ConfigRecord),
    st.dictionaries(keys, arrays, max_size=3).map(ArrayRecord),
)


@st.composite
def tampered(draw: st.DrawFn) -> tuple[str, RecordDict]:
    """A good reply with one to three things changed, added or taken away."""
    reply = draw(st.sampled_from(sorted(REPLIES)))
    content = REPLIES[reply].make()
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.one_of(st.sampled_from(sorted(content) or ["set"]), st.text(max_size=9)))
        record = content.get(name)
        action = draw(st.sampled_from(["record", "value", "value", "value", "key", "drop", "gone"]))
        if record is None or action == "record":
            content[name] = draw(any_record)
        elif action == "gone":
            del content[name]
        else:
            known = st.sampled_from(sorted(record)) if record else keys
            key = draw(keys if action == "key" else known)
            if action == "drop":
                record.pop(key, None)
            elif isinstance(record, ArrayRecord):
                record[key] = draw(arrays)
            else:
                record[key] = draw(scalars if isinstance(record, MetricRecord) else values)
    return reply, content


@settings(max_examples=150)
@given(case=tampered())
def test_whatever_arrives_is_read_as_a_good_reply_or_is_a_wire_error(
    case: tuple[str, RecordDict],
):
    reply, content = case
    try:
        found = REPLIES[reply].read(sent(content))
    except WireError:
        return
    if isinstance(found, Share):
        assert found.images.shape == SHARE.images.shape
        assert found.counts == SHARE.counts
        assert {name: it.shape for name, it in found.teachers[0].items()} == {
            name: it.shape for name, it in TEACHER.items()
        }
        assert all(np.isfinite(value) for _, value in [*found.teacher_curve, *found.recover_curve])
        assert all(0 <= value < np.inf for value in found.seconds.values())
    elif isinstance(found, Description):
        assert len(found.histogram) == 3
        assert min(found.histogram) >= 0
        assert found.name.isprintable()
        assert len(found.name) <= 64
    elif isinstance(found, Counts):
        assert sum(found.images) == 10
        assert all(
            right <= images
            for row in found.correct
            for right, images in zip(row, found.images, strict=True)
        )
    else:
        assert found.shape == (12, 3)
        assert found.isfinite().all()
