import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedistill.errors import WireError
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


@pytest.mark.parametrize(("dtype", "shape"), [("uint8", (2**70,)), ("\ud800", (1,))])
def test_what_cannot_be_serialised_is_not_kept(tmp_path, dtype: str, shape: tuple[int, ...]):
    odd = RecordDict({"set": ArrayRecord({"images": Array(dtype, shape, "numpy.ndarray", b"")})})
    with pytest.raises(WireError, match="it cannot be kept: "):
        KeptReplies(tmp_path).put(0, "train.distill", request(1), odd)
    assert not list(tmp_path.glob("*.pb*"))


def test_who_failed_and_who_is_who_outlive_the_server(tmp_path):
    kept = KeptReplies(tmp_path)
    assert (kept.absent, kept.roll) == ({}, {})
    kept.fail(3, "train.distill", request(1), "gone")
    kept.call({0: "name a", 1: "id 1"}, {2: "nobody came"}, {0: 2**64 - 1, 1: 7})
    again = KeptReplies(tmp_path)
    assert again.failure(3, "train.distill", request(1)) == "gone"
    assert again.failure(3, "train.distill", request(2)) is None
    assert again.roll == {0: "name a", 1: "id 1"}
    assert again.absent == {2: "nobody came"}
    assert again.nodes == {0: 2**64 - 1, 1: 7}
    assert again.begun == kept.begun


def test_a_mended_run_forgets_those_who_failed_until_the_roll_is_called(tmp_path):
    kept = KeptReplies(tmp_path)
    kept.call({0: "name a", 1: "name b", 11: "name c"}, {}, {})
    for client in (0, 1, 11):
        kept.put(client, "train.distill", request(1), reply(0.5))
    kept.left_out(1)
    for mended in (True, False):  # it may be killed before it has called the roll
        again = KeptReplies(tmp_path, mended)
        assert again.mended
        assert again.get(1, "train.distill", request(1)) is None
        assert again.get(11, "train.distill", request(1)) is not None
    again.call({0: "name z", 11: "name c"}, {}, {})
    assert again.get(0, "train.distill", request(1)) is None  # it was a's
    assert again.get(11, "train.distill", request(1)) is not None
    assert not KeptReplies(tmp_path).mended


@pytest.mark.parametrize("message_type", ["query.label", "query.evaluate"])
def test_a_mended_run_forgets_failures_of_clients_that_it_did_not_leave_out(tmp_path, message_type):
    kept = KeptReplies(tmp_path)
    kept.put(1, message_type, request(1), reply(0.5))
    kept.fail(2, message_type, request(2), "its disk is full")
    assert KeptReplies(tmp_path).failure(2, message_type, request(2)) == "its disk is full"
    for mended in (True, False):
        again = KeptReplies(tmp_path, mended)
        assert again.failure(2, message_type, request(2)) is None
        assert again.get(1, message_type, request(1)) is not None
        assert again.begun == kept.begun


def test_files_that_a_power_cut_has_emptied_are_passed_over(tmp_path):
    kept = KeptReplies(tmp_path)
    kept.call({0: "name a"}, {}, {})
    kept.put(0, "train.distill", request(1), reply(0.5))
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    again = KeptReplies(tmp_path)
    assert again.roll == {}
    assert again.get(0, "train.distill", request(1)) is None


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
