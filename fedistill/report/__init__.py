"""One HTML page about a run or a sweep, in one file that needs nothing beside it."""

from pathlib import Path

from fedistill import comparison, results
from fedistill.errors import OutputError
from fedistill.report.run import build as build_run
from fedistill.report.sweep import build as build_sweep

FILE = "report.html"


def write(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a folder.

    Args:
        folder: of `fedistill run` or `fedistill sweep`.
        output: the file; None: report.html in the folder.

    Raises:
        OutputError: the folder holds neither, its run has not finished, or the file cannot be
            written.
    """
    output = output or folder / FILE
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give a file, such as {output / FILE}")
    if (folder / comparison.SWEEP).is_file():
        build = build_sweep
    elif (folder / results.RESULT).is_file():
        build = build_run
    else:
        raise OutputError(_neither(folder))
    try:
        page = build(folder, output)
    except KeyError as error:
        raise OutputError(
            f"a file in {folder} lacks the key {error}: it was not written by this version of "
            "fedistill; report it with the version that wrote it"
        ) from error
    results.write_whole(output, page.html().encode())
    return output


def _neither(folder: Path) -> str:
    """Say what is wrong with a folder that cannot be reported."""
    if not folder.is_dir():
        return f"there is no folder {folder}; give the output folder of a run or of a sweep"
    if (folder / results.CONFIG).is_file():
        failure = results.read_failure(folder)
        why = f"it failed: {failure['message']}" if failure else "it still runs, or was stopped"
        return f"the run in {folder} has not finished: no {results.RESULT} ({why})"
    return (
        f"{folder} holds neither a run ({results.RESULT}) nor a sweep ({comparison.SWEEP}); give "
        "the output folder of `fedistill run` or `fedistill sweep`"
    )
