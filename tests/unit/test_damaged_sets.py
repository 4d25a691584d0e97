"""Sets that are damaged, edited or incomplete: each is refused, and says what is wrong."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import tiny_set
from odd_sets import WHITENED, change
from safetensors.torch import load_file, save_file

from fedistill.errors import SetError
from fedistill.sets import SyntheticSet


def flip_byte(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def edit_card(folder: Path, **changes: Any) -> None:
    path = folder / "card.json"
    card = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del card[key]
        elif callable(value):
            value(card[key])
        else:
            card[key] = value
    path.write_text(json.dumps(card))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit in the images": lambda f: flip_byte(f / "images.safetensors"),
    "a flipped bit in the header": lambda f: flip_byte(f / "images.safetensors", 20),
    "a flipped bit in the labels": lambda f: flip_byte(f / "labels.safetensors"),
    "half a file": lambda f: (f / "images.safetensors").write_bytes(b"\x10"),
    "no images": lambda f: (f / "images.safetensors").unlink(),
    "no labels": lambda f: (f / "labels.safetensors").unlink(),
    "no card": lambda f: (f / "card.json").unlink(),
    "no folder": lambda f: shutil.rmtree(f),
    "a card that is not JSON": lambda f: (f / "card.json").write_text("{"),
    "a card that is not text": lambda f: (f / "card.json").write_bytes(b"\xff\xfe\x00"),
    "a card that is a list": lambda f: (f / "card.json").write_text("[]"),
    "another format": lambda f: edit_card(f, format=2),
    "no format": lambda f: edit_card(f, format=None),
    "another mean": lambda f: edit_card(f, spec=lambda spec: spec.update(mean=[0.5])),
    "renamed classes": lambda f: edit_card(
        f, spec=lambda spec: spec["class_names"].__setitem__(0, "x")
    ),
    "an unknown key in the spec": lambda f: edit_card(f, spec=lambda spec: spec.update(colour=1)),
    "a spec with a number for a list": lambda f: edit_card(
        f, spec=lambda spec: spec.update(mean=0.5)
    ),
    "a spec that is a list": lambda f: edit_card(f, spec=[1]),
    "another seed of the views": lambda f: edit_card(f, views=lambda views: views.update(seed=9)),
    "views without options": lambda f: edit_card(f, views=lambda views: views.pop("options")),
    "options that are a list": lambda f: edit_card(f, views=lambda v: v.update(options=[1])),
    "views that are a number": lambda f: edit_card(f, views=3),
    "views left out": lambda f: edit_card(f, views=None),
    "another hash of the set": lambda f: edit_card(f, sha256="0" * 64),
    "a number for the hash": lambda f: edit_card(f, sha256=7),
    "files that are a list": lambda f: edit_card(f, files=["images.safetensors"]),
    "a file without its hash": lambda f: edit_card(
        f, files=lambda files: files.update({"images.safetensors": 3})
    ),
    "a file that is not listed": lambda f: edit_card(
        f, files=lambda files: files.pop("labels.safetensors")
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_every_damage_is_a_set_error(tmp_path: Path, damage: Callable[[Path], object]):
    folder = tmp_path / "set"
    tiny_set(views=2).save(folder)
    SyntheticSet.load(folder)
    damage(folder)
    with pytest.raises(SetError) as raised:
        SyntheticSet.load(folder)
    assert str(folder) in str(raised.value)


def rewrite_tensors(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Change tensors of a set, and let its card vouch for the file; None: leave one out."""
    path = folder / "images.safetensors"
    held = {**load_file(path), **tensors}
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_card(folder, files=lambda files: files["images.safetensors"].update(sha256=digest))


WHITENING_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no matrix": (lambda f: rewrite_tensors(f, zca_matrix=None), "zca_matrix is missing"),
    "no whitening": (
        lambda f: rewrite_tensors(f, zca_mean=None, zca_matrix=None),
        "zca_mean and zca_matrix are missing; accepted: ",
    ),
    "no whitening and a spec that knows of none": (
        lambda f: (
            rewrite_tensors(f, zca_mean=None, zca_matrix=None),
            edit_card(f, spec=lambda spec: spec.pop("zca"), sha256=tiny_set().sha256),
        ),
        r"its recipe says data\.zca: true.*accepted: ",
    ),
    "a spec that knows of none": (
        lambda f: edit_card(f, spec=lambda spec: spec.pop("zca")),
        "its card says",
    ),
    "the whitening of other images": (
        lambda f: rewrite_tensors(f, zca_mean=torch.zeros(48), zca_matrix=torch.eye(48)),
        "whitening is of 48 numbers; accepted: 64, for images of 1 x 8 x 8",
    ),
    "a matrix of another size": (
        lambda f: rewrite_tensors(f, zca_matrix=torch.eye(63)),
        r"matrix is torch\.float32 \(63, 63\); accepted: torch\.float32 \(64, 64\)",
    ),
    "another matrix": (lambda f: rewrite_tensors(f, zca_matrix=torch.eye(64)), "its card says"),
    "half precision": (
        lambda f: rewrite_tensors(f, zca_mean=torch.zeros(64).half()),
        "mean is torch.float16",
    ),
    "a value that is not finite": (
        lambda f: rewrite_tensors(f, zca_mean=torch.full((64,), float("inf"))),
        "mean holds values that are not finite",
    ),
}


@pytest.mark.parametrize(("damage", "says"), WHITENING_DAMAGE.values(), ids=WHITENING_DAMAGE)
def test_a_set_without_the_whitening_of_its_recipe_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], says: str
):
    folder = tmp_path / "set"
    tiny_set(spec=WHITENED).with_card(recipe={"data": {"zca": True}}).save(folder)
    SyntheticSet.load(folder)
    damage(folder)
    with pytest.raises(SetError, match=says) as raised:
        SyntheticSet.load(folder)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("recipe", [None, [], {"data": None}, {"data": {"zca": False}}])
def test_a_recipe_that_speaks_of_no_whitening_is_no_matter(tmp_path: Path, recipe: object):
    tiny_set().with_card(recipe=recipe).save(tmp_path / "set")
    assert SyntheticSet.load(tmp_path / "set").spec.zca is None


def test_an_edited_file_with_an_edited_checksum_is_still_found(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    tiny_set(views=2).save(first)
    other = tiny_set(views=2)
    replace(other, hard_labels=change()(other.hard_labels)).save(second)
    shutil.copy(second / "images.safetensors", first)
    files = json.loads((second / "card.json").read_text())["files"]
    edit_card(first, files=files)
    with pytest.raises(SetError, match="its card says"):
        SyntheticSet.load(first)
