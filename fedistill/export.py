"""Write a distilled set in a form that other programs read.

    imagefolder  train/CLASS/00000.png, lossless; torchvision's ImageFolder reads it, and so do we
    parquet      train-00000-of-00001.parquet: columns image and label, as on the Hugging Face hub
    npz          arrays for NumPy: images, labels, class names, and the soft labels

The first two hold hard labels alone: a soft label belongs to one random view of an image, and such
views only fedistill replays. The card, with the recipe and the score, goes with each.
"""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fedistill.errors import OutputError, SetError
from fedistill.results import check_free, write_json
from fedistill.sets import SyntheticSet

Form = Literal["imagefolder", "parquet", "npz"]
FORMS: tuple[Form, ...] = get_args(Form)
PARQUET = "train-00000-of-00001.parquet"
NPZ = "set.npz"


def export(synthetic: SyntheticSet, form: Form, folder: Path) -> Path:
    """Write a set to a new or empty folder.

    Args:
        synthetic: the set.
        form: one of `FORMS`.
        folder: where to.

    Returns:
        What was written: the folder of class folders, or the file.

    Raises:
        OutputError: the folder holds something, or cannot be written; nothing was overwritten.
        SetError: a class has a name that cannot be a folder's.
    """
    check_free(folder)
    if form == "imagefolder":
        _require_folder_names(synthetic)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = _WRITERS[form](synthetic, folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}") from error
    write_json(folder / "card.json", {**synthetic.card, "sha256": synthetic.sha256})
    return written


def _require_folder_names(synthetic: SyntheticSet) -> None:
    odd = [name for name in synthetic.spec.class_names if name in ("", ".", "..") or "/" in name]
    if odd:
        raise SetError(f"the class {odd[0]!r} cannot be a folder; export the set to parquet or npz")


def _image_folder(synthetic: SyntheticSet, folder: Path) -> Path:
    names = synthetic.spec.class_names
    digits = len(str(len(synthetic)))
    for number, (image, label) in enumerate(
        zip(synthetic.images, synthetic.hard_labels.tolist(), strict=True)
    ):
        path = folder / "train" / names[label] / f"{number:0{max(digits, 5)}}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(image))
    return folder / "train"


def _parquet(synthetic: SyntheticSet, folder: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    images = [{"bytes": _png(image), "path": None} for image in synthetic.images]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {
        "image": pyarrow.array(images, kind),
        "label": pyarrow.array(synthetic.hard_labels.tolist(), pyarrow.int64()),
    }
    # What `datasets` writes to say which column is an image, and what the labels are called.
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(synthetic.spec.class_names), "_type": "ClassLabel"},
    }
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    path = folder / PARQUET
    parquet.write_table(pyarrow.table(columns).replace_schema_metadata(about), path)
    return path


def _npz(synthetic: SyntheticSet, folder: Path) -> Path:
    arrays: dict[str, npt.NDArray[Any]] = {
        "images": synthetic.images.numpy(),
        "hard_labels": synthetic.hard_labels.numpy(),
        "clients": synthetic.clients.numpy(),
        "class_names": np.array(synthetic.spec.class_names),
        "mean": np.array(synthetic.spec.mean),
        "std": np.array(synthetic.spec.std),
    }
    if synthetic.soft_labels is not None:
        arrays["teacher_logits"] = synthetic.soft_labels.logits.numpy()
        how = {"seed": synthetic.soft_labels.seed, **synthetic.soft_labels.options.as_dict()}
        arrays["views"] = np.array(json.dumps(how))
    path = folder / NPZ
    np.savez_compressed(path, allow_pickle=False, **arrays)
    return path


def _png(image: Tensor) -> bytes:
    """Encode uint8 [C, H, W] without loss."""
    from PIL import Image

    pixels = image.squeeze(0) if image.shape[0] == 1 else image.permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(file, "PNG")
    return file.getvalue()


_WRITERS: Mapping[Form, Callable[[SyntheticSet, Path], Path]] = {
    "imagefolder": _image_folder,
    "parquet": _parquet,
    "npz": _npz,
}
