"""A real run, small as it is, has a page with its own numbers."""

from fakes import tiny_config

from fedistill import report, runner


def test_a_real_run_has_a_page(tmp_path):
    config = tiny_config(student={"seeds": 2}, baselines=["random", "ensemble"])
    result = runner.run(config, tmp_path / "run", "local")
    html = report.write(tmp_path / "run").read_text()
    found = result["sets"]["1"]
    for score in (*found["students"].values(), found["baselines"]["random"]):
        assert f"{score['top1_mean']:.2f}" in html
    assert found["sha256"] in html
    # The sheet, the partition, t-SNE; bars, accuracy for each megabyte, and the losses of
    # teachers, of images and of students.
    assert html.count("<img ") == 3
    assert html.count("<svg ") == 5
    assert "query.describe" in html
