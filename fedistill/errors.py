"""Every error fedistill raises on purpose.

    FedistillError
    +-- UserError              the user can mend it: exit code 2, one message
    |   +-- ConfigError        a key, value or combination in the config
    |   +-- DataError          a data set that is missing, broken or unfit
    |   +-- PartitionError     a split that the data do not allow
    |   +-- ModelError         a model that does not exist or does not fit the method
    |   +-- SetError           a distilled set on disk that is not what it says
    |   +-- OutputError        an output folder that is taken or cannot be written
    +-- RunError               the run itself failed: exit code 1
        +-- ClientsFailed      fewer good clients than `federation.min_clients`
        +-- WorkerDied         a process of the simulation is gone, and what it would answer
        +-- WireError          a message that does not follow the contract

A message says what was found, where, what is accepted and what to do.
"""

import difflib
from collections.abc import Iterable


class FedistillError(Exception):
    """Base of all errors that fedistill raises on purpose."""


class UserError(FedistillError):
    """Something the user can mend; the command ends with exit code 2."""


class ConfigError(UserError):
    """The config holds a key, a value or a combination that is not accepted."""


class DataError(UserError):
    """The data set is missing, broken, or unfit for what was asked.

    Args:
        message: for those who have the data set.
        told: the same without names of files and words of libraries, where the message has such:
            a device's server is told no more.
    """

    def __init__(self, message: str, told: str = "") -> None:
        super().__init__(message)
        self.told = told or message


class PartitionError(UserError):
    """The data cannot be split as asked."""


class ModelError(UserError):
    """The model does not exist, or does not fit the method."""


class SetError(UserError):
    """A folder does not hold the distilled set that its card describes."""


class OutputError(UserError):
    """The output folder holds something else, or cannot be written."""


class RunError(FedistillError):
    """The run failed for a reason that is not in the user's input; exit code 1."""


class ClientsFailed(RunError):
    """Fewer clients delivered than `federation.min_clients` asks for."""


class WorkerDied(RunError):
    """A process of the simulation died; the whole simulation has to be started again."""


class WireError(RunError):
    """A message does not follow the contract between server and clients."""


def known_names(name: str, known: Iterable[str]) -> str:
    """Say which names are accepted, and which one the user may have meant.

    Returns:
        For example "known: apm, sre2l (did you mean 'sre2l'?)".
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"known: {', '.join(names)}{hint}"
