"""The commands. Exit code 0: success; 2: a mistake of the user's, told in one message; 1: failed.

Heavy imports stand inside the commands, so that `fedistill --help` answers at once.
"""

import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedistill.config import Protocol
from fedistill.errors import FedistillError, RunError, UserError

app = typer.Typer(
    name="fedistill",
    help="Federated dataset distillation: many clients, one small training set.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path, typer.Argument(help="A YAML file.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a key: section.key=value. May be given several times."),
]
Backend = Annotated[
    Literal["flower", "local"],
    typer.Option(help="A Flower simulation, or the same apps in this process."),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        help="Keep teachers, shares and students there, and take from there what was made before.",
        metavar="DIR",
        envvar="FEDISTILL_STORE",
    ),
]
SetFolder = Annotated[Path, typer.Argument(help="A distilled set.", metavar="SET_DIR")]


@app.command()
def run(
    context: typer.Context,
    config: ConfigPath,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(help="A new folder for the results.", metavar="DIR")
    ] = None,
    backend: Backend = "flower",
    store: StoreFolder = None,
    superlink: Annotated[
        str | None,
        typer.Option(help="Run on real devices: a SuperLink that Flower's config.toml names."),
    ] = None,
) -> None:
    """Run one experiment: clients distil, the server integrates, relabels, evaluates, tracks."""
    from fedistill import config_file, runner, tables

    if superlink is not None:
        _refuse_with_superlink(context)
    resolved = config_file.load(config, overrides or [])
    folder = output or runner.default_output(resolved)
    if superlink is None:
        result = runner.run(resolved, folder, backend, store)
    else:
        if output is None:  # whatever ends this command, the run may go on
            _say_how_to_go_on(folder)
        result = runner.deploy(resolved, folder, superlink)
    tables.print_result(result, folder)
    _write_page(folder)


@app.command()
def sweep(
    config: ConfigPath,
    clients: Annotated[
        str | None, typer.Option(help="Numbers of clients: 1,2,5.", metavar="LIST")
    ] = None,
    ipc: Annotated[str | None, typer.Option(help="Images per class: 1,10.", metavar="LIST")] = None,
    alpha: Annotated[
        str | None, typer.Option(help="Skews of the split: iid,0.5,0.1.", metavar="LIST")
    ] = None,
    distiller: Annotated[
        str | None, typer.Option(help="Methods: sre2l,lic.", metavar="LIST")
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Seeds: 0,1,2.", metavar="LIST")] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="Values of any other key; may be repeated.", metavar="KEY=LIST"),
    ] = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(help="A new folder, or that of a sweep to continue.", metavar="DIR"),
    ] = None,
    backend: Backend = "flower",
    store: StoreFolder = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and how long it takes.")
    ] = False,
) -> None:
    """Compare numbers of clients: a grid of experiments in one Flower start; can be continued."""
    from fedistill import comparison, tables
    from fedistill import grid as grids
    from fedistill import sweep as sweeps

    axes = {"clients": clients, "ipc": ipc, "alpha": alpha, "distiller": distiller, "seed": seed}
    grid = grids.load(config, overrides or [], grids.parse_axes(axes, vary or []))
    folder = output or sweeps.default_output(grid)
    if dry_run:
        plans, seconds = sweeps.dry_run(grid, folder, store)
        tables.print_plans(plans, seconds)
    else:
        try:
            begun = _say_how_to_go_on if output is None else None
            tables.print_sweep(sweeps.run(grid, folder, backend, store, begun), folder)
        except RunError:  # what is done is worth a look
            tables.print_sweep(comparison.read(folder), folder)
            _write_page(folder)
            raise
        _write_page(folder)


@app.command()
def config(
    path: Annotated[Path | None, typer.Argument(help="A YAML file.", metavar="CONFIG")] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema.")] = False,
) -> None:
    """Print the resolved config, or the JSON schema of configs."""
    import json

    from fedistill import config_check, config_file

    if schema:
        typer.echo(json.dumps(config_check.schema(), indent=2))
    elif path is None:
        raise typer.BadParameter("give a CONFIG, or --schema")
    else:
        typer.echo(config_file.dump(config_file.load(path, overrides or [])), nl=False)


@app.command()
def track(
    folder: Annotated[Path, typer.Argument(help="Of a run or a sweep.", metavar="DIR")],
    uri: Annotated[
        str | None, typer.Option(help="The store, when it is not the one that the run names.")
    ] = None,
) -> None:
    """Send to MLflow what the journals of a run or a sweep hold and the store lacks."""
    from fedistill import sweep_folder, tracking

    uri = uri or tracking.named_store(folder)  # one store for all federations of a sweep
    for recorded in sweep_folder.journals(folder):
        stored = tracking.deliver(recorded, uri)
        typer.echo(f"{recorded} is in MLflow as run {stored.run_id}")
    typer.echo(tracking.ui_command(stored.tracking_uri, stored.experiment_id))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Of a run or a sweep.", metavar="DIR")],
    output: Annotated[
        Path | None,
        typer.Option(help="Write the page there; else DIR/report.html.", metavar="FILE"),
    ] = None,
) -> None:
    """Write one HTML page about a run or a sweep; the file needs nothing beside it."""
    from fedistill import report as pages

    typer.echo(f"report: {pages.write(folder, output)}")


@app.command()
def show(
    folder: SetFolder,
    output: Annotated[
        Path | None, typer.Option(help="Write the picture there.", metavar="PNG")
    ] = None,
) -> None:
    """Describe a distilled set and draw its images."""
    from fedistill import figures, tables
    from fedistill.sets import SyntheticSet

    synthetic = SyntheticSet.load(folder)
    tables.print_set(synthetic, folder)
    picture = output or Path(f"{folder.resolve().name}.png")
    try:
        figures.image_sheet(synthetic).savefig(picture, dpi=130)
    except (OSError, ValueError) as error:
        raise UserError(f"the picture {picture} cannot be written: {error}") from error
    typer.echo(f"picture: {picture}")


@app.command()
def train(
    folder: SetFolder,
    data: Annotated[str, typer.Option(help="The data set to test on: a name or a folder.")],
    model: Annotated[
        list[str] | None, typer.Option(help="A model to train; may be given several times.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Students of each model.", min=1)] = 5,
    protocol: Annotated[
        Protocol | None,
        typer.Option(help="Student protocol; left out, the one of the set's recipe."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each student.", min=1)] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the scores there.", metavar="FILE")
    ] = None,
) -> None:
    """Train fresh students on a distilled set and test them."""
    from fedistill import consumer, tables

    scores = consumer.train(
        folder, data, models=model or [], seeds=seeds, protocol=protocol, epochs=epochs
    )
    tables.print_scores(scores, folder)
    if json_file is not None:
        from fedistill.results import write_json

        write_json(json_file, {name: score.as_dict() for name, score in scores.items()})


@app.command()
def verify(folder: SetFolder) -> None:
    """Check a distilled set against the checksums in its card."""
    from fedistill.sets import SyntheticSet

    synthetic = SyntheticSet.load(folder)
    typer.echo(f"{folder} is whole: {len(synthetic)} images, SHA-256 {synthetic.sha256}")


@app.command()
def export(
    folder: SetFolder,
    output: Annotated[Path, typer.Argument(help="A new folder.", metavar="OUT")],
    form: Annotated[
        Literal["imagefolder", "parquet", "npz"],
        typer.Option("--to", help="For whom: class folders, the hub's libraries, or NumPy."),
    ],
) -> None:
    """Write a distilled set in a form that other programs read."""
    from fedistill import export as exports
    from fedistill.sets import SyntheticSet

    synthetic = SyntheticSet.load(folder)
    written = exports.export(synthetic, form, output)
    typer.echo(f"{written}: {len(synthetic)} images")
    if synthetic.soft_labels is not None and form != "npz":
        typer.echo("hard labels alone: soft labels belong to views that fedistill replays")


@app.command()
def bench(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the numbers there.", metavar="FILE")
    ] = None,
) -> None:
    """Measure every stage's throughput, and its share of this machine's measured peak."""
    from fedistill import benchmark, tables

    measured = benchmark.measure()
    tables.print_bench(measured)
    if json_file is not None:
        from fedistill.results import write_json

        write_json(json_file, measured)


def _refuse_with_superlink(context: typer.Context) -> None:
    """Refuse options that say where a simulation works, and would be dropped on a deployment.

    Raises:
        UserError: one is given; the environment may name a store, for other runs.
    """
    for name, remedy in (
        ("backend", "leave one of them out"),
        ("store", "leave it out, and set `store` in the node config of each device"),
    ):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UserError(
                f"--{name} and --superlink are given, and --{name} is for simulations on this "
                f"machine; {remedy}"
            )


def _say_how_to_go_on(folder: Path) -> None:
    """Name the folder of a command that names none, whatever ends it."""
    place = shlex.quote(str(folder))
    typer.echo(f"to go on with this later, repeat the command with --output {place}")


def _write_page(folder: Path) -> None:
    """Write the page of what has been done; a page is not worth a run."""
    from fedistill import report as pages

    try:
        typer.echo(f"page:    {pages.write(folder)}")
    except FedistillError as error:
        typer.echo(f"fedistill: the page was not written: {error}", err=True)


def main() -> None:
    """Run a command; turn errors into a message and an exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is cleaned up
    try:
        app()
    except FedistillError as error:
        typer.echo(f"fedistill: {error}", err=True)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        typer.echo("fedistill: interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
