"""Students: they learn from soft and hard labels, the same way each time."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fakes import CONVNET, CPU, tiny_config, tiny_images, tiny_set, tiny_spec
from torch import nn

from fedistill import student
from fedistill.baselines import hard_label_set
from fedistill.config import StudentConfig
from fedistill.crops import ViewOptions
from fedistill.losses.soft_labels import soft_kl
from fedistill.relabel import relabel
from fedistill.sets import SyntheticSet
from fedistill.student import Curve, Score, at_ipc
from fedistill.teacher import squeeze
from fedistill.training import accuracy

SPEC = tiny_spec()
TEST = tiny_images(20, seed=9)
RECIPE = replace(
    tiny_config().student, epochs=20, batch_size=4, ema=0.0, lr=1e-2, loss="kl", temperature=1.0
)
PLAIN = ViewOptions()


@pytest.fixture(scope="module")
def taught() -> SyntheticSet:
    """A set of real images with the soft labels of a teacher that knows the task."""
    config = replace(tiny_config().teacher, epochs=8, batch_size=10, shift=0)
    where: dict[str, Any] = {"seed": 0, "device": CPU, "dtype": torch.float32}
    teacher, _ = squeeze(tiny_images(10), SPEC, CONVNET, config, **where)
    synthetic = tiny_set(per_class=3, clients=1)
    views = replace(tiny_config().relabel, views=5, scale=(0.8, 1.0), mix_probability=0.5)
    return relabel(synthetic, {0: teacher}, views, **where)


def trained(
    synthetic: SyntheticSet, config: StudentConfig = RECIPE, *, seed: int = 0, number: int = 0,
    views: ViewOptions = PLAIN, report: student.Report = lambda done, total: None,
) -> tuple[nn.Module, Curve]:  # fmt: skip
    return student.train(
        synthetic,
        CONVNET,
        config,
        views,
        seed=seed,
        number=number,
        device=CPU,
        dtype=torch.float32,
        report=report,
    )


def score(model: nn.Module) -> float:
    return accuracy(model, TEST, SPEC, torch.float32)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for tensor in model.state_dict().values()])


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "kl", "temperature": 4.0},
        {"loss": "mse"},
        {"loss": "mse", "ce_weight": 0.5},
        {"loss": "kl", "optimizer": "sgd", "lr": 0.05},
        {"loss": "kl", "schedule": "half_cosine"},
        {"loss": "kl", "ema": 0.9},
    ],
    ids=str,
)
def test_a_student_learns_from_soft_labels(taught: SyntheticSet, changes: dict[str, Any]):
    model, curve = trained(taught, replace(RECIPE, **changes))
    assert score(model) > 80
    assert curve[-1][1] < curve[0][1]
    assert curve[-1][0] == 20


def test_a_student_learns_from_hard_labels(taught: SyntheticSet):
    views = ViewOptions(scale=(0.8, 1.0), mix="cutmix", mix_probability=0.5)
    assert score(trained(hard_label_set(taught), views=views)[0]) > 80


def test_soft_labels_teach_what_they_say_and_not_what_the_hard_labels_say(taught: SyntheticSet):
    wrong = replace(taught, hard_labels=(taught.hard_labels + 1) % 3)
    assert torch.equal(weights(trained(wrong)[0]), weights(trained(taught)[0]))
    assert score(trained(hard_label_set(wrong))[0]) < 20
    both = replace(RECIPE, ce_weight=0.5)
    assert not torch.equal(weights(trained(wrong, both)[0]), weights(trained(taught, both)[0]))


def test_seed_and_number_decide_the_student(taught: SyntheticSet):
    short = replace(RECIPE, epochs=2)
    first = weights(trained(taught, short)[0])
    assert torch.equal(weights(trained(taught, short)[0]), first)
    assert not torch.equal(weights(trained(taught, short, seed=1)[0]), first)
    assert not torch.equal(weights(trained(taught, short, number=1)[0]), first)


def test_the_moving_average_follows_its_formula():
    model = nn.Linear(2, 1)
    average = student._MovingAverage(model, 0.75)
    expected = [p.detach().clone() for p in model.parameters()]
    for step in range(40):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(step + 1)
        average.update(model)
        decay = min(0.75, (2 + step) / (11 + step))  # it forgets the first weights sooner
        expected = [
            decay * e + (1 - decay) * p.detach()
            for e, p in zip(expected, model.parameters(), strict=True)
        ]
    found = list(average.result(model).parameters())
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value.detach(), wanted)


def test_without_a_moving_average_the_student_is_the_last_iterate():
    model = nn.Linear(2, 1)
    average = student._MovingAverage(model, 0.0)
    with torch.no_grad():
        model.weight.fill_(7)
    average.update(model)
    assert average.result(model).weight.eq(7).all()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("ipc", "number"), [(1, 10), (5, 10), (10, 50), (11, 50), (50, 100), (99, 100)]
)
def test_a_table_by_ipc_holds_from_each_entry_to_the_next(ipc: int, number: int):
    assert at_ipc({1: 10, 10: 50, 50: 100}, ipc) == number
    assert at_ipc(7, ipc) == 7


def test_below_its_first_entry_a_table_gives_that_entry():
    assert at_ipc({10: 50, 50: 100}, 1) == 50


def batches_of(monkeypatch: pytest.MonkeyPatch, synthetic: SyntheticSet, size: int) -> list[int]:
    seen: list[int] = []
    forward = nn.Linear.forward

    def counting(self: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        seen.append(len(inputs))
        return forward(self, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", counting)
        trained(synthetic, replace(RECIPE, epochs=1, batch_size=size))
    return seen


def test_every_image_is_shown_once_an_epoch(taught: SyntheticSet, monkeypatch: pytest.MonkeyPatch):
    assert batches_of(monkeypatch, taught, 4) == [3, 3, 3]
    assert batches_of(monkeypatch, taught, 8) == [5, 4]
    assert batches_of(monkeypatch, taught, 100) == [9]


def test_epoch_number_v_shows_view_v_again(taught: SyntheticSet):
    views = [student._view(taught, PLAIN, 0, 0, epoch) for epoch in range(7)]
    labels = taught.soft_labels
    assert labels is not None
    for epoch, (shown, answers) in enumerate(views):
        assert torch.equal(shown.boxes, labels.views(epoch % 5, 8).boxes)
        assert answers is not None
        assert torch.equal(answers, labels.logits[epoch % 5])


def test_without_soft_labels_every_epoch_has_views_of_its_own():
    options = ViewOptions(scale=(0.3, 0.9))
    boxes = [student._view(tiny_set(), options, 0, 0, epoch)[0].boxes for epoch in range(4)]
    assert len({tuple(box.flatten().tolist()) for box in boxes}) == 4


def test_the_losses_are_what_the_config_says():
    stream = torch.Generator().manual_seed(0)
    found, teacher = torch.randn(2, 4, 3, generator=stream).unbind(0)
    hard_labels = torch.tensor([0, 1, 2, 0, 1, 2])
    index = torch.tensor([5, 0, 3, 2])
    views = ViewOptions(mix="mixup")
    mixed = student.crops.draw(6, 8, views, torch.Generator().manual_seed(1))
    assert mixed.partner is not None
    share = mixed.own_share
    own = F.cross_entropy(found, hard_labels[index])
    other = F.cross_entropy(found, hard_labels[mixed.partner[index]])
    hard = share * own + (1 - share) * other

    def loss(target: torch.Tensor | None, **changes: Any) -> torch.Tensor:
        config = replace(RECIPE, **changes)
        return student._loss(found, target, hard_labels, mixed, index, config)

    close = torch.testing.assert_close
    close(loss(None), hard)
    close(loss(teacher, loss="mse"), ((found - teacher) ** 2).mean())
    close(loss(teacher, temperature=5.0), soft_kl(found, teacher, 5.0))
    close(loss(teacher, loss="mse", ce_weight=0.3), ((found - teacher) ** 2).mean() + 0.3 * hard)


def test_the_learning_rate_follows_the_schedule(
    taught: SyntheticSet, monkeypatch: pytest.MonkeyPatch
):
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def noting(self: torch.optim.AdamW, *args: Any, **options: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    trained(taught, replace(RECIPE, epochs=2, batch_size=5, schedule="cosine"))
    assert rates == pytest.approx([0.01, 0.01 * (1 + 0.5**0.5) / 2, 0.005, 0.01 * 0.1464466])


def test_progress_is_reported_to_the_last_epoch(taught: SyntheticSet):
    told: list[tuple[int, int]] = []
    _, curve = trained(taught, report=lambda done, total: told.append((done, total)))
    assert told == [(epoch, 20) for epoch in range(1, 21)]
    long = replace(RECIPE, epochs=130, batch_size=100)
    _, curve = trained(taught, long)
    assert 50 <= len(curve) <= 67
    assert curve[-1][0] == 130


def test_epochs_may_differ_by_images_per_class(taught: SyntheticSet):
    ipc = len(taught) // taught.spec.num_classes
    _, curve = trained(taught, replace(RECIPE, epochs={1: 3, ipc: 2, ipc + 1: 1}))
    assert curve[-1][0] == 2


def test_a_score_has_mean_and_sample_deviation():
    found = Score([90.0, 92.0, 97.0], [])
    assert found.mean == 93
    assert found.std == pytest.approx((13.0) ** 0.5)
    assert Score([90.0], []).std == 0
    assert Score([1 / 3, 2 / 3], []).as_dict() == {
        "top1": [0.333, 0.667],
        "top1_mean": 0.5,
        "top1_std": 0.236,
        "n": 2,
    }


def test_training_leaves_the_set_and_the_global_generator_alone(taught: SyntheticSet):
    before = taught.sha256
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    trained(taught, replace(RECIPE, epochs=1))
    assert torch.equal(torch.rand(2), expected)
    assert taught.sha256 == before
