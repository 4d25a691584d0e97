"""Relabel: who answers, for which view, and that the answers replay."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from fakes import CPU, Constant, tiny_config, tiny_set, tiny_spec, tiny_teacher
from torch import nn

from fedistill import answers, crops, mosaic, relabel
from fedistill.config import RelabelConfig
from fedistill.relabel import choose_teachers, view_options
from fedistill.seeding import generator
from fedistill.sets import SyntheticSet

SPEC = tiny_spec()
CONFIG = replace(tiny_config().relabel, views=6, scale=(0.5, 1.0), mix="none")


def labelled(
    teachers: Mapping[int, nn.Module],
    synthetic: SyntheticSet | None = None,
    *,
    seed: int = 0,
    **changes: object,
) -> SyntheticSet:
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    return relabel.relabel(
        synthetic or tiny_set(), teachers, config, seed=seed, device=CPU, dtype=torch.float32
    )


def logits(*args: object, **options: object) -> torch.Tensor:
    labels = labelled(*args, **options).soft_labels  # type: ignore[arg-type]
    assert labels is not None
    return labels.logits


def constant_teachers(count: int = 3) -> dict[int, Constant]:
    return {number: Constant([float(number), 1.0, -1.0]) for number in range(count)}


def test_labels_are_half_precision_for_every_view_image_and_class():
    found = logits(constant_teachers())
    assert found.dtype == torch.float16
    assert found.shape == (6, 6, 3)


def test_with_one_teacher_all_ways_agree():
    teachers = {0: tiny_teacher()}
    synthetic = tiny_set(clients=1)
    found = [logits(teachers, synthetic, name=name) for name in ("mix", "own", "single", "mean")]
    for other in found[1:]:
        assert torch.equal(found[0], other)
    assert found[0].std() > 0


def test_own_asks_the_teacher_of_the_client_that_made_the_image():
    synthetic = tiny_set(clients=3)
    found = logits(constant_teachers(), synthetic, name="own")
    assert torch.equal(found[:, :, 0].long(), synthetic.clients.expand(6, 6))


def test_single_asks_the_first_teacher_alone():
    teachers = {4: Constant([4.0, 0, 0]), 2: Constant([2.0, 0, 0])}
    assert logits(teachers, name="single")[..., 0].unique().tolist() == [2.0]
    assert teachers[4].seen == 0


def test_mean_averages_the_logits_of_all_teachers():
    teachers = {number: Constant([3.0 * number, 1.0, 0.0]) for number in range(3)}
    assert logits(teachers, name="mean")[..., 0].unique().tolist() == [3.0]


def test_mix_asks_all_teachers_about_equally_and_anew_for_each_view():
    teachers = constant_teachers()
    found = logits(teachers, name="mix", views=200)
    who = found[..., 0].long()
    counts = torch.bincount(who.flatten(), minlength=3)
    assert counts.sum() == 1200
    assert (counts - 400).abs().max() < 80  # about 5 standard deviations
    assert [teacher.seen for teacher in teachers.values()] == counts.tolist()
    for image in range(6):
        assert who[:, image].unique().tolist() == [0, 1, 2]
    assert len({tuple(view) for view in who.tolist()}) > 100


def test_mix_asks_nobody_who_has_no_teacher():
    drawn = choose_teachers("mix", torch.zeros(500).long(), [3, 7], generator(0))
    assert drawn.unique().tolist() == [3, 7]


@pytest.mark.parametrize("tiles", [1, 2])
@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
def test_labels_are_the_teachers_answers_to_the_replayed_views(mix: str, tiles: int):
    teacher = tiny_teacher()
    how = {"mix": mix, "mix_probability": 1.0, "flip": True, "tiles": tiles, "tile_share": 0.5}
    synthetic = labelled({0: teacher}, tiny_set(clients=1), **how)
    labels = synthetic.soft_labels
    assert labels is not None
    assert (labels.views(0, 8).sealed is not None) == (tiles > 1)
    images = SPEC.normalise(synthetic.images)
    for view in range(6):
        shown = crops.render(images, labels.views(view, 8), torch.arange(6))
        torch.testing.assert_close(
            labels.logits[view].float(), teacher(shown), rtol=2e-3, atol=2e-3
        )


@pytest.mark.parametrize("name", ["mix", "mean"])
def test_the_size_of_a_block_does_not_change_the_labels(name: str, monkeypatch: pytest.MonkeyPatch):
    teachers = {number: tiny_teacher(number) for number in range(2)}
    found = []
    for block in (1, 13, 500):
        monkeypatch.setattr(answers, "_BATCH", block)
        found.append(logits(teachers, name=name, mix="cutmix"))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=2e-3, atol=2e-3)


def test_the_seed_decides_views_and_teachers():
    teachers = {number: tiny_teacher(number) for number in range(2)}
    first = labelled(teachers)
    assert labelled(teachers).sha256 == first.sha256
    assert labelled(teachers, seed=1).sha256 != first.sha256


def test_sets_of_another_size_are_shown_in_other_views():
    teachers = {0: tiny_teacher()}
    seeds = {labelled(teachers, tiny_set(n, clients=1)).soft_labels.seed for n in (1, 2)}  # type: ignore[union-attr]
    assert len(seeds) == 2


def test_the_rest_of_the_set_stays():
    before = tiny_set()
    after = labelled(constant_teachers(), before)
    assert torch.equal(after.images, before.images)
    assert after.card == before.card


def test_progress_ends_with_all_answers():
    told: list[tuple[int, int]] = []
    relabel.relabel(
        tiny_set(100),
        constant_teachers(),
        CONFIG,
        seed=0,
        device=CPU,
        dtype=torch.float32,
        report=lambda done, total: told.append((done, total)),
    )
    assert [total for _, total in told] == [1800] * len(told)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (1800, 1800)


def test_labels_of_single_tiles_are_the_answers_to_the_tiles_enlarged():
    teacher = tiny_teacher()
    labels = labelled({0: teacher}, tiny_set(clients=1), tiles=2, tile_share=1.0).soft_labels
    assert labels is not None
    images = SPEC.normalise(tiny_set(clients=1).images)
    answers = torch.stack([teacher(tile) for tile in mosaic.expand(images, 2).view(6, 4, 1, 8, 8)])
    for image in range(6):
        for view in range(6):
            distance = (answers[image] - labels.logits[view, image].float()).abs().amax(1)
            assert distance.min() < 1e-2, (image, view)
    seen = [
        (answers[image] - labels.logits[:, image, None].float()).abs().amax(2).argmin(1)
        for image in range(6)
    ]
    assert torch.cat(seen).unique().tolist() == [0, 1, 2, 3]


def test_view_options_take_what_was_left_open_from_the_data_set():
    mirrored = replace(SPEC, flip=True)
    assert view_options(CONFIG, mirrored).flip is True
    assert view_options(replace(CONFIG, flip=False), mirrored).flip is False
    given = RelabelConfig(scale=(0.2, 0.8), shift=3, mix="mixup", mix_alpha=0.8, mix_probability=0)
    options = view_options(given, SPEC)
    assert (options.scale, options.shift, options.mix) == ((0.2, 0.8), 3, "mixup")
    assert (options.mix_alpha, options.mix_probability) == (0.8, 0)
