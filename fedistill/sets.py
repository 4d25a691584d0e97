"""Synthetic sets and their soft labels: in memory, and as a folder that anyone can load.

A distilled set on disk is a folder that needs torch and safetensors alone to load:

    images.safetensors   images uint8 [M, C, H, W], hard_labels int64 [M], clients int64 [M];
                         where networks see whitened images: zca_mean [D], zca_matrix [D, D]
    labels.safetensors   teacher_logits float16 [V, M, C]; the seed in the card replays the views
    card.json            class names, normalisation, recipe, provenance, score, checksums
    README.md            the same for people
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedistill import crops
from fedistill.crops import ViewOptions, Views
from fedistill.errors import SetError
from fedistill.images import DataSpec, ImageSet
from fedistill.seeding import generator

FORMAT = 1


@dataclass(frozen=True)
class SoftLabels:
    """What teachers said about V views of every image of a set.

    Attributes:
        logits: float16 [V, M, C].
        seed: replays the views together with `options`.
        options: the distribution of the views.
    """

    logits: Tensor
    seed: int
    options: ViewOptions

    def __len__(self) -> int:
        return len(self.logits)

    def views(self, view: int, size: int) -> Views:
        """Replay view number `view` of every image of the set."""
        stream = generator(self.seed, "views", view)
        return crops.draw(self.logits.shape[1], size, self.options, stream)


@dataclass(frozen=True, kw_only=True)
class SyntheticSet:
    """A distilled set: few images that stand for many.

    Attributes:
        spec: what its images have in common with the data they stand for.
        images: uint8 [M, C, H, W].
        hard_labels: int64 [M].
        clients: partition id of the client that made each image, int64 [M].
        soft_labels: the teachers' logits for random views, if it has been relabelled.
        card: recipe, provenance, score: JSON values for people and for `verify`.
    """

    spec: DataSpec
    images: Tensor
    hard_labels: Tensor
    clients: Tensor
    soft_labels: SoftLabels | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.hard_labels)

    def as_image_set(self) -> ImageSet:
        """Return images and hard labels alone."""
        return ImageSet(self.images, self.hard_labels)

    @property
    def sha256(self) -> str:
        """Hash of everything a student sees: images, labels, and how views are drawn."""
        digest = hashlib.sha256()
        for name, tensor in self._tensors():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        digest.update(json.dumps(self.spec.as_dict(), sort_keys=True).encode())
        if self.soft_labels is not None:
            how = {"seed": self.soft_labels.seed, **self.soft_labels.options.as_dict()}
            digest.update(json.dumps(how, sort_keys=True).encode())
        return digest.hexdigest()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield "images", self.images
        yield "hard_labels", self.hard_labels
        yield "clients", self.clients
        yield from self.spec.tensors().items()
        if self.soft_labels is not None:
            yield "teacher_logits", self.soft_labels.logits

    def with_card(self, **entries: Any) -> "SyntheticSet":
        """Return the same set with more entries in its card."""
        return replace(self, card={**self.card, **entries})

    def save(self, folder: Path | str) -> None:
        """Write the set to a new or empty folder; the card is written last."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self._tensors()}
        logits = tensors.pop("teacher_logits", None)
        save_file(tensors, folder / "images.safetensors")
        files = ["images.safetensors"]
        spec = self.spec.as_dict()
        card: dict[str, Any] = {"format": FORMAT, "sha256": self.sha256, "spec": spec}
        if self.soft_labels is not None and logits is not None:
            save_file({"teacher_logits": logits}, folder / "labels.safetensors")
            files.append("labels.safetensors")
            how = {"seed": self.soft_labels.seed, "options": self.soft_labels.options.as_dict()}
            card["views"] = {"count": len(self.soft_labels), **how}
        card["files"] = {
            name: {"sha256": _file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
            for name in files
        }
        card |= {key: value for key, value in self.card.items() if key not in card}
        (folder / "README.md").write_text(_readme(card, len(self)), encoding="utf-8")
        (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> "SyntheticSet":
        """Read a set and check it against its card.

        Raises:
            SetError: a file is missing, does not match its checksum, or cannot be read, or the
                set lacks the whitening that its recipe speaks of.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        card = _read_card(folder)
        _check_files(folder, card)
        try:
            tensors = load_file(folder / "images.safetensors")
            soft_labels = None
            if "views" in card:
                logits = load_file(folder / "labels.safetensors")["teacher_logits"]
                options = ViewOptions.from_dict(card["views"]["options"])
                soft_labels = SoftLabels(logits, card["views"]["seed"], options)
            own = ("format", "sha256", "spec", "views", "files")
            found = cls(
                spec=DataSpec.from_dict(card["spec"], tensors),
                images=tensors["images"],
                hard_labels=tensors["hard_labels"],
                clients=tensors["clients"],
                soft_labels=soft_labels,
                card={key: value for key, value in card.items() if key not in own},
            )
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise SetError(
                f"{folder} does not hold a distilled set that can be read: {error!r}"
            ) from error
        if found.sha256 != card["sha256"]:
            raise SetError(
                f"{folder}: the set hashes to {found.sha256[:12]}..., its card says "
                f"{card['sha256'][:12]}...; card.json was changed, fetch the set again"
            )
        if found.spec.zca is None and _recipe_whitens(card):
            raise SetError(
                f"{folder}: its recipe says data.zca: true, and no whitening was fitted for it; "
                "accepted: a set with its whitening, or a recipe with data.zca: false; "
                "make the set again, or fetch it again"
            )
        return found


def add_to_card(folder: Path, **entries: Any) -> None:
    """Add entries to the card of a set on disk; the checksums stay true."""
    card = {**_read_card(folder), **entries}
    partial = folder / "card.json.partial"
    partial.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / "card.json")


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / "card.json"
    if not path.is_file():
        raise SetError(
            f"{folder} is not a distilled set: it has no card.json; "
            "give a folder such as runs/NAME/sets/ipc-10"
        )
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SetError(f"{path} cannot be read: {error}") from error
    own = {"format": int, "sha256": str, "spec": dict, "files": dict}
    if not isinstance(card, dict) or not all(isinstance(card.get(k), own[k]) for k in own):
        raise SetError(f"{path} is not the card of a distilled set; fetch the set again")
    if card["format"] != FORMAT:
        raise SetError(f"{path} has format {card['format']}; this fedistill reads format {FORMAT}")
    return card


def _recipe_whitens(card: Mapping[str, Any]) -> bool:
    recipe = card.get("recipe")
    options = recipe.get("data") if isinstance(recipe, dict) else None
    return isinstance(options, dict) and bool(options.get("zca"))


def _check_files(folder: Path, card: Mapping[str, Any]) -> None:
    for name in ("images.safetensors", *(["labels.safetensors"] if "views" in card else [])):
        entry = card["files"].get(name)
        expected = str(entry.get("sha256")) if isinstance(entry, dict) else "nothing"
        if not (folder / name).is_file():
            raise SetError(f"{folder}: {name} is missing; fetch the set again")
        found = _file_sha256(folder / name)
        if found != expected:
            raise SetError(
                f"{folder / name} has SHA-256 {found[:12]}..., its card says {expected[:12]}...; "
                "the file is damaged or was changed, fetch the set again"
            )


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _readme(card: Mapping[str, Any], count: int) -> str:
    spec = card["spec"]
    shape = f"{spec['channels']} x {spec['size']} x {spec['size']}"
    whitened = "They are whitened for networks: `distilled.spec.normalise(images)`.\n\n"
    return f"""# A distilled set of {spec["name"]}

{count} images of {len(spec["class_names"])} classes, {shape} pixels, made by fedistill.

```python
from fedistill.sets import SyntheticSet

distilled = SyntheticSet.load(".")
images, labels = distilled.images, distilled.hard_labels
```

{whitened if spec.get("zca") else ""}Train a model on it: `fedistill train . --data {spec["name"]}`.
Recipe, provenance and score are in `card.json`.
SHA-256 of the set: `{card["sha256"]}`.
"""
