"""What clients have answered in this run, on the server's disk.

A ServerApp that was killed and starts again replays its own steps: the same config makes the same
requests, and a request that was answered before is read from here in place of being sent again.
So the run goes on where it was, and ends with the same set. Who has failed, and which device has
which partition id, is kept too: a second life must not deal the work in another way.

Messages are stored as Flower serialises them (protobuf, never pickle), each file written in one
step. The folder holds teachers: it is removed when the run has its result.
"""

import hashlib
import shutil
import time
from collections.abc import Mapping
from logging import WARNING
from pathlib import Path

from flwr.app import RecordDict
from flwr.common import log
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto
from google.protobuf.message import DecodeError

from fedistill import results

_BEGUN, _ROLL = "begun.json", "roll.json"
_FAILURES = "failures.json"


class KeptReplies:
    """A folder of good replies.

    Args:
        folder: of this run; it is made when there is something to keep.

    Attributes:
        failures: why a client was left out, by partition id.
        roll: the identity of each partition id (`roll_call.py`), once it is known.
        begun: when the run began, in seconds since the epoch; before the server died, perhaps.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / _BEGUN).is_file():
            results.write_json(folder / _BEGUN, {"at": time.time()})
        self.begun: float = results.read_json(folder / _BEGUN)["at"]
        self.failures = {int(client): why for client, why in self._read(_FAILURES).items()}
        self.roll = {int(client): identity for client, identity in self._read(_ROLL).items()}

    def get(self, client: int, message_type: str, request: RecordDict) -> RecordDict | None:
        """Return what a client has answered to this very request, if it has."""
        path = self._path(client, message_type, request)
        try:
            return recorddict_from_proto(Proto.FromString(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (DecodeError, OSError, ValueError) as error:
            log(WARNING, "%s is damaged (%s); client %s is asked again", path, error, client)
            return None

    def put(self, client: int, message_type: str, request: RecordDict, reply: RecordDict) -> None:
        """Keep a reply."""
        path = self._path(client, message_type, request)
        results.write_whole(path, recorddict_to_proto(reply).SerializeToString())

    def fail(self, client: int, reason: str) -> None:
        """Keep why a client is left out."""
        self.failures[client] = reason
        self._write(_FAILURES, self.failures)

    def call(self, roll: Mapping[int, str]) -> None:
        """Keep who is who."""
        self.roll = dict(roll)
        self._write(_ROLL, self.roll)

    def clear(self) -> None:
        """Remove everything: the run has its result."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, client: int, message_type: str, request: RecordDict) -> Path:
        content = recorddict_to_proto(request).SerializeToString(deterministic=True)
        digest = hashlib.sha256(content).hexdigest()[:24]
        return self.folder / f"{message_type}-{client}-{digest}.pb"

    def _read(self, name: str) -> dict[str, str]:
        path = self.folder / name
        return results.read_json(path) if path.is_file() else {}

    def _write(self, name: str, tree: Mapping[int, str]) -> None:
        results.write_json(self.folder / name, {str(key): value for key, value in tree.items()})
