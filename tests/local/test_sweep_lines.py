"""Which line of a sweep a federation belongs to, where any key may be varied."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from split_folders import write_central
from sweeps import grown

from fedistill import comparison, grid, results, sweep, sweep_folder
from fedistill.config import SweepConfig
from fedistill.errors import OutputError


@pytest.mark.parametrize(
    "vary",
    [
        {"federation.min_clients": (1, 2)},
        {"federation.deadline_s": (60.0, 600.0), "relabel.views": (2, 3)},
        {"teacher.epochs": (1, 2)},
    ],
    ids=["along a line", "both", "from line to line"],
)
def test_a_varied_sweep_goes_on_and_grows(
    tmp_path: Path, make: Callable[..., grid.Grid], vary: Any
):
    """Also where a value of what is varied is one that might change along a line."""

    output = tmp_path / "sweep"
    output.mkdir()

    def grown(*clients: int) -> grid.Grid:
        axes = SweepConfig(clients=clients, ipc=(1,), vary=vary)
        found = sweep_folder.with_known_names(make(axes), output)
        sweep_folder.check(found, output)
        sweep_folder.claim(found, output, [it.as_dict() for it in found.federations], [])
        return found

    first, again, more = grown(2), grown(2), grown(3)
    assert [it.as_dict() for it in again.federations] == [it.as_dict() for it in first.federations]
    assert [it.method for it in more.federations] == [it.method for it in first.federations]
    assert len({it.method for it in more.federations}) == len(more.federations)


def test_a_varied_key_that_others_follow_from_goes_on_and_grows(
    tmp_path: Path, make: Callable[..., grid.Grid]
):
    """The students' protocol says how they are shown images, and more."""

    def protocols(*clients: int, names: Sequence[str] = ("default", "rded")) -> grid.Grid:
        vary = {"student.protocol": names}
        return make(SweepConfig(clients=clients, ipc=(1,), vary=vary), relabel={"views": 2})

    default, rded = (it.config.student for it in protocols(2).federations)
    assert default.ema != rded.ema, "what follows from it"
    names = ["sre2l (student.protocol default)", "sre2l (student.protocol rded)"]
    assert grown(tmp_path / "sweep", protocols(2)) == names
    assert grown(tmp_path / "sweep", protocols(2)) == names
    assert grown(tmp_path / "sweep", protocols(3)) == names
    more = protocols(2, 3, names=("edc",))
    assert grown(tmp_path / "sweep", more) == ["sre2l (student.protocol edc)"] * 2


@pytest.mark.parametrize(
    "axes",
    [
        {"clients": (3,), "vary": {"student.protocol": ("default", "rded")}},
        {"clients": (2,), "vary": {"student.protocol": ("edc",)}},
        {"clients": (2,), "distiller": ("random",)},
        {"clients": (3,)},
    ],
    ids=["the same lines", "another value", "another method", "no value"],
)
def test_what_would_follow_from_a_varied_key_cannot_be_set_apart_from_it(
    tmp_path: Path, make: Callable[..., grid.Grid], axes: Any
):
    """Lines of a method would mix two ways of training, or stand beside one of another."""
    vary = {"student.protocol": ("default", "rded")}
    grown(
        tmp_path / "sweep",
        make(SweepConfig(clients=(2,), ipc=(1,), vary=vary), relabel={"views": 2}),
    )
    other = make(
        SweepConfig(**{"ipc": (1,), **axes}),
        relabel={"views": 2},
        student={"epochs": 2, "lr": 0.5},
    )
    with pytest.raises(OutputError, match=r"differs in .*student\.lr"):
        grown(tmp_path / "sweep", other)


def test_a_value_is_varied_apart_from_a_line_that_has_several(
    tmp_path: Path, make: Callable[..., grid.Grid]
):
    def waiting(clients: int, seconds: float) -> grid.Grid:
        axes = SweepConfig(clients=(clients,), ipc=(1,))
        return make(axes, federation={"deadline_s": seconds})

    assert (
        grown(tmp_path / "sweep", waiting(2, 60.0))
        == grown(tmp_path / "sweep", waiting(3, 600.0))
        == ["sre2l"]
    )
    axes = SweepConfig(clients=(2, 4), ipc=(1,), vary={"federation.deadline_s": (60.0, 600.0)})
    names = grown(tmp_path / "sweep", make(axes))
    assert names[0] == "sre2l"  # it is there
    assert names[1:] == [f"sre2l (federation.deadline_s {n})" for n in ("60.0", "600.0", "600.0")]


def test_two_federations_of_one_command_have_no_place_in_common(
    tmp_path: Path, make: Callable[..., grid.Grid]
):
    first = make(SweepConfig(clients=(2,), ipc=(1,), vary={"relabel.views": (2, 3)}))
    sweep_folder.claim(first, tmp_path, [], [])
    alike = replace(first, federations=[replace(it, method="sre2l") for it in first.federations])
    with pytest.raises(OutputError, match=r"with another relabel\.views"):
        sweep_folder.check(alike, tmp_path)


def test_what_is_varied_later_has_lines_of_its_own(tmp_path: Path, make: Callable[..., grid.Grid]):
    first = make(SweepConfig(clients=(2,), ipc=(1,)))
    sweep_folder.claim(first, tmp_path, [it.as_dict() for it in first.federations], [])
    axes = SweepConfig(clients=(3,), ipc=(1,), vary={"federation.deadline_s": (60.0, 600.0)})
    more = sweep_folder.with_known_names(make(axes), tmp_path)
    sweep_folder.check(more, tmp_path)
    assert len({it.method for it in more.federations} | {"sre2l"}) == 3


def test_a_line_keeps_its_name_when_one_of_its_values_is_varied_later(
    tmp_path: Path, make: Callable[..., grid.Grid]
):
    first = make(SweepConfig(clients=(1, 3), ipc=(1,)), relabel={"views": 2})
    sweep_folder.claim(first, tmp_path, [it.as_dict() for it in first.federations], [])
    axes = SweepConfig(clients=(1, 2), ipc=(1,), vary={"relabel.views": (2, 3)})
    more = sweep_folder.with_known_names(make(axes, relabel={"views": 2}), tmp_path)
    sweep_folder.check(more, tmp_path)
    methods = {it.config.relabel.views: it.method for it in more.federations}
    assert methods == {2: "sre2l", 3: "sre2l (relabel.views 3)"}
    assert more.axes["distiller"] == ["sre2l", "sre2l (relabel.views 3)"]


def test_a_varied_sweep_of_a_folder_beside_it_grows(
    tmp_path: Path, make: Callable[..., grid.Grid], monkeypatch: pytest.MonkeyPatch
):
    """The folder's path is made absolute; what follows from a varied key is still found."""
    monkeypatch.chdir(tmp_path)
    write_central(tmp_path / "images", each=12)

    def plans(*protocols: str) -> int:
        axes = SweepConfig(clients=(1,), ipc=(1,), vary={"student.protocol": protocols})
        found = make(axes, data={"name": "images", "fraction": 1.0})
        if not (tmp_path / "sweep").exists():
            sweep.run(found, tmp_path / "sweep", "local")
        return len(sweep.dry_run(found, tmp_path / "sweep", None)[0])

    assert plans("default") == 1
    assert plans("default", "rded") == 2
    (tmp_path / "images").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "moved").rename(tmp_path / "elsewhere" / "images")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert plans("default") == 1, "it goes on where its data were moved"


def test_a_federation_that_joins_a_line_keeps_its_own_choice(
    tmp_path: Path, make: Callable[..., grid.Grid]
):
    def more(clients: int, epochs: int, **vary: tuple[int, ...]) -> list[str]:
        keys = {key.replace("_", ".", 1): values for key, values in vary.items()}
        axes = SweepConfig(clients=(clients,), ipc=(1,), vary=keys)
        return grown(tmp_path / "sweep", make(axes, teacher={"epochs": epochs}))

    assert more(1, 1) == ["sre2l"]
    more(1, 1, student_epochs=(5, 6))
    assert more(2, 2, teacher_epochs=(1, 3)) == ["sre2l", "sre2l (teacher.epochs 3)"]


@pytest.mark.parametrize(
    ("key", "values", "sections"),
    [
        ("student.batch_size.1", (8, 16), {"student": {"batch_size": {1: 4}, "epochs": 2}}),
        ("model", ("convnet", "resnet18"), {}),
        ("teacher.weight_decay", (1e-5, 1e-6), {}),
        ("student.ema", (None, 0.5), {}),
    ],
)
def test_any_key_may_be_varied_and_the_sweep_grows(
    tmp_path: Path, make: Callable[..., grid.Grid], key: str, values: Any, sections: Any
):
    for clients in (1, 2):
        axes = SweepConfig(clients=(clients,), ipc=(1,), vary={key: values})
        assert len({*grown(tmp_path / "sweep", make(axes, **sections))}) == 2


def test_what_an_older_version_wrote_down_as_varied_is_no_obstacle(
    tmp_path: Path, make: Callable[..., grid.Grid]
):
    """It listed what follows from a key as well, and items of lists by their number."""
    vary = {"model.width": (8, 16)}
    grown(tmp_path / "sweep", make(SweepConfig(clients=(1,), ipc=(1,), vary=vary)))
    path = tmp_path / "sweep" / comparison.SWEEP
    state = results.read_json(path)
    for run in state["runs"]:
        run["varied"] += ["student.models.0.width", "student.batch_size.1"]
    results.write_json(path, state)
    again = grown(tmp_path / "sweep", make(SweepConfig(clients=(2,), ipc=(1,), vary=vary)))
    assert again == ["sre2l (model.width 8)", "sre2l (model.width 16)"]


def test_what_was_varied_is_not_set_to_what_no_line_has(
    tmp_path: Path, make: Callable[..., grid.Grid]
):
    """Its name would not say so."""
    vary = {"teacher.epochs": (1, 2)}
    grown(tmp_path / "sweep", make(SweepConfig(clients=(1,), ipc=(1,), vary=vary)))
    axes = SweepConfig(clients=(1,), ipc=(1,), distiller=("random",))
    with pytest.raises(OutputError, match=r"differs in teacher\.epochs"):
        grown(tmp_path / "sweep", make(axes, teacher={"epochs": 70}))
    assert grown(tmp_path / "sweep", make(axes, teacher={"epochs": 2})) == ["random"]
