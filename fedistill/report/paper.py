"""The paper's numbers beside ours: only where data, method, network, split and labels are its."""

from collections.abc import Sequence

from fedistill import comparison, published
from fedistill.comparison import Row
from fedistill.report.page import Block, Table, Text, score
from fedistill.report.recorded import Run


def beside_paper(rows: Sequence[Row]) -> list[Block]:
    """Return the cells that the paper has too, with the difference.

    Empty for data that the paper's tables are not about; one sentence where the data are theirs
    and something else is not.
    """
    fitting, reasons = [], {}
    paper = None
    for row in rows:
        run = Run.read(row.folder)
        found = published.table(run.config)
        if found is None:
            continue
        paper = found
        wrong = published.differences(found, run.config, run.partition.get("histograms", []))
        if run.result.get("evaluated_on", "test") != "test":
            wrong.append("not tested on the test split")
        if run.result["absent_clients"]:
            wrong.append("clients were absent")
        reasons.update(dict.fromkeys(wrong))
        if not wrong:
            fitting.append(row)
    if paper is None:
        return []
    if not fitting:
        return [
            Text(
                f"{paper.name} of {published.PAPER} is of the same data and not of the same "
                f"setting, so it is not shown here: {'; '.join(reasons)}."
            )
        ]
    return [_table(paper, fitting), Text(_caution(fitting[0]))]


def _table(paper: published.Published, rows: Sequence[Row]) -> Table:
    curves, names = comparison.curves(rows), comparison.facets(row.line for row in rows)
    several = len(names) > 1
    lines = []
    for line, curve in curves.items():
        for clients, point in curve.items():
            theirs = paper.top1(line.ipc, clients)
            if theirs is not None:
                ours = [f"{line.ipc}", f"{clients}", score(*point), f"{point.n}"]
                compared = [f"{theirs:.1f}", f"{point.mean - theirs:+.2f}"]
                lines.append([names[line.facet]] * several + ours + compared)
    for facet, tested in comparison.teachers(rows).items():
        for clients, mean in tested.items():
            if clients <= len(paper.teachers):
                theirs = paper.teachers[clients - 1]
                ours = ["teachers", f"{clients}", f"{mean:.2f}", "-"]
                compared = [f"{theirs:.1f}", f"{mean - theirs:+.2f}"]
                lines.append([names[facet]] * several + ours + compared)
    return Table(
        [comparison.facets_are(curves)] * several
        + ["IPC", "N", "ours", "n", "paper", "difference"],
        lines,
        names=int(several),
        caption=f"Ours beside {paper.name} of {published.PAPER}, {published.DOI}; in percent.",
    )


def _caution(row: Row) -> str:
    config = Run.read(row.folder).config
    return (
        "The same data, network, method, split and labels. The paper does not print all of its "
        f"settings; ours are: teachers {config['teacher']['epochs']} epochs, recover "
        f"{config['distill'].get('iterations')} iterations, student protocol "
        f"{config['student']['protocol']}. The paper chose N on the test split."
    )
