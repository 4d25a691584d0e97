"""A real run, small as it is, has a page with its own numbers."""

from fakes import tiny_config

from fedistill import report, runner


def test_a_real_run_has_a_page(tmp_path):
    config = tiny_config(
        distill={"ipc": [1, 2]}, student={"seeds": 2}, baselines=["random", "ensemble"]
    )
    result = runner.run(config, tmp_path / "run", "local")
    html = report.write(tmp_path / "run").read_text()
    for ipc in ("1", "2"):
        score = result["sets"][ipc]["students"]["convnet"]
        assert f"{score['top1_mean']:.2f}" in html
        assert result["sets"][ipc]["sha256"] in html
    # Two sheets, the partition, two t-SNE; bars, losses of teachers, of images and of students.
    assert html.count("<img ") == 5
    assert html.count("<svg ") == 2 + 2 + 2
    assert "query.describe" in html
