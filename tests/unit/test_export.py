import json

import numpy as np
import pytest
import torch
from fakes import tiny_set, tiny_spec
from typer.testing import CliRunner

from fedistill import cli, data, export
from fedistill.config import DataConfig
from fedistill.errors import OutputError, SetError


@pytest.fixture(params=[1, 3])
def synthetic(request):
    return tiny_set(views=4, spec=tiny_spec(channels=request.param))


@pytest.mark.parametrize("form", ["imagefolder", "parquet"])
def test_what_is_written_can_be_loaded_as_data(synthetic, form, tmp_path):
    export.export(synthetic, form, tmp_path / "out")
    found = data.splits(DataConfig(name=str(tmp_path / "out")), needed=("train",))
    assert tuple(found.class_names) == synthetic.spec.class_names
    order = found.train_labels.argsort(stable=True)
    torch.testing.assert_close(found.train_images[order], synthetic.images)
    torch.testing.assert_close(found.train_labels[order], synthetic.hard_labels)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["sha256"] == synthetic.sha256
    assert card["recipe"] == {"name": "tiny"}


def test_the_hub_library_reads_the_parquet_file(tmp_path):
    datasets = pytest.importorskip("datasets")
    synthetic = tiny_set()
    path = export.export(synthetic, "parquet", tmp_path / "out")
    rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert rows.features["label"].names == list(synthetic.spec.class_names)
    np.testing.assert_array_equal(np.asarray(rows[1]["image"]), synthetic.images[1, 0].numpy())


def test_npz_holds_everything_and_needs_no_pickle(synthetic, tmp_path):
    path = export.export(synthetic, "npz", tmp_path)
    with np.load(path, allow_pickle=False) as found:
        np.testing.assert_array_equal(found["images"], synthetic.images.numpy())
        np.testing.assert_array_equal(found["hard_labels"], synthetic.hard_labels.numpy())
        np.testing.assert_array_equal(found["teacher_logits"], synthetic.soft_labels.logits.numpy())
        assert found["class_names"].tolist() == list(synthetic.spec.class_names)
        assert json.loads(str(found["views"]))["seed"] == synthetic.soft_labels.seed


def test_nothing_is_overwritten_and_no_class_leaves_the_folder(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a").touch()
    with pytest.raises(OutputError, match="nothing was overwritten"):
        export.export(tiny_set(), "npz", tmp_path / "taken")
    spec = tiny_spec()
    for name in ("../../a", "..", ""):
        odd = type(spec)(**{**vars(spec), "class_names": (name, "b", "c")})
        with pytest.raises(SetError, match="cannot be a folder"):
            export.export(tiny_set(spec=odd), "imagefolder", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_wrote(tmp_path):
    tiny_set(views=2).save(tmp_path / "set")
    command = ["export", str(tmp_path / "set"), "--to", "npz", str(tmp_path / "out")]
    said = CliRunner().invoke(cli.app, command)
    assert said.exit_code == 0, said.output
    assert export.NPZ in said.output.replace("\n", "")
    assert CliRunner().invoke(cli.app, [*command[:3], "jpeg", str(tmp_path)]).exit_code == 2
