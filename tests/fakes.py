"""Small stand-ins for many tests: images of 8 x 8 pixels, a config for them, simple teachers."""

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fedistill import config_file
from fedistill.config import Config, ModelConfig
from fedistill.crops import ViewOptions
from fedistill.errors import ConfigError
from fedistill.images import DataSpec, ImageSet
from fedistill.models import build
from fedistill.seeding import generator
from fedistill.sets import SoftLabels, SyntheticSet
from fedistill.teacher import freeze

CPU = torch.device("cpu")
CONVNET = ModelConfig(name="convnet", depth=2, width=8)


def tiny_spec(channels: int = 1, size: int = 8, num_classes: int = 3) -> DataSpec:
    return DataSpec(
        name="tiny",
        class_names=tuple(f"class {label}" for label in range(num_classes)),
        channels=channels,
        size=size,
        mean=(0.4, 0.45, 0.5)[:channels],
        std=(0.2, 0.25, 0.3)[:channels],
        flip=False,
    )


def tiny_images(per_class: int = 10, spec: DataSpec | None = None, seed: int = 0) -> ImageSet:
    """Noisy images, each class with a bright band at a height of its own: easy to tell apart."""
    spec = spec or tiny_spec()
    stream = generator(seed, "tiny images")
    labels = torch.arange(spec.num_classes).repeat(per_class)
    shape = (len(labels), spec.channels, spec.size, spec.size)
    images = torch.randint(0, 90, shape, generator=stream)
    band = spec.size // spec.num_classes
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, label * band : (label + 1) * band] += 150
    return ImageSet(images.to(torch.uint8), labels)


def write_class_folders(folder: Path, images: ImageSet, names: Sequence[str]) -> Path:
    """Write grey images as files in class folders, in their order."""
    for number, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
        place = folder / names[int(label)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place / f"{number:05}.png")
    return folder


def tiny_set(
    per_class: int = 2, views: int = 0, spec: DataSpec | None = None, clients: int = 2
) -> SyntheticSet:
    """A synthetic set, ordered by class; with soft labels if `views` is above 0."""
    spec = spec or tiny_spec()
    source = tiny_images(per_class, spec, seed=1)
    order = source.labels.argsort(stable=True)
    soft_labels = None
    if views:
        shape = (views, len(source), spec.num_classes)
        logits = torch.randn(shape, generator=generator(2, "logits")).half()
        options = ViewOptions(scale=(0.5, 1.0), shift=1, flip=True, mix="cutmix")
        soft_labels = SoftLabels(logits, 5, options)
    return SyntheticSet(
        spec=spec,
        images=source.images[order],
        hard_labels=source.labels[order],
        clients=torch.arange(len(source)) % clients,
        soft_labels=soft_labels,
        card={"recipe": {"name": "tiny"}},
    )


def tiny_teacher(seed: int = 0, spec: DataSpec | None = None) -> nn.Module:
    """A frozen ConvNet whose BatchNorm statistics have seen the tiny images."""
    spec = spec or tiny_spec()
    model = build(CONVNET, spec, seed, "tiny teacher")
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(spec.normalise(tiny_images(spec=spec).images))
    return freeze(model)


class Constant(nn.Module):
    """A teacher that gives every image the same logits, and remembers how many it has seen."""

    def __init__(self, logits: Sequence[float]) -> None:
        super().__init__()
        self.answer = torch.tensor(logits)
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.answer.expand(len(images), -1)


def tiny_tree(**sections: Any) -> dict[str, Any]:
    """The tree of a config that runs in a second; a section given here changes some of its keys."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "precision": "float32",
        "data": {"name": "digits", "fraction": 0.1},
        "partition": {"clients": 2},
        "model": {"name": "convnet", "depth": 2, "width": 8},
        "teacher": {"epochs": 2, "batch_size": 32},
        "distill": {"ipc": [1], "iterations": 3, "batch_size": 20},
        "relabel": {"views": 2},
        "student": {"epochs": 2, "seeds": 1},
        "tracking": {"enabled": False},
    }
    for key, value in sections.items():
        both = isinstance(value, Mapping) and isinstance(tree.get(key), dict)
        tree[key] = {**tree[key], **value} if both else value
    return tree


def tiny_config(**sections: Any) -> Config:
    return config_file.from_dict(tiny_tree(**sections))


def run_python(code: str, blocked: Iterable[str] = ()) -> str:
    """Run code in a fresh interpreter in which some packages cannot be imported."""
    # None in sys.modules: an import fails as if the package were not installed.
    head = f"import sys; sys.modules.update(dict.fromkeys({sorted(blocked)!r}))\n"
    done = subprocess.run(
        [sys.executable, "-c", head + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(text: str, *overrides: str) -> str:
    """Return what is said of a config that is refused."""
    with pytest.raises(ConfigError) as raised:
        config_file.loads(text, overrides)
    return str(raised.value)
