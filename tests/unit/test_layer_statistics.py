"""Layer statistics against plain loops, and the moving average with its gradient."""

import math
from collections.abc import Sequence

import pytest
import torch
from fakes import tiny_images, tiny_spec, tiny_teacher
from torch import Tensor, nn

from fedistill.losses.layer_statistics import (
    LayerMatching,
    LayerStatistics,
    layer_statistics,
    patch_moments,
    taps,
)
from fedistill.models.convnet import ConvNet
from fedistill.teacher import freeze

STREAM = torch.Generator().manual_seed(0)
SPEC, REAL = tiny_spec(), tiny_images()
IMAGES = torch.randn(5, 1, 8, 8, generator=STREAM)
LABELS = torch.tensor([2, 0, 2, 2, 0])
CLASSES = 3


def random_stream() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def small_net() -> nn.Sequential:
    """Two convolutions with BatchNorm between, statistics unlike those of any images here."""
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, stride=2)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(18, CLASSES))
    stream = torch.Generator().manual_seed(3)
    for tensor in [*net.parameters(), *net.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=stream) + 0.1
    return freeze(net)  # type: ignore[return-value]


def inputs_of(net: nn.Sequential, images: Tensor) -> list[Tensor]:
    """The inputs of the three layers with statistics."""
    return [images, net[0](images), net[1](net[0](images))]


def mean_and_var(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of a list of scalars, by two passes."""
    mean = sum(values) / len(values)
    return mean, sum((value - mean) ** 2 for value in values) / len(values)  # type: ignore[return-value]


def channels_by_loops(inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [
        mean_and_var([value for image in inputs for value in image[channel].flatten()])
        for channel in range(inputs.shape[1])
    ]


def patches_by_loops(inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Patches of whole 4 x 4 pixels; a side below 4 is one patch."""
    found = []
    for top in range(0, inputs.shape[2], 4):
        for left in range(0, inputs.shape[3], 4):
            pixels = inputs[:, :, top : top + 4, left : left + 4]
            found.append(mean_and_var(list(pixels.flatten())))
    return found


def statistics_by_loops(net: nn.Sequential, images: Tensor) -> list[list[tuple[Tensor, Tensor]]]:
    """For each tap of `small_net`, mean and variance of every column."""
    first, normalised, second = inputs_of(net, images)
    return [
        channels_by_loops(first),
        patches_by_loops(first),
        channels_by_loops(normalised),
        channels_by_loops(second),
        patches_by_loops(second),
    ]


def distances(found: list[list[tuple[Tensor, Tensor]]], mean: Tensor, var: Tensor) -> list[Tensor]:
    """For each tap, ||mean - M|| + ||var - V||."""
    result, column = [], 0
    for tap in found:
        squares = [torch.zeros(()), torch.zeros(())]
        for pair in tap:
            for which, wanted in enumerate((mean, var)):
                squares[which] = squares[which] + (pair[which] - wanted[column]) ** 2
            column += 1
        result.append(squares[0].sqrt() + squares[1].sqrt())
    assert column == len(mean)
    return result


def real_statistics(net: nn.Module) -> LayerStatistics:
    images = SPEC.normalise(REAL.images)
    chunks = zip(images.split(7), REAL.labels.split(7), strict=True)
    return layer_statistics(net, chunks, CLASSES)


@pytest.mark.parametrize("size", [(8, 4), (6, 7), (3, 1)])
def test_patch_moments_agree_with_loops(size: tuple[int, int]):
    inputs = torch.randn(3, 2, *size, generator=STREAM) * 2 + 1
    first, second = patch_moments(inputs, torch.tensor([0.5]))
    bands = [math.ceil(side / 4) for side in size]
    assert first.shape == second.shape == (3, bands[0] * bands[1])
    # Every pixel as bands x bands equal parts: a patch then holds whole parts.
    fine = inputs.repeat_interleave(bands[0], 2).repeat_interleave(bands[1], 3) - 0.5
    for image in range(3):
        for row in range(bands[0]):
            for column in range(bands[1]):
                rows = slice(row * size[0], (row + 1) * size[0])
                columns = slice(column * size[1], (column + 1) * size[1])
                values = fine[image, :, rows, columns]
                place = image, row * bands[1] + column
                assert first[place].item() == pytest.approx(values.mean().item(), abs=1e-5)
                assert second[place].item() == pytest.approx(values.square().mean().item(), 1e-4)


def test_the_gradient_of_patch_moments_is_that_of_the_plain_formula():
    weights = torch.randn(2, 4, 4, generator=STREAM)
    plain, ours = (torch.randn(4, 3, 8, 8, generator=random_stream()) for _ in range(2))
    parts = (plain.requires_grad_() - 0.3).unflatten(3, (2, 4)).unflatten(2, (2, 4))
    of_plain = [parts.mean((1, 3, 5)).flatten(1), parts.square().mean((1, 3, 5)).flatten(1)]
    of_ours = patch_moments(ours.requires_grad_(), torch.tensor([0.3]))
    gradients = [
        torch.autograd.grad((torch.stack(list(found)) * weights).sum(), inputs)[0]
        for found, inputs in ((of_plain, plain), (of_ours, ours))
    ]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_convolutions_have_channels_and_patches_and_batch_norms_channels():
    net = small_net()
    assert [(tap.layer, tap.patches) for tap in taps(net)] == [
        (net[0], False), (net[0], True), (net[1], False), (net[2], False), (net[2], True),
    ]  # fmt: skip
    assert real_statistics(net).sizes == [1, 4, 4, 4, 4]


def test_statistics_of_real_data_agree_with_loops():
    net = small_net()
    images = SPEC.normalise(REAL.images)
    real = real_statistics(net)
    of_batch_norm = slice(5, 9)
    for row, chosen in enumerate([torch.full_like(REAL.labels, True), *range(CLASSES)]):
        own = images[chosen.bool() if isinstance(chosen, Tensor) else REAL.labels == chosen]
        expected = [pair for tap in statistics_by_loops(net, own) for pair in tap]
        mean, var = (torch.stack(part) for part in zip(*expected, strict=True))
        if row == 0:  # the layer's own statistics hold for all images
            assert isinstance(net[1], nn.BatchNorm2d)
            mean[of_batch_norm] = net[1].running_mean  # type: ignore[assignment]
            var[of_batch_norm] = net[1].running_var  # type: ignore[assignment]
        torch.testing.assert_close(real.mean[row], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(real.var[row], var, rtol=1e-4, atol=1e-4)


def test_a_class_without_images_has_zeros_and_disturbs_nothing():
    real = layer_statistics(small_net(), [(IMAGES, LABELS)], CLASSES)
    assert not real.mean[1 + 1].any()
    assert real.mean[1 + 0].any()


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0])
def test_the_distance_agrees_with_loops(alpha: float):
    net = small_net()
    real = real_statistics(net)
    matching = LayerMatching(net, real, alpha=alpha, first_weight=10, stream=random_stream())
    matching.start(LABELS)
    logits, found = matching(IMAGES)
    weights = [10.0, 10.0, 1.0, 1.0, 1.0]
    expected = torch.zeros(())
    # The rows that count: weight, row of the real statistics, images.
    rows = [(alpha, 0, IMAGES)]
    for label, share in ((0, 2 / 5), (2, 3 / 5)):
        rows.append(((1 - alpha) * share, 1 + label, IMAGES[label == LABELS]))
    for share, row, images in rows:
        parts = distances(statistics_by_loops(net, images), real.mean[row], real.var[row])
        expected = expected + share * sum(w * d for w, d in zip(weights, parts, strict=True))
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(logits, net(IMAGES))


def test_the_gradient_of_the_distance_is_that_of_the_loops():
    net = small_net()
    real = real_statistics(net)
    matching = LayerMatching(net, real, stream=random_stream())
    matching.start(LABELS)
    images = IMAGES.clone().requires_grad_()
    (found,) = torch.autograd.grad(matching(images)[1], images)
    plain = sum(distances(statistics_by_loops(net, images), real.mean[0], real.var[0]))
    assert isinstance(plain, Tensor)
    (expected,) = torch.autograd.grad(plain, images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_real_data_is_at_no_distance_from_itself_and_the_gradient_there_is_finite():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, CLASSES))
    real = layer_statistics(freeze(net), [(IMAGES, LABELS)], CLASSES)
    matching = LayerMatching(net, real, alpha=0.5, stream=random_stream())
    matching.start(LABELS)
    images = IMAGES.clone().requires_grad_()
    distance = matching(images)[1]
    assert distance.item() == pytest.approx(0, abs=1e-4)
    assert torch.autograd.grad(distance, images)[0].isfinite().all()


def test_the_average_starts_with_the_first_value_and_passes_the_gradient_through():
    """v = EMA(v) + v_now - stop_gradient(v_now): the average's value, the current one's slope."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, CLASSES))
    real = layer_statistics(freeze(net), [(3 * IMAGES - 1, LABELS)], CLASSES)
    matching = LayerMatching(net, real, momentum=0.8, stream=random_stream())
    matching.start(LABELS)
    average: Tensor | None = None
    for step in range(3):
        images = (IMAGES * (1 + step) + step).requires_grad_()
        now = torch.stack(  # [5 columns, mean and var]
            [torch.stack(pair) for pair in channels_by_loops(images) + patches_by_loops(images)]
        )
        average = now.detach() if average is None else 0.8 * average + 0.2 * now.detach()
        through = average + now - now.detach()
        apart = through - torch.stack([real.mean[0], real.var[0]], 1)
        expected = apart[:1].norm(dim=0).sum() + apart[1:].norm(dim=0).sum()
        found = matching(images)[1]
        assert found.item() == pytest.approx(expected.item(), rel=1e-4)
        torch.testing.assert_close(
            *(torch.autograd.grad(loss, images)[0] for loss in (found, expected)),
            rtol=1e-3,
            atol=1e-5,
        )


def test_a_class_that_comes_later_starts_its_own_average():
    net = small_net()
    real = real_statistics(net)
    seen, fresh = (
        LayerMatching(net, real, alpha=0.0, momentum=0.8, stream=random_stream()) for _ in "ab"
    )
    seen.start(torch.zeros(5, dtype=torch.int64))
    seen(IMAGES + 5)
    values = []
    for matching in (seen, fresh):
        matching.start(torch.full((5,), 2))
        values.append(matching(IMAGES)[1].item())
    assert values[0] == pytest.approx(values[1])


def test_a_convolution_is_dropped_as_a_whole_and_a_batch_norm_never():
    net = small_net()
    real = real_statistics(net)
    parts = distances(statistics_by_loops(net, IMAGES), real.mean[0], real.var[0])
    first, batch_norm, second = parts[0] + parts[1], parts[2], parts[3] + parts[4]
    possible = [
        (batch_norm + a * first + b * second).item() for a in (False, True) for b in (False, True)
    ]
    matching = LayerMatching(net, real, drop=0.25, stream=random_stream())
    matching.start(LABELS)
    counts = [0] * 4
    for _ in range(200):
        value = matching(IMAGES)[1].item()
        (which,) = [n for n, it in enumerate(possible) if value == pytest.approx(it, rel=1e-4)]
        counts[which] += 1
    kept_first, kept_second = counts[2] + counts[3], counts[1] + counts[3]
    assert 130 < kept_first < 170
    assert 130 < kept_second < 170


def test_a_dropped_layer_leaves_its_average_as_it_was():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, CLASSES))
    real = layer_statistics(freeze(net), [(IMAGES + 1, LABELS)], CLASSES)
    matching = LayerMatching(net, real, momentum=0.5, drop=0.5, stream=random_stream())
    reference = LayerMatching(net, real, momentum=0.5, stream=random_stream())
    for one in (matching, reference):
        one.start(LABELS)
    acted = 0
    for step in range(20):
        value = matching(IMAGES * step)[1].item()
        if value:
            acted += 1
            assert value == pytest.approx(reference(IMAGES * step)[1].item(), rel=1e-4)
    assert 0 < acted < 20


def test_a_network_without_batch_norm_is_matched_too():
    net = freeze(ConvNet(1, 8, CLASSES, depth=2, width=4, norm="instance"))
    matching = LayerMatching(net, real_statistics(net), stream=random_stream())
    matching.start(LABELS)
    assert matching(IMAGES)[1].item() > 0


def test_hooks_are_gone_even_after_an_error():
    net = tiny_teacher()
    matching = LayerMatching(net, real_statistics(net), stream=random_stream())
    matching.start(LABELS)
    with pytest.raises(RuntimeError):
        matching(torch.zeros(2, 7, 8, 8))
    assert not any(module._forward_pre_hooks for module in net.modules())
