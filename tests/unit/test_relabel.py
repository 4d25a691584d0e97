"""Relabel: who answers, for which view, and that the answers replay."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from fakes import CPU, Constant, tiny_set, tiny_teacher
from labelling import CONFIG, SPEC, constant_teachers, labelled, logits

from fedistill import answers, crops, mosaic, relabel
from fedistill.answers import Labeller, Sheet, answer
from fedistill.config import RelabelConfig
from fedistill.crops import ViewOptions
from fedistill.errors import ClientsFailed
from fedistill.relabel import choose_teachers, view_options
from fedistill.seeding import derive_seed, generator


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
    alike = logits(teachers, synthetic, name="consensus")  # but for what no softmax can see
    torch.testing.assert_close(
        alike.float().softmax(2), found[0].float().softmax(2), rtol=2e-3, atol=2e-3
    )


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


@pytest.mark.parametrize("worst", [math.inf, -math.inf, math.nan, 1e5], ids=str)
@pytest.mark.parametrize("name", ["mix", "own", "single", "mean", "consensus"])
def test_who_says_what_is_not_finite_in_half_precision_is_silent(name: str, worst: float):
    """Its labels go to the others, as those of one who has not answered at all."""
    told: list[int] = []
    bad, *_ = teachers = constant_teachers()
    synthetic = tiny_set(clients=3)
    found = relabel.relabel(
        synthetic,
        {**teachers, bad: Constant([worst, 1.0, -1.0])},
        replace(CONFIG, name=name),
        seed=0,
        device=CPU,
        dtype=torch.float32,
        left_out=lambda client, why: told.append(client),
    )

    def ask(sheet: Sheet, asked: Mapping[int, torch.Tensor]) -> Mapping[int, torch.Tensor]:
        here = {client: mine for client, mine in asked.items() if client != bad}
        labellers = [Labeller(teachers[client], mine) for client, mine in here.items()]
        said = answer(sheet, labellers, SPEC, device=CPU, dtype=torch.float32)
        return dict(zip(here, said, strict=True))

    silent = relabel.collect(synthetic, [*teachers], replace(CONFIG, name=name), ask, seed=0)
    assert set(told) == {bad}
    assert found.soft_labels is not None
    assert silent.soft_labels is not None
    assert torch.equal(found.soft_labels.logits, silent.soft_labels.logits)


def test_labels_of_nobody_are_an_error():
    worst = {number: Constant([math.nan, 1.0, -1.0]) for number in range(3)}
    for name in ("mix", "mean", "consensus"):
        with pytest.raises(ClientsFailed, match="no client is left that labels"):
            logits(worst, name=name)


def test_mix_asks_nobody_who_has_no_teacher():
    drawn = choose_teachers("mix", torch.zeros(500).long(), [3, 7], generator(0))
    assert drawn.unique().tolist() == [3, 7]


def test_uniform_draws_are_those_of_one_generator_for_each_view():
    """A plain reference: the draws of sets that were made before are not to change."""
    seed = derive_seed(0, "relabel", 6)
    expected = [torch.randint(3, (6,), generator=generator(seed, "teacher", n)) for n in range(6)]
    found = logits(constant_teachers(), name="mix", teacher_choice="uniform")[..., 0]
    assert torch.equal(found.long(), torch.stack(expected))


@pytest.mark.parametrize("everyone_everything", [False, True])
def test_answers_do_not_depend_on_who_is_asked_beside(everyone_everything):
    """What makes labels from home the same as those from the server."""
    spec, synthetic = SPEC, tiny_set(50)
    options = ViewOptions(scale=(0.5, 1.0), flip=True, mix="cutmix", mix_probability=0.5)
    sheet = Sheet(synthetic.images, 9, 3, options)
    who = torch.randint(3, (9, 150), generator=generator(0, "who"))
    masks = [torch.ones_like(who).bool() if everyone_everything else who == n for n in range(3)]
    labellers = [Labeller(tiny_teacher(n), mine) for n, mine in enumerate(masks)]
    how = {"device": CPU, "dtype": torch.float32}
    together = answer(sheet, labellers, spec, **how)  # type: ignore[arg-type]
    for labeller, found in zip(labellers, together, strict=True):
        (alone,) = answer(sheet, [labeller], spec, **how)  # type: ignore[arg-type]
        assert torch.equal(found, alone)
        assert found.shape == (int(labeller.mine.sum()), 3)
    torch.set_num_threads(2)
    both = answer(sheet, labellers, spec, **how)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(together, both, strict=True))


def test_views_that_everyone_is_asked_for_are_rendered_once(monkeypatch):
    rendered: list[int] = []
    apply = crops.apply
    monkeypatch.setattr(
        crops, "apply", lambda images, *rest: rendered.append(len(images)) or apply(images, *rest)
    )
    sheet = Sheet(tiny_set().images, 4, 0, ViewOptions(scale=(0.5, 1.0)))
    everything = torch.ones(4, 6, dtype=torch.bool)
    labellers = [Labeller(Constant([1.0, 2.0, 3.0 + n]), everything.clone()) for n in range(3)]
    said = answer(sheet, labellers, SPEC, device=CPU, dtype=torch.float32)
    assert rendered == [24]
    assert [logits[:, 2].unique().tolist() for logits in said] == [[3.0], [4.0], [5.0]]


def test_a_teacher_that_is_asked_for_nothing_answers_nothing():
    nothing = torch.zeros(2, 6, dtype=torch.bool)
    sheet = Sheet(tiny_set().images, 2, 0, ViewOptions())
    teacher = Constant([1.0, 2.0, 3.0])
    (found,) = answer(sheet, [Labeller(teacher, nothing)], SPEC, device=CPU, dtype=torch.float32)
    assert found.shape == (0, 3)
    assert teacher.seen == 0


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


@pytest.mark.parametrize("name", ["mix", "mean", "consensus"])
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
