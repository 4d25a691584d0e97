"""The paper's numbers, and when they may stand beside ours."""

import pytest
from fakes import tiny_tree

from fedistill import config_file, published

CIFAR10 = published.TABLES["cifar10"]
HELD = [[5000] * 10]


def config(**sections):
    """The paper's setting, in as far as its tables tell it, but for some keys."""
    tree = tiny_tree(**{"data": {"name": "cifar10", "fraction": 1.0}, "partition": {"clients": 5}})
    tree["model"] = {"name": "resnet18"}
    tree["student"] = {"models": ["resnet18"], "protocol": "sre2l"}
    for key, value in sections.items():
        tree[key] = {**(tree.get(key) or {}), **value}
    return config_file.to_dict(config_file.from_dict(tree))


@pytest.mark.parametrize(
    ("name", "ipc", "clients", "top1"),
    [
        # The headline results, which the paper prints in its Table 2 too.
        ("cifar10", 10, 15, 54.1),
        ("cifar10", 50, 7, 73.7),
        ("cifar100", 1, 10, 18.7),
        ("cifar100", 10, 4, 44.7),
        # and plain SRe2L
        ("cifar10", 10, 1, 27.2),
        ("cifar100", 50, 1, 56.2),
    ],
)
def test_the_tables_hold_the_headline_results(name, ipc, clients, top1):
    assert published.TABLES[name].top1(ipc, clients) == top1


@pytest.mark.parametrize(("name", "most"), [("cifar10", 15), ("cifar100", 10)])
def test_every_line_has_every_number_of_clients(name, most):
    table = published.TABLES[name]
    assert {len(row) for row in table.rows.values()} == {len(table.teachers)} == {most}
    assert table.teachers[0] == max(table.teachers)


def test_three_cells_of_the_paper_are_above_its_teachers():
    """What `findings` says of them."""
    cells = [
        top1 >= teacher
        for table in published.TABLES.values()
        for row in table.rows.values()
        for top1, teacher in zip(row, table.teachers, strict=True)
    ]
    assert (sum(cells), len(cells)) == (3, 185)


def test_cells_that_the_paper_lacks_are_none():
    assert CIFAR10.top1(7, 1) is None
    assert CIFAR10.top1(10, 16) is None


@pytest.mark.parametrize("name", ["cifar10", "CIFAR-10", "uoft-cs/cifar10", "/home/me/cifar10/"])
def test_the_data_set_is_known_by_its_last_name(name):
    assert published.table({"data": {"name": name}}) is CIFAR10


def test_other_data_have_no_table():
    assert published.table({"data": {"name": "mnist"}}) is None


def test_the_same_setting_differs_in_nothing():
    assert published.differences(CIFAR10, config(), HELD) == []


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"data": {"fraction": 0.5}}, "data.fraction is 0.5"),
        ({"data": {"validation": 0.1}}, "data.validation is 0.1"),
        ({"data": {"zca": True}}, "data.zca is True"),
        ({"distill": {"name": "edc"}}, "distill.name is edc"),
        (
            {"distill": {"regularizers": [{"name": "total_variation", "weight": 1.0}]}},
            "distill.regularizers are set",
        ),
        ({"model": {"name": "convnet"}}, "the teachers are not ResNet-18"),
        ({"teacher": {"backbones": [{"name": "convnet"}]}}, "the teachers are not ResNet-18"),
        ({"teacher": {"count": 2}}, "teacher.count is 2"),
        ({"student": {"models": ["convnet", "resnet18"]}}, "the student is convnet"),
        ({"partition": {"name": "dirichlet"}}, "partition.name is dirichlet"),
        ({"relabel": {"name": "own"}}, "relabel.name is own"),
        ({"relabel": {"teacher_choice": "coverage"}}, "relabel.teacher_choice is coverage"),
        ({"relabel": {"prior_correction": True}}, "relabel.prior_correction is set"),
        ({"distill": {"init": "real"}}, "distill.init is real"),
        ({"distill": {"class_bn_weight": 1.0}}, "distill.class_bn_weight is set"),
        ({"federation": {"dropout": 0.4}}, "federation.dropout is 0.4"),
        ({"cotrain": {"name": "mib"}, "distill": {"ipc": [1, 10]}}, "cotrain is set"),
    ],
)
def test_what_is_not_the_same_is_named(sections, says):
    assert says in published.differences(CIFAR10, config(**sections), HELD)


def test_a_folder_named_like_the_data_set_is_no_proof():
    assert published.differences(CIFAR10, config(), [[10] * 10]) == [
        "100 training images of 10 classes"
    ]
    assert len(published.differences(CIFAR10, config(), [])) == 1


def test_one_client_is_the_plain_method_however_it_is_dealt_and_labelled():
    alone = config(partition={"name": "dirichlet", "clients": 1}, relabel={"name": "own"})
    assert published.differences(CIFAR10, alone, HELD) == []


def test_what_an_older_config_does_not_say_was_as_the_paper_has_it():
    older = config()
    for section, keys in {
        "data": ("zca", "size"),
        "teacher": ("count", "backbones"),
        "relabel": ("teacher_choice", "prior_correction"),
        "federation": ("dropout",),
    }.items():
        older[section] = {k: value for k, value in older[section].items() if k not in keys}
    del older["cotrain"]
    assert published.differences(CIFAR10, older, HELD) == []
