"""Published numbers on the page of a sweep: beside the same setting, and beside nothing else."""

from functools import partial
from pathlib import Path
from typing import Any

import made_up
import pytest
import yaml
from fakes import tiny_tree
from pages import Reader, read

CIFAR10 = {"data": {"name": "cifar10", "fraction": 1.0}, "student": {"models": ["resnet18"]}}


def resnet_sweep(
    folder: Path, monkeypatch: pytest.MonkeyPatch, distillers=("sre2l",), **sections
) -> Reader:
    """A sweep in the paper's setting, but for the sections given."""

    def tree(**own):
        return {**tiny_tree(**own), "model": {"name": "resnet18"}}

    monkeypatch.setattr(made_up, "tiny_tree", tree)
    return read(
        made_up.sweep_folder(
            folder,
            clients=(1,),
            ipc=(7, 10),
            seeds=(0,),
            histograms=[[5000] * 10],
            distillers=distillers,
            sections={**CIFAR10, **sections},
        )
    )


def test_the_paper_stands_beside_the_same_setting_cell_by_cell(tmp_path, monkeypatch):
    page = resnet_sweep(tmp_path / "s", monkeypatch)
    assert "Beside the paper's table" in page.headings
    ours = made_up.made_up(10, 1, 0)
    mean = sum(ours) / 2
    plus_minus = "\N{PLUS-MINUS SIGN}"
    assert f"10 1 {mean:.2f} {plus_minus} 0.35 2 27.2 {mean - 27.2:+.2f}" in page.text
    assert "teachers 1 88.12 - 94.8 -6.67" in page.text  # 88.125 - 94.8
    assert "Table 3, CIFAR-10 of Distributed Boosting" in page.text
    assert "7 1 12.32 \N{PLUS-MINUS SIGN} 0.35 2" not in page.text  # the paper has no IPC 7


def test_the_paper_stands_beside_every_choice_of_what_is_varied(tmp_path, monkeypatch):
    page = resnet_sweep(tmp_path / "s", monkeypatch, ("sre2l (lr 1)", "sre2l (lr 2)"))
    for method in ("sre2l (lr 1)", "sre2l (lr 2)"):
        assert f"{method} 10 1 12.35" in page.text
        assert f"{method} teachers 1 88.12" in page.text


def test_the_paper_stands_beside_no_other_setting(tmp_path, monkeypatch):
    page = resnet_sweep(tmp_path / "s", monkeypatch, teacher={"count": 2})
    assert "not of the same setting, so it is not shown here: teacher.count is 2." in page.text
    assert "27.2" not in page.text


def dirichlet_sweep(
    folder: Path,
    data: str,
    clients: int = 5,
    distillers: tuple[str, ...] = ("sre2l",),
    fraction: float = 1.0,
    **run: Any,
) -> Reader:
    sections = {
        "data": {"name": data, "fraction": fraction},
        "partition": {"name": "dirichlet", "clients": clients},
    }
    beside = {"fedavg_1": made_up.scores(33.0), "ensemble": made_up.scores(44.0)}
    made_up.sweep_folder(
        folder,
        clients=(clients,),
        ipc=(1, 10),
        alphas=(0.1, 0.5, 0.7),
        distillers=distillers,
        sections=sections,
        baselines=beside,
        **run,
    )
    return read(folder)


def test_published_one_shot_methods_stand_beside_the_same_split(tmp_path):
    page = dirichlet_sweep(tmp_path / "s", "some/where/mnist")
    assert "Beside one-shot methods" in page.headings
    text = page.text.split("Beside one-shot methods")[-1]
    assert "what is left alpha 0.1 alpha 0.5 sre2l, IPC 1 a set 16.31" in text
    assert "FedAvg, 1 round one model 33.00 \N{PLUS-MINUS SIGN} 0.00" in text
    assert "FedAvg, 1 round, published one model 48.2 90.6" in text
    assert "DENSE, published one model 66.6 95.8" in text
    assert "FuseFL, published one fused model, several uploads 97.2 98.5" in text


def test_the_caption_names_the_networks_of_students_and_of_clients(tmp_path):
    text = dirichlet_sweep(tmp_path / "s", "mnist").text
    assert "splits of their own; ours: convnet." in text
    for path in (tmp_path / "s").glob("runs/*/config.yaml"):
        tree = yaml.safe_load(path.read_text())
        tree["teacher"]["backbones"] = [{"name": "resnet18"}]
        path.write_text(yaml.safe_dump(tree))
    text = read(tmp_path / "s").text
    assert "ours: students convnet, clients convnet, resnet18." in text


@pytest.mark.parametrize(("data", "clients"), [("digits", 5), ("mnist", 10)])
def test_one_shot_methods_are_left_out_where_they_have_no_numbers(tmp_path, data, clients):
    page = dirichlet_sweep(tmp_path / "s", data, clients)
    assert "Beside one-shot methods" not in page.headings


@pytest.mark.parametrize(
    "run",
    [{"evaluated_on": "validation"}, {"fraction": 0.5}, {"absent_clients": [0]}],
    ids=["split", "part", "absent"],
)
def test_one_shot_methods_stand_beside_no_other_test(tmp_path, run):
    page = dirichlet_sweep(tmp_path / "s", "mnist", **run)
    assert "Beside one-shot methods" not in page.headings


def test_methods_that_share_their_teachers_have_one_row_of_them(tmp_path):
    page = dirichlet_sweep(tmp_path / "s", "mnist", distillers=("sre2l", "lic"))
    text = page.text.split("Beside one-shot methods")[-1]
    assert text.count("FedAvg, 1 round one model 33.00 \N{PLUS-MINUS SIGN} 0.00") == 1
    assert "sre2l, IPC 1 a set" in text
    assert "lic, IPC 1 a set" in text


def test_teachers_that_differ_between_methods_have_a_row_each(tmp_path):
    folder = tmp_path / "s"
    dirichlet_sweep(folder, "mnist", distillers=("sre2l (width 1)", "sre2l (width 2)"))
    for path in folder.glob("runs/*width 2*/result.json"):
        path.write_text(path.read_text().replace("44.0", "45.0"))
    text = read(folder).text.split("Beside one-shot methods")[-1]
    assert "ensemble, sre2l (width 1) all clients' models 44.00" in text
    assert "ensemble, sre2l (width 2) all clients' models 45.00" in text
    assert text.count("FedAvg, 1 round one model 33.00") == 1


def test_the_paper_stands_beside_no_federation_without_all_of_its_clients(tmp_path, monkeypatch):
    monkeypatch.setattr(
        made_up, "run_folder", partial(made_up.run_folder, absent_clients=[0], absent_because={})
    )
    page = resnet_sweep(tmp_path / "s", monkeypatch)
    assert "so it is not shown here: clients were absent." in page.text


def test_the_paper_is_not_mentioned_for_other_data(tmp_path):
    page = read(made_up.sweep_folder(tmp_path / "s", clients=(1,), seeds=(0,)))
    assert "Beside the paper's table" not in page.headings
