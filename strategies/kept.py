"""What clients have answered in this run, on the server's disk.

A ServerApp that was killed and starts again replays its own steps: the same config makes the same
requests, and a request that was answered before is read from here in place of being sent again.
So the run goes on where it was, and ends with the same set. That a client failed at a request, and
which device has which partition id, is kept too: a second life must not deal the work in another
way. It may when the first has ended because of its clients or its config: what was wrong may be
mended by then, so who failed is asked again, and others may join.

Messages are stored as Flower serialises them (protobuf, never pickle), each file written in one
step. The folder holds teachers: it is removed when the run has its result.
"""

import hashlib
import shutil
import time
from collections.abc import Mapping
from logging import WARNING
from pathlib import Path
from typing import Any

from flwr.app import RecordDict
from flwr.common import log
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto
from google.protobuf.message import DecodeError

from fedistill import records, results
from fedistill.errors import WireError

_BEGUN, _ROLL, _FAILED, _MENDED = "begun.json", "roll.json", "failed.json", "mended.json"
_REPLY, _FAILURE = ".pb", ".json"  # endings of what there is about one request


class KeptReplies:
    """A folder of good replies, and of failures.

    Args:
        folder: of this run.
        mended: the run has ended in an error before that may be mended now.

    Attributes:
        roll: the identity of each partition id (`roll_call.py`), once it is known.
        nodes: the node id that each has had when the roll was called.
        absent: why no device has some partition ids.
        begun: when the run began, in seconds since the epoch; before the server died, perhaps.
        mended: failures of an earlier life are forgotten, and the roll is called again.
    """

    def __init__(self, folder: Path, mended: bool = False) -> None:
        self.folder = folder
        begun = self._read(_BEGUN) or {"at": time.time()}
        self._write(_BEGUN, begun)
        self.begun = float(begun["at"])
        if mended:
            self._write(_MENDED, {"at": time.time()})
            for client in self._read(_FAILED):
                self.forget(int(client))
            (folder / _FAILED).unlink(missing_ok=True)
            # Who labels or tests no more is not left out of the run: its failure alone is kept.
            for path in folder.glob(f"*-*{_FAILURE}"):
                path.unlink(missing_ok=True)
        self.mended = (folder / _MENDED).is_file()
        found = self._read(_ROLL)
        self.roll = {int(client): str(who) for client, who in found.get("roll", {}).items()}
        self.absent = {int(client): str(why) for client, why in found.get("absent", {}).items()}
        self.nodes = {int(client): int(node) for client, node in found.get("nodes", {}).items()}

    def get(self, client: int, message_type: str, request: RecordDict) -> RecordDict | None:
        """Return what a client has answered to this very request, if it has."""
        path = self._path(client, message_type, request, _REPLY)
        try:
            content = path.read_bytes()
            if not content:  # a power cut may leave a file without what was written to it
                return None
            return recorddict_from_proto(Proto.FromString(content))
        except FileNotFoundError:
            return None
        except (DecodeError, OSError, ValueError) as error:
            log(WARNING, "%s is damaged (%s); client %s is asked again", path, error, client)
            return None

    def put(self, client: int, message_type: str, request: RecordDict, reply: RecordDict) -> None:
        """Keep a reply.

        Raises:
            WireError: Flower cannot serialise it; who read it may not have looked at all of it.
        """
        try:
            content = recorddict_to_proto(reply).SerializeToString()
        except (TypeError, ValueError) as error:
            raise WireError(f"it cannot be kept: {records.plain(str(error))}") from error
        results.write_whole(self._path(client, message_type, request, _REPLY), content)

    def failure(self, client: int, message_type: str, request: RecordDict) -> str | None:
        """Return why a client has not answered this very request, if it has failed at it."""
        found = self._read(self._path(client, message_type, request, _FAILURE).name)
        return str(found["why"]) if "why" in found else None

    def fail(self, client: int, message_type: str, request: RecordDict, why: str) -> None:
        """Keep that a client has failed at a request."""
        self._write(self._path(client, message_type, request, _FAILURE).name, {"why": why})

    def left_out(self, client: int) -> None:
        """Keep that a client is left out, whatever it has answered before."""
        self._write(_FAILED, {**self._read(_FAILED), str(client): True})

    def call(
        self, roll: Mapping[int, str], absent: Mapping[int, str], nodes: Mapping[int, int]
    ) -> None:
        """Keep who is who, at which node, and who is not there."""
        for client, who in roll.items():
            if self.roll.get(client, who) != who:  # its place was another's
                self.forget(client)
        self.roll, self.absent, self.nodes = dict(roll), dict(absent), dict(nodes)
        tree = {
            name: {str(client): it for client, it in told.items()}
            for name, told in (("roll", roll), ("absent", absent), ("nodes", nodes))
        }
        self._write(_ROLL, tree)
        (self.folder / _MENDED).unlink(missing_ok=True)
        self.mended = False

    def forget(self, client: int) -> None:
        """Remove all that a client has said."""
        for path in self.folder.glob(f"*-{client}-*"):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything: the run has its result."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, client: int, message_type: str, request: RecordDict, ending: str) -> Path:
        content = recorddict_to_proto(request).SerializeToString(deterministic=True)
        digest = hashlib.sha256(content).hexdigest()[:24]
        return self.folder / f"{message_type}-{client}-{digest}{ending}"

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            return results.read_json(path) if path.is_file() else {}
        except ValueError as error:
            log(WARNING, "%s is damaged (%s); it is passed over", path, error)
            return {}

    def _write(self, name: str, tree: Mapping[str, Any]) -> None:
        results.write_json(self.folder / name, tree)
