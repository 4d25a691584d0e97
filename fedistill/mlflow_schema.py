"""Refuse an MLflow store that this MLflow would change, or could not read.

MLflow 3.17 migrates a database of an older MLflow in place, unasked, after which the older one
cannot open it any more. That is for the user to decide. Nothing here imports mlflow, which takes
seconds: the revisions stand in the names of its migration scripts' variables.
"""

import re
import sqlite3
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from fedistill.errors import OutputError
from fedistill.journal import sqlite_path

_SCRIPTS = "store/db_migrations/versions"
_REVISION = re.compile(r"^revision\b[^=\n]*=\s*[\"'](\w+)[\"']", re.M)
_DOWN_REVISION = re.compile(r"^down_revision\b[^=\n]*=(.*)", re.M)


def check_store(uri: str) -> None:
    """Look at the schema of a sqlite store; a server looks after its own.

    Args:
        uri: of the store.

    Raises:
        OutputError: it is of another MLflow, or no store of MLflow; nothing was changed.
    """
    path = sqlite_path(uri)
    if path is None or not path.is_file() or path.stat().st_size == 0:
        return
    found = _revision_of(path)
    known, newest = _known_revisions()
    if not known or found == newest:
        return
    if found in known:
        raise OutputError(
            f"the MLflow store {path} has an older schema ({found}; the installed MLflow writes "
            f"{newest}), and using it would migrate it for good; nothing was changed: copy the "
            f"file, then run `mlflow db upgrade sqlite:///{path}`, or set tracking.uri to another "
            "store"
        )
    raise OutputError(
        f"the MLflow store {path} has the schema {found}, which the installed MLflow does not "
        "know: a newer one made it; nothing was changed: upgrade mlflow, or set tracking.uri to "
        "another store"
    )


def _revision_of(path: Path) -> str:
    """Read the schema's revision; refuse a file that is no store of MLflow."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            return str(database.execute("select version_num from alembic_version").fetchone()[0])
    except (sqlite3.Error, TypeError) as error:
        raise OutputError(
            f"{path} is not a store of MLflow ({error}); nothing was changed: set tracking.uri to "
            "another file, for example sqlite:///mlflow.db"
        ) from error


def _known_revisions() -> tuple[set[str], str]:
    """Return the revisions that the installed MLflow knows, and the one that it writes."""
    package = find_spec("mlflow")
    if package is None or package.origin is None:
        return set(), ""
    known, followed = set(), set()
    for path in (Path(package.origin).parent / _SCRIPTS).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        revision, before = _REVISION.search(text), _DOWN_REVISION.search(text)
        if revision is not None:
            known.add(revision[1])
            followed |= set(re.findall(r"[\"'](\w+)[\"']", before[1] if before else ""))
    newest = known - followed
    return (known, newest.pop()) if len(newest) == 1 else (set(), "")
