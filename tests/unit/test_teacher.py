"""Squeeze: a teacher learns its shard, the same way each time, and is frozen afterwards."""

import dataclasses

import pytest
import torch
from fakes import CONVNET, CPU, tiny_images, tiny_spec
from torch import nn

from fedistill.config import TeacherConfig
from fedistill.images import ImageSet
from fedistill.seeding import generator
from fedistill.teacher import augmentation, squeeze
from fedistill.training import accuracy

SPEC = tiny_spec()
QUICK = TeacherConfig(epochs=2, batch_size=8)


def trained(
    shard: ImageSet, config: TeacherConfig = QUICK, *, seed: int = 0, **options: object
) -> tuple[nn.Module, list[tuple[int, float]]]:
    return squeeze(
        shard, SPEC, CONVNET, config, seed=seed, device=CPU, dtype=torch.float32, **options  # type: ignore[arg-type]
    )  # fmt: skip


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for tensor in model.state_dict().values()])


def test_a_teacher_learns_what_can_be_told_apart():
    config = TeacherConfig(epochs=8, batch_size=10, shift=0)
    model, curve = trained(tiny_images(10), config)
    assert accuracy(model, tiny_images(20, seed=9), SPEC, torch.float32) > 95
    assert [epoch for epoch, _ in curve] == list(range(1, 9))
    assert curve[-1][1] < 0.5 * curve[0][1]


def test_the_seed_and_the_path_decide_the_teacher():
    shard = tiny_images(4)
    first = weights(trained(shard)[0])
    assert torch.equal(weights(trained(shard)[0]), first)
    assert not torch.equal(weights(trained(shard, seed=1)[0]), first)
    assert not torch.equal(weights(trained(shard, path=("squeeze", 1))[0]), first)


def test_training_goes_on_from_given_weights():
    shard = tiny_images(4)
    first, _ = trained(shard)
    on, _ = trained(shard, path=("fedavg", 0, 1), start=first.state_dict())
    fresh, _ = trained(shard, path=("fedavg", 0, 1))
    again, _ = trained(shard, path=("fedavg", 0, 1), start=first.state_dict())
    assert torch.equal(weights(on), weights(again))
    assert not torch.equal(weights(on), weights(fresh))
    counters = [net.state_dict()["features.1.num_batches_tracked"] for net in (first, on)]
    assert counters[1] == 2 * counters[0] > 0
    with pytest.raises(RuntimeError, match="Missing key"):
        trained(shard, start={})


def test_hardly_any_learning_leaves_the_given_weights_as_they_are():
    shard = tiny_images(4)
    first, _ = trained(shard)
    timid = dataclasses.replace(QUICK, lr=1e-12, weight_decay=0.0)
    on, _ = trained(shard, timid, start=first.state_dict())
    for (name, old), new in zip(first.named_parameters(), on.parameters(), strict=True):
        assert torch.allclose(old, new, atol=1e-9), name


def test_the_teacher_is_frozen_and_in_eval_mode():
    model, _ = trained(tiny_images(2))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_small_shard_is_enough(count: int):
    shard = tiny_images(3).select(torch.arange(count))
    model, curve = trained(shard)
    assert weights(model).isfinite().all()
    assert all(torch.tensor(loss).isfinite() for _, loss in curve)


def test_every_image_is_shown_once_an_epoch(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    forward = nn.Linear.forward

    def counting(self: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs))
        return forward(self, inputs)

    monkeypatch.setattr(nn.Linear, "forward", counting)
    trained(tiny_images(3), dataclasses.replace(QUICK, batch_size=4))
    assert sum(sizes) == 2 * 9
    assert min(sizes) >= 3  # batches of like size: none is left with a single image


def test_the_shard_and_the_global_generator_are_left_alone():
    shard = tiny_images(3)
    before = shard.images.clone()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    trained(shard)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(shard.images, before)


def test_progress_is_reported_after_each_epoch():
    told: list[tuple[int, int]] = []
    trained(tiny_images(2), report=lambda done, total, loss: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_augmentation_follows_the_data_set_unless_the_user_says():
    mirrored = dataclasses.replace(tiny_spec(size=32), flip=True)
    assert augmentation(TeacherConfig(), mirrored).shift == 4
    assert augmentation(TeacherConfig(), mirrored).flip is True
    assert augmentation(TeacherConfig(flip=False, shift=0), mirrored).flip is False
    assert augmentation(TeacherConfig(flip=False, shift=0), mirrored).shift == 0
    assert augmentation(TeacherConfig(), tiny_spec()).flip is False


def test_label_smoothing_reaches_the_loss():
    shard = ImageSet(
        torch.randint(0, 256, (6, 1, 8, 8), generator=generator(0)).to(torch.uint8),
        torch.tensor([0, 1, 2] * 2),
    )
    plain = trained(shard)[1]
    smoothed = trained(shard, dataclasses.replace(QUICK, label_smoothing=0.5))[1]
    assert plain[0][1] != smoothed[0][1]
