from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fmdist.contracts import Batch, DataSpec, InputSpec, TargetSpec
from fmdist.errors import CapabilityError
from fmdist.models import cnn, mlp
from fmdist.stages.modules import Modules
from fmdist.tasks import decoding
from fmdist.tasks.classification import Classification, Config
from fmdist.training.evaluation import confidence_interval, score, wilson_interval
from tests.parts import Targets

IMAGES = (InputSpec("image", (1, 8, 8)),)
CLASSES = DataSpec(IMAGES, TargetSpec("class", ("a", "b", "c")), 60, (30, 20, 10))
LABELS = DataSpec(IMAGES, TargetSpec("labels", ("x", "y")), 60, (15, 40))


def build(spec: DataSpec = CLASSES, /, **fields: Any) -> Classification:
    return Config.model_validate(fields).build(spec, Modules(mlp.Config(hidden=(4,))))


def batch_of(size: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(size, 1, 8, 8, generator=generator)
    return {"image": image, "target": torch.arange(size) % 3, "index": torch.arange(size)}


def mean_loss(task: Classification, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return our mean loss and the logits behind it."""
    out = task.loss(task.roles(), batch, torch.Generator())
    assert out.count == pytest.approx(task.count(batch))
    return out.loss_sum / out.count, task.outputs(task.roles(), batch)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_mean_loss_is_torchs(smoothing: float, weighted: bool) -> None:
    task = build(label_smoothing=smoothing, class_weights="balanced" if weighted else "none")
    weights = torch.tensor([60 / 3 / 30, 60 / 3 / 20, 60 / 3 / 10]) if weighted else None
    batch = batch_of()
    ours, logits = mean_loss(task, batch)
    torchs = functional.cross_entropy(logits, batch["target"], weight=weights, label_smoothing=smoothing)
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_mean_loss_of_labels_is_torchs(smoothing: float, weighted: bool) -> None:
    task = build(LABELS, label_smoothing=smoothing, class_weights="balanced" if weighted else "none")
    weights = torch.tensor([45 / 15, 20 / 40]) if weighted else None
    target = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    batch = batch_of(3) | {"target": target}
    ours, logits = mean_loss(task, batch)
    smoothed = target * (1 - smoothing) + smoothing / 2
    torch.testing.assert_close(
        ours, functional.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)
    )


def test_focal_loss_is_the_papers() -> None:
    batch = batch_of()
    ours, logits = mean_loss(build(focal_gamma=2.0), batch)
    p = logits.softmax(1)[torch.arange(12), batch["target"]]
    torch.testing.assert_close(ours, (-((1 - p) ** 2) * p.log()).mean())


def test_focal_loss_of_labels_is_the_papers() -> None:
    target = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    ours, logits = mean_loss(build(LABELS, focal_gamma=1.5), batch_of(3) | {"target": target})
    p = torch.where(target == 1, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(ours, (-((1 - p) ** 1.5) * p.log()).mean())


@pytest.mark.parametrize("spec", [CLASSES, LABELS])
def test_focal_loss_of_a_certain_answer_has_finite_gradients(spec: DataSpec) -> None:
    task = build(spec, focal_gamma=0.5)
    logits = torch.tensor([[200.0, -200.0, -200.0][: len(spec.target.names)]], requires_grad=True)
    target = torch.tensor([0]) if spec is CLASSES else torch.tensor([[1.0, 0.0]])
    loss, _ = task._loss_sum(logits, target)
    torch.autograd.backward(loss)
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.0] * len(spec.target.names)]


def test_balanced_sampling_draws_every_class_as_often() -> None:
    targets = np.array([0, 0, 0, 0, 1, 1, 2])
    weights = build(sampling="balanced").sample_weights(targets)
    assert weights is not None
    assert [weights[targets == label].sum() for label in range(3)] == pytest.approx([1, 1, 1])


def test_the_baseline_is_the_most_frequent_class() -> None:
    train, test = np.array([0] * 5 + [1] * 3 + [2] * 2), np.array([0] * 7 + [1] * 3)
    task = build()
    metrics = score(task, task.baseline(Targets(train), Targets(test)), test)
    assert metrics["accuracy"] == pytest.approx(0.7)
    frequency = {0: 0.5, 1: 0.3}
    assert metrics["loss"] == pytest.approx(-np.mean([np.log(frequency[label]) for label in test]), rel=1e-4)


def test_the_baseline_of_labels_gives_the_frequent_ones() -> None:
    train = np.array([[0, 1], [0, 1], [1, 1], [0, 0]], np.float32)
    task = build(LABELS)
    assert (1 / (1 + np.exp(-task.baseline(Targets(train), Targets(train[:1]))))).tolist() == [
        pytest.approx([0.25, 0.75])
    ]
    assert score(task, task.baseline(Targets(train), Targets(train)), train)["exact_match"] == pytest.approx(
        0.5
    )


def test_the_threshold_decides_what_is_a_label() -> None:
    outputs = np.log(np.array([[0.3, 0.8]]) / (1 - np.array([[0.3, 0.8]]))).astype(np.float32)
    target = np.array([[1.0, 1.0]], np.float32)
    assert score(build(LABELS), outputs, target)["exact_match"] == 0
    assert score(build(LABELS, threshold=0.25), outputs, target)["exact_match"] == 1


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("low", [-4.0, 0.0])
def test_labels_are_scored_as_they_are_answered(low: float, threshold: float) -> None:
    # With ``low`` 0 all logits are in [0, 1], and look like probabilities.
    random = np.random.default_rng(0)
    logits = random.uniform(low, 1.0, (50, 2)).astype(np.float32)
    target = random.integers(0, 2, (50, 2)).astype(np.float32)
    task = build(LABELS, threshold=threshold)
    answers = decoding.decode(task.decoding(), logits)
    given = np.array([[name in answer["labels"] for name in ("x", "y")] for answer in answers])
    right = given == target.astype(bool)
    found = score(task, logits, target)
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["exact_match"] == pytest.approx(right.all(axis=1).mean())
    both = [(given[:, k] & (target[:, k] == 1)).sum() for k in range(2)]
    f1 = [2 * both[k] / (given[:, k].sum() + target[:, k].sum()) for k in range(2)]
    assert found["f1_macro"] == pytest.approx(np.mean(f1))
    batches = task.metrics()
    for start in range(0, 50, 7):
        part = slice(start, start + 7)
        batches.update(torch.from_numpy(logits[part]), torch.from_numpy(target[part]))
    assert {name: float(value) for name, value in batches.compute().items()} == pytest.approx(found, rel=1e-6)


def test_a_frequent_label_is_given_though_its_log_odds_look_like_a_probability() -> None:
    # Log odds of 0.6 are 0.41, which is no probability.
    train = np.array([[1, 1]] * 6 + [[0, 0]] * 4, np.float32)
    task = build(LABELS)
    assert score(task, task.baseline(Targets(train), Targets(train)), train)["accuracy"] == pytest.approx(0.6)


def test_one_label_is_enough() -> None:
    spec = DataSpec(IMAGES, TargetSpec("labels", ("x",)), 60, (15,))
    logits = np.array([[2.0], [0.5], [-1.0], [-3.0]], np.float32)
    target = np.array([[1.0], [0.0], [1.0], [0.0]], np.float32)
    task = build(spec)
    found = score(task, logits, target)
    assert found["accuracy"] == found["exact_match"] == found["f1_macro"] == 0.5
    task = build(spec, primary="exact_match")
    assert confidence_interval(task, logits, target, 0) == wilson_interval(0.5, 4)


def mixed(task: Classification, batch: Batch, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Return the images and targets that the loss of a mixing task is computed on."""
    changed, target = task._mix(batch, torch.Generator().manual_seed(seed))
    return changed["image"], target


@pytest.mark.parametrize("mix", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixing_is_keyed_by_the_generator_alone(mix: dict[str, float]) -> None:
    task, batch = build(**mix), batch_of()
    before = batch["image"].clone()
    torch.manual_seed(1)
    first = mixed(task, batch)
    torch.manual_seed(2)
    again = mixed(task, batch)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert len({mixed(task, batch, seed)[0].numpy().tobytes() for seed in range(20)}) > 10
    assert torch.equal(batch["image"], before), "the batch itself stays as it was"


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixed_targets_are_shares(mix: str) -> None:
    task = build(**{mix: 1.0})
    for seed in range(30):
        target = mixed(task, batch_of(), seed)[1]
        torch.testing.assert_close(target.sum(1), torch.ones(12))
        assert target.min() >= 0


def test_mixup_blends_images_as_it_blends_targets() -> None:
    batch = batch_of()
    image, target = mixed(build(mixup=1.0), batch)
    share = target[0, 0]
    assert 0 < share < 1
    torch.testing.assert_close(image, share * batch["image"] + (1 - share) * batch["image"].roll(1, 0))


def test_cutmix_pastes_as_many_pixels_as_the_targets_say() -> None:
    batch = batch_of()
    for seed in range(30):
        image, target = mixed(build(cutmix=1.0), batch, seed)
        pasted = (image != batch["image"]).flatten(1).float().mean(1)
        torch.testing.assert_close(pasted, 1 - target[torch.arange(12), batch["target"]])


def test_the_loss_of_a_mixed_batch_is_over_its_samples() -> None:
    task = build(mixup=1.0, class_weights="balanced", label_smoothing=0.1)
    batch = batch_of()
    out = task.loss(task.roles(), batch, torch.Generator().manual_seed(5))
    changed, target = task._mix(batch, torch.Generator().manual_seed(5))
    weights = torch.tensor([60 / 3 / 30, 60 / 3 / 20, 60 / 3 / 10])
    logits = task.outputs(task.roles(), changed)
    expected = functional.cross_entropy(logits, target, weight=weights, label_smoothing=0.1)
    torch.testing.assert_close(out.loss_sum / out.count, expected)
    assert out.count == task.count(batch) == 12


def test_mixing_a_batch_of_one_leaves_it() -> None:
    batch = batch_of(1)
    image, target = mixed(build(mixup=1.0), batch)
    torch.testing.assert_close(image, batch["image"])
    assert target.tolist() == [[1, 0, 0]]


VALUES = DataSpec(IMAGES, TargetSpec("value", ("price",)), 60, (), ((0.0, 1.0),))
EMPTY = DataSpec(IMAGES, TargetSpec("class", ("a", "b", "c")), 60, (30, 30, 0))
TABLE = DataSpec((InputSpec("row", (4,)),), CLASSES.target, 60, CLASSES.counts)


@pytest.mark.parametrize(
    ("spec", "fields", "message"),
    [
        (VALUES, {}, r"task\.kind: 'classification' needs classes.*Use task\.kind 'regression'"),
        (LABELS, {"sampling": "balanced"}, r"task\.sampling.*Use class_weights: balanced"),
        (EMPTY, {"class_weights": "balanced"}, r"task\.class_weights.*absent there, got \['c'\]"),
        (TABLE, {"cutmix": 1.0}, r"task\.cutmix: cutmix pastes boxes between images"),
        (CLASSES, {"primary": "exact_match"}, r"task\.primary.*allowed: accuracy, f1_macro, loss"),
    ],
)
def test_what_can_not_be_is_refused_with_the_reason(
    spec: DataSpec, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(CapabilityError, match=message):
        build(spec, **fields)


def test_the_primary_metric_can_be_chosen() -> None:
    assert build().primary == ("accuracy", "max")
    assert build(LABELS).primary == ("f1_macro", "max")
    assert build(primary="loss").primary == ("loss", "min")


def test_a_cnn_learns_labels() -> None:
    task = Config().build(LABELS, Modules(cnn.Config(channels=(4,), blocks=1)))
    assert task.outputs(task.roles(), batch_of()).shape == (12, 2)
