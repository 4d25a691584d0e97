import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from strategies.kept import KeptReplies


def request(number: int) -> RecordDict:
    return RecordDict({"request": ConfigRecord({"number": number})})


def reply(value: float) -> RecordDict:
    images = np.arange(6, dtype=np.uint8).reshape(2, 3)
    return RecordDict(
        {
            "set": ArrayRecord({"images": Array(images)}),
            "metrics": MetricRecord({"loss": value, "curve": [1.0, value]}),
        }
    )


def test_a_reply_is_found_again_by_client_kind_and_request(tmp_path):
    KeptReplies(tmp_path).put(2, "train.distill", request(1), reply(0.5))
    kept = KeptReplies(tmp_path)
    found = kept.get(2, "train.distill", request(1))
    assert found is not None
    assert found.metric_records["metrics"]["curve"] == [1.0, 0.5]
    np.testing.assert_array_equal(
        found.array_records["set"]["images"].numpy(), [[0, 1, 2], [3, 4, 5]]
    )
    assert kept.get(1, "train.distill", request(1)) is None
    assert kept.get(2, "query.label", request(1)) is None
    assert kept.get(2, "train.distill", request(2)) is None


def test_who_failed_and_who_is_who_outlive_the_server(tmp_path):
    kept = KeptReplies(tmp_path)
    assert (kept.failures, kept.roll) == ({}, {})
    kept.fail(3, "gone")
    kept.call({0: "name a", 1: "id 1"})
    again = KeptReplies(tmp_path)
    assert again.failures == {3: "gone"}
    assert again.roll == {0: "name a", 1: "id 1"}
    assert again.begun == kept.begun


def test_a_damaged_reply_is_as_good_as_none(tmp_path):
    kept = KeptReplies(tmp_path)
    kept.put(0, "train.distill", request(1), reply(0.5))
    (path,) = tmp_path.glob("*.pb")
    path.write_bytes(path.read_bytes()[:-7])
    assert kept.get(0, "train.distill", request(1)) is None


def test_nothing_is_left_behind(tmp_path):
    kept = KeptReplies(tmp_path / "replies")
    kept.put(0, "train.distill", request(1), reply(0.5))
    kept.clear()
    assert list(tmp_path.iterdir()) == []
