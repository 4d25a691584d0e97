"""Losses against closed forms and against plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from fakes import tiny_images, tiny_spec, tiny_teacher
from torch import Tensor, nn

from fedistill.losses.image_norm import ImageNorm
from fedistill.losses.soft_labels import logit_mse, soft_cross_entropy, soft_kl
from fedistill.losses.statistics import (
    BatchNormAlignment,
    ClassStatistics,
    alignment,
    class_alignment,
    class_statistics,
)
from fedistill.losses.total_variation import TotalVariation, total_variation
from fedistill.models.build import batch_norms

STREAM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(6, 4, 5, 5, generator=STREAM) * 2 + 1
LABELS = torch.tensor([2, 0, 2, 2, 0, 4])
LOGITS = torch.randn(7, 5, generator=STREAM) * 3
TEACHER_LOGITS = torch.randn(7, 5, generator=STREAM) * 3


def channel_statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    rows = inputs.transpose(0, 1).flatten(1)
    mean = rows.sum(1) / rows.shape[1]
    return mean, ((rows - mean[:, None]) ** 2).sum(1) / rows.shape[1]


def test_alignment_is_zero_at_matching_statistics():
    assert alignment(INPUTS, *channel_statistics(INPUTS)).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("offset", [0.5, -3.0])
def test_alignment_grows_with_the_root_of_the_channels(offset: float):
    mean, var = channel_statistics(INPUTS)
    assert alignment(INPUTS, mean + offset, var).item() == pytest.approx(
        abs(offset) * math.sqrt(4), rel=1e-5
    )
    assert alignment(INPUTS, mean, var + offset).item() == pytest.approx(
        abs(offset) * math.sqrt(4), rel=1e-5
    )


def test_alignment_takes_statistics_in_float32():
    coarse = INPUTS.bfloat16()
    exact = alignment(coarse.float(), *channel_statistics(INPUTS))
    assert alignment(coarse, *channel_statistics(INPUTS)).item() == exact.item()


def test_the_gradient_of_alignment_is_that_of_the_plain_formula():
    mean, var = torch.randn(2, 4, generator=STREAM).unbind(0)
    gradients = []
    for offset in (0.0, 100.0):  # a large mean must not swallow the variance
        for plain in (True, False):
            inputs = (INPUTS + offset).requires_grad_()
            if plain:
                found_mean, found_var = channel_statistics(inputs)
                distance = (found_mean - offset - mean).norm() + (found_var - var).norm()
            else:
                distance = alignment(inputs, mean + offset, var)
            gradients += torch.autograd.grad(3 * distance, inputs)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-3, atol=1e-5)


def class_alignment_by_loops(inputs: Tensor, labels: Tensor, real: ClassStatistics) -> float:
    distances = []
    for label in sorted(set(labels.tolist())):
        mean, var = channel_statistics(inputs[labels == label])
        distance = 0.0
        for found, wanted in ((mean, real.mean[label]), (var, real.var[label])):
            distance += math.sqrt(sum(float(d) ** 2 for d in found - wanted))
        distances.append(distance)
    return sum(distances) / len(distances)


def test_class_alignment_agrees_with_a_loop_over_the_classes():
    real = ClassStatistics(
        torch.randn(5, 4, generator=STREAM), torch.rand(5, 4, generator=STREAM) + 1
    )
    assert class_alignment(INPUTS, LABELS, real).item() == pytest.approx(
        class_alignment_by_loops(INPUTS, LABELS, real), rel=1e-5
    )


def test_class_alignment_is_zero_where_each_class_matches():
    mean, var = torch.full((5, 4), 99.0), torch.full((5, 4), 99.0)  # absent classes do not count
    for label in (0, 2, 4):
        mean[label], var[label] = channel_statistics(INPUTS[label == LABELS])
    real = ClassStatistics(mean, var)
    assert class_alignment(INPUTS, LABELS, real).item() == pytest.approx(0, abs=1e-4)


def test_class_statistics_are_those_of_each_class_at_every_layer():
    spec, data, model = tiny_spec(), tiny_images(), tiny_teacher()
    layers = batch_norms(model)
    images = spec.normalise(data.images)
    batches = [(images[i : i + 7], data.labels[i : i + 7]) for i in range(0, len(images), 7)]
    found = class_statistics(model, layers, batches, num_classes=5)

    inputs: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in layers
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    assert len(found) == len(layers) == 2
    for statistics, seen in zip(found, inputs, strict=True):
        for label in range(3):
            mean, var = channel_statistics(seen[data.labels == label])
            torch.testing.assert_close(statistics.mean[label], mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(statistics.var[label], var, rtol=1e-4, atol=1e-5)
        assert statistics.mean[3:].abs().sum() == 0


def layers_with_statistics() -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    first, second = nn.BatchNorm2d(4).eval(), nn.BatchNorm2d(4).eval()
    mean, var = channel_statistics(INPUTS)
    for layer, offset in ((first, 1.0), (second, 2.0)):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(mean + offset)
        layer.running_var.copy_(var)
    return first, second


def test_the_first_layer_has_its_own_weight_and_every_layer_the_common_one():
    layers = layers_with_statistics()
    with BatchNormAlignment(layers, LABELS, weight=0.5, first_weight=10) as terms:
        for layer in layers:
            layer(INPUTS)
        root = math.sqrt(4)
        assert terms.take().item() == pytest.approx(0.5 * (10 * 1 * root + 2 * root), rel=1e-5)


def test_the_class_term_is_added_with_its_weight():
    layers = layers_with_statistics()
    real = [ClassStatistics(torch.zeros(5, 4), torch.ones(5, 4))] * 2
    with BatchNormAlignment(layers, LABELS, weight=0, class_weight=3, real=real) as terms:
        for layer in layers:
            layer(INPUTS)
        expected = 2 * 3 * class_alignment_by_loops(INPUTS, LABELS, real[0])
        assert terms.take().item() == pytest.approx(expected, rel=1e-5)


def test_take_forgets_the_pass_before():
    layers = layers_with_statistics()
    with BatchNormAlignment(layers, LABELS) as terms:
        totals = []
        for _ in range(2):
            for layer in layers:
                layer(INPUTS)
            totals.append(terms.take().item())
        assert totals[0] == totals[1]


def test_hooks_are_gone_after_the_block_even_after_an_error():
    layers = layers_with_statistics()
    with BatchNormAlignment(layers, LABELS):
        assert all(len(layer._forward_pre_hooks) == 1 for layer in layers)
    assert not any(layer._forward_pre_hooks for layer in layers)

    def fail() -> None:
        with BatchNormAlignment(layers, LABELS):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_class_statistics_are_summed_in_float32_whatever_the_network_runs_in():
    # No convolution rounds anything here: all that is left is the rounding of the sums.
    model = nn.Sequential(nn.BatchNorm2d(2)).eval()
    images = 10 + torch.randn(200, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    batches = [(images, torch.zeros(200).long())]
    found = class_statistics(model, batch_norms(model), batches, 1, torch.bfloat16)[0]
    torch.testing.assert_close(found.mean[0], images.mean((0, 2, 3)))
    expected = images.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(found.var[0], expected, rtol=1e-3, atol=0)


def test_class_statistics_remove_their_hooks_after_an_error():
    model = tiny_teacher()
    with pytest.raises(RuntimeError):
        class_statistics(
            model, batch_norms(model), [(torch.zeros(2, 7, 8, 8), torch.zeros(2).long())], 3
        )
    assert not any(layer._forward_pre_hooks for layer in batch_norms(model))


def test_total_variation_agrees_with_loops_over_the_pixels():
    images = INPUTS[:2, :3]
    sums = dict.fromkeys(("across", "down", "falling", "rising"), 0.0)
    steps = {"across": (0, 1), "down": (1, 0), "falling": (1, 1), "rising": (1, -1)}
    height, width = images.shape[-2:]
    for name, (down, right) in steps.items():
        for row in range(height - down):
            for column in range(width):
                if 0 <= column + right < width:
                    other = images[..., row + down, column + right]
                    sums[name] += float(((other - images[..., row, column]) ** 2).sum())
    expected = sum(math.sqrt(value) for value in sums.values())
    assert total_variation(images).item() == pytest.approx(expected, rel=1e-5)
    assert TotalVariation()(images, LABELS).item() == pytest.approx(expected, rel=1e-5)


def test_total_variation_of_flat_images_is_zero():
    flat = torch.tensor([1.0, -2.0])[:, None, None, None].expand(2, 3, 4, 4)
    assert total_variation(flat).item() == 0


def test_image_norm_agrees_with_a_loop_over_the_images():
    expected = sum(math.sqrt(sum(float(v) ** 2 for v in image.flatten())) for image in INPUTS)
    found = ImageNorm()(INPUTS, LABELS).item()
    assert found == pytest.approx(expected / len(INPUTS), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 30.0])
def test_soft_kl_is_the_softened_formula(temperature: float):
    teacher = (TEACHER_LOGITS.double() / temperature).softmax(1)
    student = (LOGITS.double() / temperature).softmax(1)
    expected = (teacher * (teacher.log() - student.log())).sum(1).mean().item()
    found = soft_kl(LOGITS, TEACHER_LOGITS, temperature).item()
    assert found == pytest.approx(expected, rel=1e-3)


def test_soft_kl_is_zero_where_student_and_teacher_agree():
    assert soft_kl(LOGITS, LOGITS + 3, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert soft_kl(LOGITS, LOGITS.flip(1), 2.0).item() > 0.1


def test_soft_cross_entropy_is_divergence_plus_entropy():
    teacher = TEACHER_LOGITS.softmax(1)
    entropy = -(teacher * teacher.log()).sum(1).mean()
    expected = soft_kl(LOGITS, TEACHER_LOGITS, 1.0) + entropy
    torch.testing.assert_close(soft_cross_entropy(LOGITS, teacher), expected)


def test_soft_cross_entropy_of_hard_labels_is_cross_entropy():
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    expected = F.cross_entropy(LOGITS, labels)
    torch.testing.assert_close(soft_cross_entropy(LOGITS, F.one_hot(labels, 5).float()), expected)


def test_logit_mse_is_the_mean_square():
    expected = ((LOGITS - TEACHER_LOGITS) ** 2).sum() / LOGITS.numel()
    torch.testing.assert_close(logit_mse(LOGITS, TEACHER_LOGITS), expected)
