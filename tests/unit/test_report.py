"""The page of a run: what it says; and of any page: it loads nothing and escapes everything."""

import json
import re

import made_up
import pytest
from fakes import tiny_tree
from pages import Reader, read

from fedistill import report
from fedistill.errors import OutputError
from fedistill.report.page import duration, size
from fedistill.rows import short

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run, and its page."""
    folder = made_up.run_folder(tmp_path_factory.mktemp("run") / "r")
    return folder, read(folder)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The folder of a sweep, and its page."""
    folder = made_up.sweep_folder(
        tmp_path_factory.mktemp("sweep") / "s", failed={(3, 1): "no memory left on the abacus"}
    )
    return folder, read(folder)


def test_the_page_of_a_run_has_its_parts(run):
    assert run[1].headings == [
        "tiny: 2 clients",
        "Result",
        "What was run",
        "Synthetic images",
        "Clients",
        "Costs",
        "Other pictures",
        "Use the sets",
        "Do it again",
    ]


def test_every_row_names_its_network(tmp_path):
    rows = ("random", "ensemble", "weight_average", "fedavg_1")
    folder = made_up.run_folder(
        tmp_path / "r",
        ipc=(1,),
        baselines={name: made_up.scores(50.0) for name in rows},
        sections={"student": {"models": [{"name": "resnet18"}], "epochs": 2, "seeds": 2}},
    )
    text = read(folder).text
    for name, network in zip(rows, ("resnet18", "teachers", "convnet", "convnet"), strict=True):
        assert f"1 {short(name)} 50.00 1 {network}" in text


def test_the_page_of_a_run_holds_its_numbers(run):
    text = run[1].text
    values = made_up.made_up(10, 2, 0)
    assert f"{sum(values) / 2:.2f} \N{PLUS-MINUS SIGN} 0.35" in text
    assert "+2.85 points against random real images" in text
    assert "distilled set 13.35" in text
    assert "88.12" in text  # the teachers
    assert "abacus, 3 cores" in text
    assert "4:57 min" in text
    assert "2.2 kB" not in text
    assert "all 2 kB 200 B" in text
    assert f"{10:064x}" in text
    assert "fedistill run config.yaml" in text
    assert "iterations: 3" in text  # the whole config


def test_a_run_without_a_journal_says_what_is_not_known(run):
    assert "commit not recorded" in run[1].text
    assert "not recorded" in run[1].text


def test_links_of_a_run_are_relative_and_lead_somewhere(run, tmp_path):
    folder, page = run
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    files = [link for link in links if not link.startswith("#")]
    assert "./sets/ipc-10" in files
    assert "./result.json" in files
    elsewhere = Reader(report.write(folder, tmp_path / "pages" / "my page.html").read_text())
    links = [value for tag, name, value in elsewhere.attributes if (tag, name) == ("a", "href")]
    results = [link for link in links if link.endswith("/result.json")]
    assert len(results) == 1
    assert (tmp_path / "pages" / results[0]).resolve() == (folder / "result.json").resolve()


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_a_page_loads_nothing(kind, request):
    folder, page = request.getfixturevalue(kind)
    assert not {"script", "link", "iframe", "object", "embed", "audio", "video"} & {*page.tags}
    for tag, name, value in page.attributes:
        if name in ("src", "srcset", "data", "action", "poster") or (tag, name) == ("use", "href"):
            assert value.startswith("data:image/png;base64,"), (tag, name, value[:80])
        if name == "href":
            assert not re.match(r"[a-z]+:|//", value), value
        if name == "style":
            assert "url(" not in value.replace("url(#", ""), value
    html = (folder / "report.html").read_text()
    assert "@import" not in html
    assert "default-src 'none'" in html
    places = [value for _, name, value in page.attributes if name == "id"]
    targets = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    anchors = {target[1:] for target in targets if target.startswith("#")}
    assert anchors
    assert anchors <= {*places}


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_the_same_folder_gives_the_same_bytes(kind, request, tmp_path):
    folder, _ = request.getfixturevalue(kind)
    first = (folder / "report.html").read_bytes()
    assert report.write(folder).read_bytes() == first


def test_hostile_names_are_shown_and_do_nothing(tmp_path):
    folder = made_up.run_folder(
        tmp_path / "r",
        name=HOSTILE,
        versions={HOSTILE: HOSTILE},
        baselines={HOSTILE: made_up.scores(1.0, 2.0)},
    )
    page = read(folder)
    assert "script" not in page.tags
    assert all(not name.startswith("on") for _, name, _ in page.attributes)
    assert page.headings[0].startswith(HOSTILE)
    folder = made_up.sweep_folder(
        tmp_path / "s", clients=(1, 2), seeds=(0,), name=HOSTILE, failed={(2, 0): HOSTILE}
    )
    page = read(folder)
    assert "script" not in page.tags
    assert "img" in page.tags  # its own pictures
    assert all(value != "x" for _, name, value in page.attributes if name == "src")
    assert page.text.count("alert(1)") >= 2


def test_what_a_reader_must_know_stands_at_the_top(tmp_path):
    folder = made_up.run_folder(
        tmp_path / "r",
        top1=lambda ipc, clients, seed: [12.0],
        evaluated_on="validation",
        uses_real_images=True,
        absent_clients=[1],
        from_store={"squeeze": [0, 1], "recover": []},
    )
    page = read(folder)
    text = page.text[: page.text.index("Top-1 accuracy in percent")]
    assert "held out, not on the test split" in text
    assert "uses real images" in text
    assert "Absent clients: 1." in text
    assert "One student alone" in text
    assert "squeeze of 2 client(s)" in text
    assert "on the whole validation split" in page.text
    assert "1 (absent)" in page.text


def test_rows_that_are_not_what_their_name_says_are_told(tmp_path):
    absent = {"1": [1], "2": [0, 1]}
    beside = {"fedavg_1": {**made_up.scores(12.0), "absent_clients": absent}}
    folder = made_up.run_folder(
        tmp_path / "r",
        sections={"baselines": ["fedavg", "k_center"], "fedavg": {"rounds": 3}},
        baselines=beside,
        absent_labellers=[1],
    )
    text = read(folder).text
    assert "Clients that took part and whose answers are in no label: 1." in text
    assert "FedAvg, 1 round: clients were absent (0, 1), in 2 rounds." in text
    assert "Left out for IPC 1, 10: the row 'real, by k-center'" in text
    assert "Left out for IPC 1, 10: the row 'FedAvg, 3 rounds'" in text


def test_a_run_stands_beside_the_papers_table(tmp_path, monkeypatch):
    monkeypatch.setattr(
        made_up, "tiny_tree", lambda **own: {**tiny_tree(**own), "model": {"name": "resnet18"}}
    )
    page = read(
        made_up.run_folder(
            tmp_path / "r",
            clients=1,
            histograms=[[5000] * 10],
            sections={
                "data": {"name": "cifar10", "fraction": 1.0},
                "student": {"models": ["resnet18"]},
            },
        )
    )
    assert "Beside the paper's table" in page.headings
    assert "27.2" in page.text


def test_a_plain_run_is_warned_of_nothing(run):
    assert ("div", "class", "warnings") not in run[1].attributes


def test_the_journal_gives_date_commit_and_losses(tmp_path):
    folder = made_up.run_folder(tmp_path / "r")
    (folder / "figures" / "squeeze_loss.png").write_bytes(made_up.PNG)
    (folder / "figures" / "recover_matching.png").write_bytes(made_up.PNG)
    losses = [[1, 2.5], [2, 0.5], [3, "nan"], [4, 0.0]]
    start = {"event": "start", "time": 1_000_000_000_000}
    start["tags"] = {"mlflow.source.git.commit": "c0ffee", "git_dirty": "true"}
    curve = {"event": "curve", "time": 1, "points": losses}
    events = [
        start,
        {**curve, "run": "client/00", "name": "teacher/train_loss"},
        {**curve, "run": "client/01", "name": "teacher/train_loss"},
        {**curve, "run": "ipc/010", "name": "student/convnet/train_loss_s0"},
    ]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "tracking.jsonl").write_text(lines + '{"event": "cut sho')
    page = read(folder)
    assert "Loss" in page.headings
    assert "2001-09-09 01:46 UTC" in page.text
    assert "git checkout c0ffee" in page.text
    assert "not committed" in page.text
    assert "client 01" in page.text
    assert "Students convnet on IPC 10" in page.text
    assert "recover matching" in page.text  # as it is
    assert "squeeze loss" not in page.text  # drawn anew


def test_costs_of_the_rows_beside_where_they_are_known(tmp_path):
    priced = {**made_up.scores(40.0, 42.0), "bytes": {"up": 30_000_000, "down": 10_000_000}}
    folder = made_up.run_folder(
        tmp_path / "r", baselines={"random": made_up.scores(30.0), "full_data": priced}
    )
    page = read(folder)
    assert "all real data 1 41.00 \N{PLUS-MINUS SIGN} 1.41 40 1.02" in page.text
    assert "random real images 1 30.00 40" not in page.text
    assert "megabytes sent, up and down" in page.text


def test_ddranking_and_further_models(tmp_path):
    rows = {name: made_up.scores(50.0, 52.0) for name in ("full_data", "distilled")}
    ranking = {"hlr": 12.34, "ior": -5.6, "lrs": 0.123, "ars": 0.456, "rows": rows}
    folder = made_up.run_folder(tmp_path / "r", ipc=(1,))
    result = json.loads((folder / "result.json").read_text())
    result["sets"]["1"]["ranking"] = ranking
    result["sets"]["1"]["students"]["resnet18"] = made_up.scores(77.0, 79.0)
    (folder / "result.json").write_text(json.dumps(result))
    page = read(folder)
    assert "1 0.123 0.456 12.34 -5.60" in page.text
    assert "IPC 1, resnet18 78.00" in page.text


def test_passwords_and_folders_of_the_machine_stay_at_home(tmp_path):
    data = tmp_path / "me" / "secret place" / "beans"
    data.mkdir(parents=True)
    folder = made_up.run_folder(
        tmp_path / "r",
        sections={
            "data": {"name": str(data), "fraction": 1.0},
            "tracking": {"uri": "https://me:hunter2@tracker.example/"},
        },
    )
    text = read(folder).text
    assert "hunter2" not in text
    assert "data beans" in text


def test_what_cannot_be_reported_is_told(tmp_path):
    with pytest.raises(OutputError, match="there is no folder"):
        report.write(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="holds neither a run"):
        report.write(tmp_path)
    run = made_up.run_folder(tmp_path / "r")
    with pytest.raises(OutputError, match="is a folder"):
        report.write(run, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        report.write(run, tmp_path / "file" / "report.html")
    (run / "result.json").write_text("{}")
    with pytest.raises(OutputError, match="lacks the key 'clients'"):
        report.write(run)
    (run / "result.json").write_text("{")
    with pytest.raises(OutputError, match="cannot be read"):
        report.write(run)
    (run / "result.json").unlink()
    with pytest.raises(OutputError, match="has not finished"):
        report.write(run)
    (run / "failure.json").write_text(json.dumps({"message": "no memory left"}))
    with pytest.raises(OutputError, match="it failed: no memory left"):
        report.write(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (147_000, "147 kB"), (2.5e9, "2.5 GB")]
)
def test_sizes(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.96, "1:00 min"), (297, "4:57 min"), (3599.7, "1:00 h"), (7380, "2:03 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
