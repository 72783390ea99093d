"""Distillation: the closed forms of the losses, what the teacher sees, what is refused, and exact resume."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fmdist import component, stages, storage
from fmdist.contracts import Batch, DataSpec, Draw, InputSpec, TargetSpec, Task
from fmdist.data import digits
from fmdist.data.splits import DataSplits
from fmdist.data.tokenizer import fit_tokenizer
from fmdist.data.tokenizer_config import TokenizerConfig
from fmdist.errors import CapabilityError, CheckpointError
from fmdist.models import lstm_lm, mlp
from fmdist.models.base import ModelConfig
from fmdist.stages.modules import Modules
from fmdist.tasks import classification, language_modeling, regression
from fmdist.tasks.base import TaskConfig
from fmdist.training.distill_config import DistillConfig
from fmdist.training.distillation import Distilled, Teacher, class_losses, distill, label_losses
from fmdist.training.run import build_task
from tests.faults.rig import outcome, small_recipe, train_until

SIZE = 6
ROW = (InputSpec("row", (5,)),)
CLASS = DataSpec(ROW, TargetSpec("class", ("a", "b", "c")), SIZE, (3, 2, 1))
LABELS = DataSpec(ROW, TargetSpec("labels", ("x", "y", "z")), SIZE, (3, 2, 1))
VALUE = DataSpec(ROW, TargetSpec("value", ("u", "v")), SIZE, (), ((1.0, 2.0), (-5.0, 10.0)))


def text_spec() -> DataSpec:
    tokenizer = fit_tokenizer(TokenizerConfig(kind="character", min_count=1), ["abcab"])
    inputs = (InputSpec("text", (None,), "int64", 7, 4),)
    return DataSpec(
        inputs, TargetSpec("tokens", size=7), SIZE, tokenizers={"text": tokenizer, "target": tokenizer}
    )


NETS: dict[str, tuple[TaskConfig, ModelConfig]] = {
    "class": (classification.Config(), mlp.Config(hidden=(4,))),
    "labels": (classification.Config(), mlp.Config(hidden=(4,))),
    "value": (regression.Config(), mlp.Config(hidden=(4,))),
    "tokens": (language_modeling.Config(), lstm_lm.Config(dropout=0.0)),
}


def make(spec: DataSpec, seed: int = 0, config: TaskConfig | None = None) -> Task:
    task, net = NETS[spec.target.kind]
    return build_task(config or task, seed, spec, Modules(net))


def batch_of(spec: DataSpec) -> Batch:
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(SIZE)
    if spec.target.kind == "tokens":
        tokens_BT = torch.randint(2, 7, (SIZE, 4), generator=generator)
        target_BT = torch.randint(2, 7, (SIZE, 4), generator=generator)
        for values in (tokens_BT, target_BT):
            values[1:3, 2:] = 0
        return {"text": tokens_BT, "target": target_BT, "index": index}
    target = {
        "class": torch.randint(3, (SIZE,), generator=generator),
        "labels": torch.randint(2, (SIZE, 3), generator=generator).float(),
        "value": torch.randn(SIZE, 2, generator=generator),
    }[spec.target.kind]
    return {"row": torch.randn(SIZE, 5, generator=generator), "target": target, "index": index}


def loss(task: Task, batch: Batch) -> Tensor:
    (phase,) = task.phases()
    out = phase.loss(task.roles(), batch, torch.Generator())
    assert out.count == task.count(batch)
    return out.loss_sum


def outputs(task: Task, batch: Batch) -> Tensor:
    found: Tensor = task.served(task.roles())(*[batch[item.name] for item in task.inputs])
    return found


def wrapped(spec: DataSpec, **fields: Any) -> tuple[Task, nn.Module, Distilled]:
    """The task alone, the teacher, and the task with the teacher."""
    task, taught = make(spec), make(spec, seed=1)
    teacher = taught.served(taught.roles())
    return task, teacher, Distilled(task, configured(**fields), teacher)


def configured(**fields: Any) -> DistillConfig:
    return DistillConfig.model_validate({"teacher": Path("x"), **fields})


def test_the_divergence_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = ((values / 2.5).softmax(dim=-1).numpy() for values in (teacher, student))
    expected = 2.5**2 * (p * (np.log(p) - np.log(q))).sum(axis=1)
    np.testing.assert_allclose(class_losses(student, teacher, 2.5).numpy(), expected, rtol=1e-12)
    assert class_losses(student, student + 7, 2.5).abs().max() < 1e-12


def test_its_gradient_is_that_of_hintons_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    (ours,) = torch.autograd.grad(class_losses(student, teacher, 3.0).sum(), student)
    cross = -((teacher / 3).softmax(dim=-1) * (student / 3).log_softmax(dim=-1)).sum() * 9
    (theirs,) = torch.autograd.grad(cross, student)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours, 3 * ((student / 3).softmax(dim=-1) - (teacher / 3).softmax(dim=-1)))


def test_labels_are_taught_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = (torch.sigmoid(values / 2) for values in (teacher, student))
    expected = 4 * -(p * q.log() + (1 - p) * (1 - q).log()).mean(dim=1)
    torch.testing.assert_close(label_losses(student, teacher, 2.0), expected)


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("spec", [CLASS, LABELS, VALUE, text_spec()], ids=lambda spec: spec.target.kind)
def test_the_loss_mixes_labels_and_teacher(spec: DataSpec, share: float) -> None:
    task, teacher, learned = wrapped(spec, soft_weight=share, temperature=2.0)
    batch = batch_of(spec)
    ours = outputs(task, batch)
    taught = teacher(*[batch[item.name] for item in task.inputs])
    if spec.target.kind == "class":
        soft = class_losses(ours, taught, 2.0).sum()
    elif spec.target.kind == "labels":
        soft = label_losses(ours, taught, 2.0).sum()
    elif spec.target.kind == "value":
        soft = (((ours - taught) / torch.tensor([2.0, 10.0])) ** 2).mean(dim=1).sum()
    else:
        scored = batch["target"] != 0
        soft = class_losses(ours[scored], taught[scored], 2.0).sum()
    expected = (1 - share) * loss(task, batch) + share * soft
    torch.testing.assert_close(loss(learned, batch), expected)


@pytest.mark.parametrize("spec", [CLASS, LABELS, text_spec()], ids=lambda spec: spec.target.kind)
def test_hard_targets_are_the_teachers_answers(spec: DataSpec) -> None:
    task, teacher, learned = wrapped(spec, soft_weight=1.0, targets="hard")
    batch = batch_of(spec)
    taught = teacher(*[batch[item.name] for item in task.inputs])
    ours = outputs(task, batch)
    if spec.target.kind == "tokens":
        scored = batch["target"] != 0
        ours, taught = ours[scored], taught[scored]
    if spec.target.kind == "labels":
        losses = functional.binary_cross_entropy_with_logits(ours, (taught > 0).float(), reduction="none")
        expected = losses.mean(dim=1).sum()
    else:
        expected = functional.cross_entropy(ours, taught.argmax(dim=-1), reduction="sum")
    torch.testing.assert_close(loss(learned, batch), expected)


def test_only_the_student_learns() -> None:
    _, teacher, learned = wrapped(CLASS)
    loss(learned, batch_of(CLASS)).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in learned.roles()["model"].parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert set(learned.roles()) == {"model"}


class Counting(nn.Module):
    """A module that counts its forwards."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, *inputs: Tensor) -> Tensor:
        self.calls += 1
        found: Tensor = self.module(*inputs)
        return found


def test_one_forward_serves_both_parts() -> None:
    _, _, learned = wrapped(CLASS)
    student = Counting(learned.roles()["model"])
    learned.phases()[0].loss({"model": student}, batch_of(CLASS), torch.Generator())
    assert student.calls == 1


def test_both_see_the_same_blend() -> None:
    """Mixup blends within the loss; the teacher is asked about what the student saw."""
    task = make(CLASS, config=classification.Config(mixup=1.0))
    seen: list[Tensor] = []
    teacher = make(CLASS, seed=1).roles()["model"]
    teacher.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    task.roles()["model"].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    batch = batch_of(CLASS)
    learned = Distilled(task, configured(), teacher)
    learned.phases()[0].loss(learned.roles(), batch, torch.Generator().manual_seed(0))
    student_saw, teacher_saw = seen
    assert torch.equal(student_saw, teacher_saw)
    assert not torch.equal(student_saw, batch["row"])


# Which teacher is taken.


def digits_data(**fields: Any) -> DataSplits:
    return digits.Config.model_validate(fields).build(seed=0)


def digits_task(data: DataSplits, seed: int = 0, dropout: float = 0.0) -> Task:
    net = mlp.Config(hidden=(8,), dropout=dropout)
    return build_task(classification.Config(), seed, data.spec, Modules(net))


@pytest.fixture(scope="module")
def data() -> DataSplits:
    return digits_data()


def teacher_of(data: DataSplits) -> Teacher:
    return Teacher(digits_task(data, seed=1), data.preprocess.to_json())


def test_a_noisy_student_sees_other_samples_than_its_teacher(data: DataSplits) -> None:
    augmented = digits_data(augment={"crop_padding": 2})
    seen: list[Tensor] = []
    teacher = teacher_of(data)
    teacher.task.roles()["model"].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    learned = distill(digits_task(augmented), configured(noisy_student=True), teacher, augmented)
    seen.clear()
    draw = Draw(0, np.array([3, 1, 4]))
    batch = augmented.train.__getitems__(draw)
    loss(learned, batch)
    assert torch.equal(seen[0], data.train.__getitems__(draw)["image"])
    assert not torch.equal(seen[0], batch["image"])


def test_teacher_and_data_must_fit(data: DataSplits) -> None:
    task, teacher = digits_task(data), teacher_of(data)
    distill(task, configured(), teacher, data)
    others = replace(data.spec.target, names=tuple(reversed(data.spec.target.names)))
    reversed_names = digits_task(replace(data, spec=replace(data.spec, target=others)))
    with pytest.raises(CapabilityError, match="has learned another target"):
        distill(task, configured(), Teacher(reversed_names, teacher.preprocessing), data)
    elsewhere = Teacher(teacher.task, digits_data(split={"seed": 9}).preprocess.to_json())
    with pytest.raises(
        CapabilityError, match=r"another preprocessing.*: another mean, std.*same data section and seed"
    ):
        distill(task, configured(), elsewhere, data)
    distill(digits_task(data, dropout=0.5), configured(noisy_student=True), elsewhere, data)


def test_a_noisy_student_needs_noise(data: DataSplits) -> None:
    with pytest.raises(CapabilityError, match="there is no noise"):
        distill(digits_task(data), configured(noisy_student=True), teacher_of(data), data)


def test_samples_of_different_weight_are_refused(data: DataSplits) -> None:
    weighted = classification.Config(class_weights="balanced")
    task = build_task(weighted, 0, data.spec, Modules(mlp.Config(hidden=(4,))))
    with pytest.raises(CapabilityError, match="class_weights: none"):
        distill(task, configured(), teacher_of(data), data)


def test_numbers_have_no_hard_targets(data: DataSplits) -> None:
    with pytest.raises(CapabilityError, match=r"distill\.targets"):
        distill(make(VALUE), configured(targets="hard"), Teacher(make(VALUE, seed=1), {}), data)


DISTILLED = ("outputs", "language", "pair")


@pytest.mark.parametrize(
    "kind",
    [
        kind.name
        for kind in component.kinds("tasks").values()
        if kind.facts.get("needs", "outputs") not in DISTILLED
    ],
)
def test_other_tasks_are_refused_when_the_recipe_is_read(kind: str) -> None:
    needs = component.kinds("tasks")[kind].facts["needs"]
    model = next(
        found.name
        for found in component.kinds("models").values()
        if found.facts.get("form", "outputs") == needs
    )
    recipe = small_recipe() | {"model": {"kind": model}, "task": {"kind": kind}, "distill": {"teacher": "x"}}
    if kind == "adversarial":
        recipe["task"] = {"kind": kind, "judge": "x"}
    with pytest.raises(CapabilityError, match=f"distill: task '{kind}' has no outputs for each sample"):
        stages.load_recipe(recipe)


def test_blends_and_clean_samples_exclude_each_other() -> None:
    recipe = small_recipe(task={"mixup": 0.2}) | {"distill": {"teacher": "x", "noisy_student": True}}
    with pytest.raises(CapabilityError, match=r"distill\.noisy_student: .* task\.mixup blends samples"):
        stages.load_recipe(recipe)


# Whole runs.


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    stages.train(small_recipe({"epochs": 2}, model={"kind": "mlp", "hidden": [32]}), output=folder)
    return folder


@pytest.mark.slow
def test_resuming_is_exact_and_what_follows_needs_no_teacher(taught: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(taught, teacher)
    recipe = small_recipe({"ema": {"decay": 0.9}}) | {
        "distill": {"teacher": str(teacher), "soft_weight": 0.9}
    }
    stages.train(recipe, output=tmp_path / "whole")
    train_until(7, signal.SIGTERM, recipe, tmp_path / "parts")
    stages.train(recipe, output=tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    shutil.rmtree(teacher)
    scores = storage.read_json(tmp_path / "parts" / "evaluation" / "test.json")
    assert stages.evaluate(tmp_path / "parts")["metrics"] == pytest.approx(scores["metrics"])
    saved = next((tmp_path / "parts" / "checkpoints").glob("step-*"))
    assert {file.stem for file in saved.glob("*.safetensors")} == {"model", "ema.model", "optimizer.model"}


@pytest.mark.slow
def test_another_teacher_on_resume_is_refused(taught: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(taught, teacher)
    recipe = small_recipe() | {"distill": {"teacher": str(teacher)}}
    train_until(7, signal.SIGTERM, recipe, tmp_path / "run")
    shutil.rmtree(teacher)
    other = small_recipe({"epochs": 1}, model={"kind": "mlp", "hidden": [8]})
    stages.train(other, output=teacher)
    with pytest.raises(CheckpointError, match="the teacher has changed since training began"):
        stages.train(recipe, output=tmp_path / "run")


def test_a_teacher_that_is_no_run_leaves_no_run(tmp_path: Path) -> None:
    recipe = small_recipe() | {"distill": {"teacher": str(tmp_path / "missing")}}
    with pytest.raises(CheckpointError, match="no such run"):
        stages.train(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
