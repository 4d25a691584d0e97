"""A sweep's folder: what may join it, what is left in it, what may not be one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweeps import grown, hashes

from fedistill import comparison, config_file, grid, results, sweep, sweep_folder
from fedistill.config import SweepConfig
from fedistill.errors import OutputError
from strategies import server_app

PATHOLOGICAL = {"partition": {"name": "pathological", "classes_per_client": 5}}


def test_a_sweep_grows_by_federations_and_refuses_another_config(
    tmp_path: Path, make: Callable[..., grid.Grid]
):
    told: list[Path] = []
    first = make(SweepConfig(clients=(2,), ipc=(1,)))
    sweep.run(first, tmp_path / "sweep", "local", begun=told.append)
    assert told == [tmp_path / "sweep"]
    state = sweep.run(make(SweepConfig(clients=(1,), ipc=(1,))), tmp_path / "sweep", "local")
    assert state["axes"]["clients"] == [1, 2]
    assert [run["status"] for run in state["runs"]] == ["done", "done"]
    before = hashes(tmp_path / "sweep")
    other = make(SweepConfig(clients=(2,), ipc=(1,)), student={"epochs": 3})
    with pytest.raises(OutputError, match=r"differs in student\.epochs"):
        sweep.run(other, tmp_path / "sweep", "local", begun=told.append)
    assert len(told) == 1, "what is refused cannot be continued"
    assert hashes(tmp_path / "sweep") == before


def test_an_experiment_keeps_its_folder_whatever_axes_a_later_command_names(
    tmp_path: Path, make: Callable[..., grid.Grid]
):
    """Twice in the table it would look like two seeds."""
    sweep.run(make(SweepConfig(clients=(1,), ipc=(1,))), tmp_path / "sweep", "local")
    before = hashes(tmp_path / "sweep")
    more = make(SweepConfig(clients=(1,), ipc=(1,), alpha=("iid", 0.3), distiller=("sre2l",)))
    state = sweep.run(more, tmp_path / "sweep", "local")
    assert [run["folder"] for run in state["runs"]] == [
        "runs/clients-01_seed-0",
        "runs/clients-01_alpha-0.3_sre2l_seed-0",
    ]
    assert hashes(tmp_path / "sweep").items() > before.items()
    curves = comparison.curves(comparison.rows(tmp_path / "sweep"))
    assert {line.alpha: curve[1].n for line, curve in curves.items()} == {None: 1, 0.3: 1}
    saved = config_file.load(tmp_path / "sweep" / results.CONFIG)
    assert saved.sweep is not None
    assert saved.sweep.alpha == ("iid", 0.3)
    assert len(state["commands"]) == 1  # the same command line, that of the tests


@pytest.mark.parametrize(
    ("axes", "sections", "says"),
    [
        ({}, {"relabel": {"views": 7}}, r"relabel\.views"),
        ({}, {"data": {"name": "digits", "fraction": 0.5}}, r"data\.fraction"),
        ({"alpha": (0.3,)}, {"student": {"epochs": 3}}, r"student\.epochs"),
        ({"distiller": ("random",)}, {"teacher": {"epochs": 7}}, r"teacher\.epochs"),
        ({"distiller": ("random",), "alpha": (0.3,)}, {}, ""),
        ({"ipc": (3,)}, {"federation": {"deadline_s": 77}, "baselines": ["hard_label"]}, ""),
        ({"vary": {"relabel.views": (2,)}}, {}, ""),
        ({}, {"federation": {"slots": "histogram"}}, r"federation\.slots"),
        ({}, {"federation": {"dropout": 0.5}}, r"federation\.dropout"),
        ({"distiller": ("random",)}, PATHOLOGICAL, r"partition\.name"),
    ],
)
def test_only_what_can_be_compared_joins_a_sweep(
    tmp_path: Path, make: Callable[..., grid.Grid], axes: Any, sections: Any, says: str
):
    """One chart would show as one line what differs in more than the number of clients."""
    first = make(SweepConfig(clients=(2,), ipc=(1,)))
    output = tmp_path / "sweep"
    output.mkdir()
    sweep_folder.claim(first, output, [it.as_dict() for it in first.federations], [])
    other = make(SweepConfig(**{"clients": (3,), "ipc": (1,), **axes}), **sections)
    if says:
        with pytest.raises(OutputError, match=says):
            sweep_folder.check(other, output)
    else:
        sweep_folder.check(other, output)


@pytest.mark.parametrize(
    "sections",
    [{"baselines": ["hard_label"]}, {"federation": {"deadline_s": 77}}, {"name": "other"}],
)
def test_a_federation_has_one_place_whatever_axes_a_later_command_names(
    tmp_path: Path, make: Callable[..., grid.Grid], sections: Any
):
    """In a folder of its own the same students would be counted twice."""
    first = make(SweepConfig(clients=(2,), ipc=(1,)))
    sweep_folder.claim(first, tmp_path, [it.as_dict() for it in first.federations], [])
    more = make(SweepConfig(clients=(2,), ipc=(1,), alpha=("iid", 0.3)), **sections)
    key = next(iter(sections))
    with pytest.raises(OutputError, match=rf"that of runs/clients-02_seed-0, with another {key}"):
        sweep_folder.check(sweep_folder.with_known_names(more, tmp_path), tmp_path)


@pytest.mark.parametrize("method", ["mibdc", "nested"])
def test_sizes_that_are_made_together_stay_as_they_are(
    tmp_path: Path, make: Callable[..., grid.Grid], method: str
):
    """Beside other sizes the set of an IPC is another one."""

    def grid_of(clients: int, *ipc: int) -> grid.Grid:
        return make(SweepConfig(clients=(clients,), ipc=ipc, distiller=(method,)))

    first = grid_of(2, 1, 2)
    sweep_folder.claim(first, tmp_path, [it.as_dict() for it in first.federations], [])
    sweep_folder.check(grid_of(3, 1, 2), tmp_path)
    with pytest.raises(OutputError, match=r"distill\.(ipc|subsets)"):
        sweep_folder.check(grid_of(3, 1, 2, 4), tmp_path)


@pytest.mark.parametrize("method", ["sre2l", "mdc", "rded"])
def test_sets_that_are_cut_out_of_the_largest_have_the_same_largest_along_a_line(
    tmp_path: Path, make: Callable[..., grid.Grid], method: str
):
    """One image of a batch of ten is not one that was made alone."""

    def grid_of(clients: int, *ipc: int) -> grid.Grid:
        return make(SweepConfig(clients=(clients,), ipc=ipc, distiller=(method,)))

    grown(tmp_path / "sweep", grid_of(2, 1, 4))
    grown(tmp_path / "sweep", grid_of(3, 2, 4))
    grown(tmp_path / "sweep", grid_of(4, 5))  # no set in common
    with pytest.raises(OutputError, match=r"differs in distill\.ipc"):
        grown(tmp_path / "sweep", grid_of(5, 1, 2))
    grown(tmp_path / "apm", make(SweepConfig(clients=(2,), ipc=(1, 4), distiller=("apm",))))
    own_images = make(SweepConfig(clients=(3,), ipc=(1, 2), distiller=("apm",)))
    assert grown(tmp_path / "apm", own_images) == ["apm"]


def test_data_in_another_folder_of_the_same_name_are_other_data(
    tmp_path: Path, make: Callable[..., grid.Grid]
):
    def grid_of(folder: str) -> grid.Grid:
        place = tmp_path / folder / "images"
        place.mkdir(parents=True)
        return make(SweepConfig(clients=(2,), ipc=(1,)), data={"name": str(place)})

    first, other = grid_of("one"), grid_of("two")
    hashes = {config_file.sha256(it.federations[0].config) for it in (first, other)}
    assert len(hashes) == 1, "a record tells no paths"
    grown(tmp_path / "sweep", first)
    with pytest.raises(OutputError, match=r"differs in data\.name"):
        grown(tmp_path / "sweep", other)


def test_a_split_without_alpha_is_not_called_iid(tmp_path: Path, make: Callable[..., grid.Grid]):
    first = make(SweepConfig(clients=(2,), ipc=(1,)), **PATHOLOGICAL)
    sweep_folder.claim(first, tmp_path, [it.as_dict() for it in first.federations], [])
    for alpha in ("iid", 0.3):
        other = make(SweepConfig(clients=(3,), ipc=(1,), alpha=(alpha,)), **PATHOLOGICAL)
        with pytest.raises(OutputError, match=r"partition\.name"):
            sweep_folder.check(other, tmp_path)


def test_what_a_sweep_left_that_never_began_is_no_obstacle(
    tmp_path: Path, make: Callable[..., grid.Grid], monkeypatch: pytest.MonkeyPatch
):
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    plan = make(SweepConfig(clients=(1,), ipc=(1,)))
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "plan", stop)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(plan, tmp_path / "sweep", "local")
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == [
        ".fedistill.lock",
        "store",
    ]
    assert sweep.run(plan, tmp_path / "sweep", "local")["runs"][0]["status"] == "done"


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path: Path, make: Callable[..., grid.Grid]):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        sweep.run(make(), tmp_path / "file" / "sweep", "local")
    with pytest.raises(OutputError, match="is a file"):
        sweep.dry_run(make(), tmp_path / "sweep", tmp_path / "file")


def test_what_an_earlier_command_left_is_done_with_as_many_nodes_as_it_needs(
    tmp_path: Path, make: Callable[..., grid.Grid], monkeypatch: pytest.MonkeyPatch
):
    first = make(SweepConfig(clients=(3,), ipc=(1,)))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(server_app, "_tracked", stop)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(first, tmp_path / "sweep", "local")
    state = sweep.run(make(SweepConfig(clients=(1,), ipc=(1,))), tmp_path / "sweep", "local")
    assert {run["clients"]: run["status"] for run in state["runs"]} == {3: "done", 1: "done"}
