"""The page of a sweep: its numbers, its pictures, and what is missing."""

import json
import re

import made_up
import pytest
import yaml
from pages import read

from fedistill import comparison_files
from fedistill.journal import Journal


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The folder of a sweep, and its page."""
    folder = made_up.sweep_folder(
        tmp_path_factory.mktemp("sweep") / "s", failed={(3, 1): "no memory left on the abacus"}
    )
    return folder, read(folder)


def test_the_page_of_a_sweep_has_its_parts(sweep):
    assert sweep[1].headings == [
        "made up: a sweep",
        "Accuracy over the number of clients",
        "Two findings of the paper",
        "Beside the distilled sets",
        "Costs",
        "Failed or missing",
        "Synthetic images",
        "Features",
        "Who holds what",
        "What was run",
        "Files",
        "Do it again",
    ]


@pytest.mark.parametrize("clients", [[2, 3], [2]], ids=["grid", "methods"])
def test_how_many_students_there_are_stands_once_where_it_is_the_same(tmp_path, clients):
    folder = made_up.sweep_folder(tmp_path / "s", clients=clients, distillers=["sre2l", "lic"])
    text = read(folder).text
    spread = "Top-1 in percent, mean and standard deviation over 4 students of all seeds. Marked:"
    assert spread in text
    assert "(n=4)" not in text


def test_one_number_of_clients_is_the_best_of_none_and_finds_nothing(tmp_path):
    page = read(made_up.sweep_folder(tmp_path / "s", clients=[3]))
    assert "at N = 3; n=4" in page.text
    assert "Two findings of the paper" not in page.headings
    assert "the best N" not in page.text
    assert "Mean of all students" not in page.text, "a chart of one point shows nothing"


def test_the_page_of_a_sweep_holds_its_numbers(sweep):
    text = sweep[1].text
    assert "Marked: the best N of each IPC." in text
    plus_minus = "\N{PLUS-MINUS SIGN}"
    # N = 2, IPC 10: the students of two seeds; N = 3: of one, as the other federation failed.
    assert f"2 13.31 {plus_minus} 0.29 (n=4) 13.40 {plus_minus} 0.29 (n=4) 88.12" in text
    assert f"3 14.26 {plus_minus} 0.35 (n=2) 14.35 {plus_minus} 0.35 (n=2) 88.12" in text
    assert "5 of 6 federations done" in text
    assert "split iid method sre2l iterations 3 labels mix, 2 views" in text
    assert "1 of 6 federations are not done" in text
    assert "no memory left on the abacus" in text
    assert "'my config.yaml' --clients 1,2,3" in text
    assert "name: made up" in text
    assert "10.50" in text  # random
    assert "It is the same at every IPC here: N = 3 at IPC 1, N = 3 at IPC 10." in text
    assert "It does in all 6 cells; the nearest is 73.78 points below." in text


def test_a_row_is_compared_with_the_sets_of_the_federations_that_have_it(tmp_path):
    """With a later command that asks for other rows, some seeds have one and some have not."""
    folder = made_up.sweep_folder(tmp_path / "s", clients=(2,), ipc=(1,))
    for seed, own, beside in ((0, 80.0, 85.0), (1, 92.0, None)):
        (path,) = folder.glob(f"runs/*seed-{seed}/result.json")
        result = json.loads(path.read_text())
        result["sets"]["1"]["students"]["convnet"] = made_up.scores(own)
        rows = {} if beside is None else {"random": made_up.scores(beside)}
        result["sets"]["1"]["baselines"] = rows
        path.write_text(json.dumps(result))
    page = read(folder)
    assert "1 2 86.00 \N{PLUS-MINUS SIGN} 8.49 85.00 (1 of 2)" in page.text
    assert "Marked: random real images that are at least as good" in page.text


def test_the_best_number_of_clients_stands_out(sweep):
    folder, _ = sweep
    html = (folder / "report.html").read_text()
    assert [found[:5] for found in re.findall(r'<td class="strong">([^<]+)', html)][:2] == [
        "14.26",
        "14.35",
    ]


def test_a_federation_without_a_result_is_still_to_come(tmp_path):
    folder = made_up.sweep_folder(tmp_path / "s", clients=(1, 2), seeds=(0,))
    next(folder.glob("runs/*clients-02*/result.json")).unlink()
    text = read(folder).text
    assert "todo - runs/sre2l_alpha-None_clients-02_seed-0" in text
    assert "1 of 2 federations done" in text


def test_a_sweep_without_a_result_has_a_page(tmp_path):
    failed = {(1, 0): "the first reason", (2, 0): "the second reason"}
    folder = made_up.sweep_folder(tmp_path / "s", clients=(1, 2), seeds=(0,), failed=failed)
    page = read(folder)
    assert "0 of 2 federations done" in page.text
    assert "the second reason" in page.text
    assert "Costs" not in page.headings


def test_methods_and_alphas_have_charts_of_their_own(tmp_path):
    folder = made_up.sweep_folder(
        tmp_path / "s",
        clients=(1, 2),
        ipc=(1,),
        seeds=(0,),
        alphas=(None, 0.1),
        distillers=("sre2l", "lic"),
    )
    text = read(folder).text
    for name in ("sre2l, iid", "sre2l, alpha 0.1", "lic, iid", "lic, alpha 0.1"):
        assert f"{name}. Mean of all students" in text
        assert f"{name}: The best number of clients falls" in text
    assert "IPC 1: all beside each other." in text
    assert "alpha iid, 0.1 distiller sre2l, lic" in text
    assert "alpha 0.1, N = 2, seed 0" in text  # its partition


def test_splits_with_one_number_of_clients_are_not_rivals(tmp_path):
    """An easier split is no better method."""
    folder = made_up.sweep_folder(tmp_path / "s", clients=(2,), alphas=(0.1, 0.5))
    page = read(folder)
    assert "Accuracy of the splits" in page.headings
    assert "split IPC 1 IPC 10 teachers, mean alpha 0.1 13.31" in page.text
    assert "Marked: the best" not in page.text
    assert "N = 2. Mean of all students" in page.text  # the chart over alpha
    assert (
        "alpha 0.5" in re.findall(r"<svg.*?</svg>", (folder / "report.html").read_text(), re.S)[0]
    )


def test_no_chart_over_alpha_of_a_single_split(tmp_path):
    """With three clients only one of three splits is done."""
    folder = made_up.sweep_folder(
        tmp_path / "s", clients=(2, 3), ipc=(1,), seeds=(0,), alphas=(0.1, 0.3, 0.5)
    )
    assert "N = 3. Mean of all students" in read(folder).text
    for alpha in ("0.1", "0.3"):
        next(folder.glob(f"runs/*alpha-{alpha}_clients-03*/result.json")).unlink()
    text = read(folder).text
    assert "N = 2. Mean of all students" in text
    assert "N = 3. Mean of all students" not in text


def test_the_best_method_of_each_split_stands_out(tmp_path):
    folder = made_up.sweep_folder(
        tmp_path / "s", clients=(2,), ipc=(1,), alphas=(0.1, 0.5), distillers=("sre2l", "lic")
    )
    for path in folder.glob("runs/lic_alpha-0.1_*/result.json"):
        path.write_text(path.read_text().replace('"top1": [13', '"top1": [43'))
    page = read(folder)
    assert "Accuracy of the methods" in page.headings
    assert "Marked: the best of each IPC and split." in page.text
    assert "method, split IPC 1" in page.text
    marked = re.findall(r'<td class="strong">([^<]+)', (folder / "report.html").read_text())
    assert [found[:2] for found in marked[:3]] == ["28", "13", "13"]  # of 0.5 both are as good


def relabel(path, **keys):
    """Change how a run's config says that its set was labelled."""
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**tree, "relabel": {**tree["relabel"], **keys}}))


def test_who_labels_stands_beside_the_split_that_decides_it(tmp_path):
    folder = made_up.sweep_folder(tmp_path / "s", clients=(1, 2), alphas=(None, 0.1))
    for path in folder.glob("runs/*alpha-0.1*/config.yaml"):
        relabel(path, name="consensus")
    text = read(folder).text
    assert "labels mix, 2 views (iid); consensus, 2 views (alpha 0.1)" in text


def test_what_differs_within_a_split_is_no_fact_of_it(tmp_path):
    folder = made_up.sweep_folder(tmp_path / "s", clients=(1, 2), ipc=(1,), seeds=(0,))
    relabel(next(folder.glob("runs/*clients-02*/config.yaml")), views=7)
    assert "labels mix" not in read(folder).text


def test_methods_with_one_number_of_clients_share_a_table(tmp_path):
    folder = made_up.sweep_folder(
        tmp_path / "s",
        clients=(2,),
        ipc=(1, 10),
        seeds=(0, 1),
        distillers=("mibdc (weight 0)", "mibdc (weight 1)"),
    )
    better = next(folder.glob("runs/*weight 1*/result.json"))
    result = json.loads(better.read_text())
    result["sets"]["10"]["students"]["convnet"] = made_up.scores(50.0, 51.0)
    better.write_text(json.dumps(result))
    page = read(folder)
    assert "Accuracy of the methods" in page.headings
    assert "Accuracy over the number of clients" not in page.headings
    assert "Two findings of the paper" not in page.headings
    own = sum([*made_up.made_up(1, 2, 0), *made_up.made_up(1, 2, 1)]) / 4
    for method in ("mibdc (weight 0)", "mibdc (weight 1)"):
        assert f"{method} {own:.2f} " in page.text
    html = (folder / "report.html").read_text()
    assert html.count('<td class="strong">') == 3  # both are best at IPC 1, and one at IPC 10


@pytest.mark.parametrize(("seeds", "told"), [((0,), True), ((0, 1), False)])
def test_a_student_is_alone_where_no_other_seed_has_one(tmp_path, seeds, told):
    one = made_up.sweep_folder(
        tmp_path / "s", clients=(1,), seeds=seeds, top1=lambda ipc, clients, seed: [50.0 + seed]
    )
    assert ("One student alone" in read(one).text) == told


def test_a_change_of_code_or_libraries_in_the_middle_is_told(tmp_path):
    folder = made_up.sweep_folder(tmp_path / "sweep", clients=[1, 2], seeds=[0])
    assert "Federations are of several" not in read(folder).text
    path = folder / "runs" / "sre2l_alpha-None_clients-02_seed-0" / "result.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "versions": {"fedistill": "0.0.8"}}))
    assert "several libraries: fedistill 0.0.7; fedistill 0.0.8" in read(folder).text
    tags = {"mlflow.source.git.commit": "0123456789abcdef"}
    Journal(path.parent).start(experiment="e", run_name="r", tags=tags, uri=None)
    assert "several commits: 0123456789, an unknown one" in read(folder).text


def test_matching_losses_of_several_methods_share_a_chart(tmp_path):
    folder = made_up.sweep_folder(
        tmp_path / "s",
        clients=(1, 2),
        ipc=(1, 10),
        seeds=(0,),
        distillers=("mibdc (weight 0)", "mibdc (weight 1)", "sre2l"),
    )
    assert "How closely the sets are matched" not in read(folder).headings
    for path in folder.glob("runs/mibdc*"):
        journal = Journal(path)
        journal.start(experiment="e", run_name="r", tags={}, uri="sqlite:///none.db")
        for client in ("client/00", "client/01"):
            journal.child(client, client, "client", {})
            journal.curve("recover/matching/ipc-1", [(0, 9.0), (5, 4.0)], client)
    page = read(folder)
    assert "How closely the sets are matched" in page.headings
    assert "IPC 1: loss of the matching" in page.text
    assert "IPC 10: loss of the matching" not in page.text
    for path in folder.glob("runs/sre2l*"):  # as of `mdc`, whose small sets are cut out
        journal = Journal(path)
        journal.start(experiment="e", run_name="r", tags={}, uri="sqlite:///none.db")
        journal.curve("recover/matching/ipc-10", [(0, 7.0), (5, 3.0)])
    page = read(folder)
    drawn = page.text.split("IPC 1: loss of the matching")[0].split("How closely")[-1]
    assert "mibdc (weight 0)" in drawn
    assert "mibdc (weight 1)" in drawn
    assert "sre2l" not in drawn
    files = {path.name for path in comparison_files.write(folder)}
    assert "matching_ipc-1.png" in files
    assert "matching_ipc-10.png" not in files


def test_rows_beside_at_the_cost_of_their_own(tmp_path):
    random = {**made_up.scores(30.0, 31.0), "bytes": {"up": 5000, "down": 10}}
    folder = made_up.sweep_folder(
        tmp_path / "s", clients=(1, 2), ipc=(1,), seeds=(0,), baselines={"random": random}
    )
    page = read(folder)
    assert "IPC 1, and the rows beside it." in page.text
    html = (folder / "report.html").read_text()
    # Random real images are better than these sets, and that stands out.
    assert html.count('<td class="strong">30.50') == 2


def test_further_networks_have_tables_of_their_own(tmp_path):
    folder = made_up.sweep_folder(tmp_path / "s", clients=(1, 2), ipc=(1,), seeds=(0,))
    for path in folder.glob("runs/*/result.json"):
        result = json.loads(path.read_text())
        result["sets"]["1"]["students"]["resnet18"] = made_up.scores(77.0, 79.0)
        path.write_text(json.dumps(result))
    page = read(folder)
    assert "Other networks" in page.headings
    assert "78.00" in page.text
    assert "resnet18: Top-1 in percent" in page.text


def test_splits_without_alpha_have_a_picture_each(tmp_path, monkeypatch):
    folder = made_up.sweep_folder(
        tmp_path / "s", clients=(2,), seeds=(0,), distillers=("one", "two", "three")
    )
    for method, classes in (("one", 1), ("two", 2), ("three", 2)):
        path = folder / "runs" / f"{method}_alpha-None_clients-02_seed-0" / "config.yaml"
        config = path.read_text().replace("name: iid", "name: pathological")
        path.write_text(
            config.replace("classes_per_client: null", f"classes_per_client: {classes}")
        )
    text = read(folder).text
    for classes in (1, 2):
        assert text.count(f"pathological, classes per client {classes}, N = 2, seed 0") == 1


def test_what_each_kind_of_message_took_is_told(tmp_path):
    folder = made_up.sweep_folder(tmp_path / "s", clients=(3,), seeds=(0, 1))
    text = read(folder).text
    assert "N train.distill 3 3 kB / 300 B" in text
