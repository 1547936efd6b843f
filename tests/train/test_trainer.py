"""One step: parts add up to the whole, and what is not finite never reaches the weights."""

import math

import pytest
import torch
from shapes_data import shapes_tree
from torch import nn

from clq_train.checkpoint import WEIGHTS, save_weights
from clq_train.clq import Objects
from clq_train.config import parse_config
from clq_train.device import check_precision, open_own_device
from clq_train.errors import ConfigError
from clq_train.processes import Processes
from clq_train.samples import Batch
from clq_train.trainer import NotFinite, Trainer

SIDE_PX = 64


@pytest.fixture
def tree(tmp_path):
    return shapes_tree(tmp_path)


def trainer_of(tree, run=(), **schedule):
    changes = {"schedule": tree["schedule"] | schedule, "run": tree["run"] | dict(run)}
    return Trainer(parse_config(tree | changes, "test"))


def batch_of(boxes_per_image, seed=0):
    """Random images with so many random objects each."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(
        0, 256, (len(boxes_per_image), SIDE_PX, SIDE_PX, 3), generator=generator
    ).to(torch.uint8)
    objects = []
    for count in boxes_per_image:
        corner = torch.rand(count, 2, generator=generator) * 30
        size = 12 + torch.rand(count, 2, generator=generator) * 20
        labels = torch.randint(0, 2, (count,), generator=generator)
        objects.append(Objects(torch.cat([corner, corner + size], 1), labels))
    return Batch(images, objects, [f"{i}.png" for i in range(len(boxes_per_image))])


def part(batch, start, stop):
    chosen = slice(start, stop)
    return Batch(batch.images[chosen], batch.objects[chosen], batch.paths[chosen])


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(first, second):
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_parts_that_are_added_up_give_the_step_of_the_whole_batch(tree):
    options = {"optimizer": "sgd", "lr": 0.01, "warmup_steps": 0, "clip_norm": 1.0, "batch": 4}
    whole, parts = trainer_of(tree, **options), trainer_of(tree, **options, accumulate=2)
    for trainer in (whole, parts):
        trainer.model.eval()  # batch norms would make an image depend on the others of its batch
    for step in (1, 2):
        batch = batch_of([6, 3, 0, 0], seed=step)  # the second part has no positives at all
        ours = parts.step([part(batch, 0, 2), part(batch, 2, 4)], step)
        theirs = whole.step([batch], step)
        assert ours == pytest.approx(theirs, rel=1e-5)
    for name, value in weights_of(whole).items():
        torch.testing.assert_close(weights_of(parts)[name], value, rtol=1e-5, atol=1e-6)


def test_the_divisor_is_the_mean_over_the_parts_and_at_least_one(tree):
    trainer = trainer_of(tree, accumulate=2)
    assert trainer.step([batch_of([0, 0]), batch_of([0, 0])], 1)["positives"] == 2
    batch = batch_of([4, 0])
    count = int((trainer.model.assign(batch.images, batch.objects).matches >= 0).sum())
    assert trainer.step([batch, batch_of([0, 0])], 2)["positives"] == count > 2


def test_a_loss_that_is_not_finite_stops_before_the_update(tree):
    trainer = trainer_of(tree)
    with torch.no_grad():
        trainer.model.head.cls.bias.fill_(math.nan)
    before = weights_of(trainer)["head.reg.weight"]
    with pytest.raises(
        NotFinite, match=r"step 1: the loss is not finite: .*'cls': nan.*images 0\.png, 1\.png$"
    ):
        trainer.step([batch_of([1, 1])], 1)
    assert torch.equal(weights_of(trainer)["head.reg.weight"], before)


def break_gradients(trainer):
    """Makes the gradient of one weight infinite, as an overflow would."""
    trainer.model.head.cls.bias.register_hook(lambda value: torch.full_like(value, math.inf))


def trained_weights(trainer):
    return {name: value.clone() for name, value in trainer.model.named_parameters()}


def test_a_gradient_that_is_not_finite_stops_before_the_update(tree):
    trainer = trainer_of(tree)
    break_gradients(trainer)
    before = trained_weights(trainer)
    with pytest.raises(NotFinite, match=r"the gradient is not finite: .*grad_norm (inf|nan)"):
        trainer.step([batch_of([1, 1])], 1)
    for name, value in trained_weights(trainer).items():
        assert torch.equal(value, before[name]), name


def test_in_float16_such_a_step_is_left_out_and_the_scale_halved_until_it_is_one(tree):
    trainer = trainer_of(tree, run={"autocast": "float16"}, warmup_steps=0)
    before = trained_weights(trainer)
    for step in range(1, 17):  # the first scale, 65536, is too large for this model
        scale = trainer.scaler.get_scale()
        values = trainer.step([batch_of([2, 2])], step)
        if math.isfinite(values["grad_norm"]):
            break
        assert math.isfinite(values["cls"])
        assert trainer.scaler.get_scale() == scale / 2
        for name, value in trained_weights(trainer).items():
            assert torch.equal(value, before[name]), name
    assert 1 < step < 16
    assert trainer.scaler.get_scale() == scale
    assert not torch.equal(trained_weights(trainer)["head.cls.weight"], before["head.cls.weight"])

    break_gradients(trainer)
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 1.0})
    with pytest.raises(NotFinite, match="the gradient is not finite"):
        trainer.step([batch_of([2, 2])], 17)


def test_clipping_is_by_the_norm_that_is_reported(tree):
    options = {"optimizer": "sgd", "lr": 1.0, "warmup_steps": 0, "weight_decay": 0.0}
    trainer = trainer_of(tree, **options, clip_norm=0.5)
    before = trained_weights(trainer)
    norm = trainer.step([batch_of([3, 3])], 1)["grad_norm"]
    moved = [value - before[name] for name, value in trained_weights(trainer).items()]
    length = nn.utils.get_total_norm(moved).item()
    rate = trainer.optimizer.param_groups[0]["lr"]
    assert norm > 0.5
    assert length == pytest.approx(0.5 * rate, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "processes", "message"),
    [
        ("gpu7", Processes(), "'gpu7' is no device; accepted: cpu, cuda, cuda:N"),
        ("mps", Processes(), "'mps' is no device; accepted: cpu, cuda, cuda:N"),
        ("cuda:99", Processes(), "'cuda:99' is not there; CUDA GPUs found: "),
        ("cuda:0", Processes(1, 2, 1, 2), "'cuda:0' with 2 processes; accepted: cpu, cuda"),
    ],
)
def test_a_device_that_is_not_there_is_named(name, processes, message):
    with pytest.raises(ConfigError, match=message):
        open_own_device(name, processes)


def test_more_processes_than_gpus_and_bfloat16_without_arithmetic_are_refused(monkeypatch):
    # The answers of a machine with one old GPU: what is under test is what is made of them.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ConfigError, match=r"2 processes on this machine, .* GPUs found: 1"):
        open_own_device("cuda", Processes(0, 2, 0, 2))
    with pytest.raises(ConfigError, match=r"Tesla T4 has no bfloat16 .* accepted there: float16"):
        check_precision("bfloat16", torch.device("cuda", 0))
    check_precision("bfloat16", torch.device("cpu"))


def test_synchronised_norms_are_refused_on_the_cpu(tree):
    with pytest.raises(ConfigError, match=r"run\.sync_norm: only on GPUs; run\.device is cpu"):
        trainer_of(tree, run={"sync_norm": True})


def test_frozen_statistics_are_used_and_kept_while_the_factors_learn(tree, tmp_path):
    start = weights_of(trainer_of(tree))
    generator = torch.Generator().manual_seed(3)
    statistics = {k for k in start if k.endswith(("running_mean", "running_var"))}
    for name in statistics:  # none that a batch here has
        start[name] += 0.1 * torch.rand(start[name].shape, generator=generator)
    path = save_weights(tmp_path, start, parse_config(tree, "test")) / WEIGHTS
    given = tree | {"init": str(path)}
    trainer, reference = trainer_of(given, frozen_statistics=True), trainer_of(given)
    reference.model.eval()
    batch = batch_of([5, 3])
    assert trainer.step([batch], 2) == reference.step([batch], 2)
    learned = weights_of(trainer)
    assert all(torch.equal(learned[name], start[name]) for name in statistics)
    for name in ("backbone.stages.0.1.weight", "head.cls_tower.norms.0.levels.0.bias"):
        assert not torch.equal(learned[name], start[name]), name


def test_a_run_under_muon_goes_on_from_its_state_bit_for_bit(tree, tmp_path):
    first = trainer_of(tree, optimizer="muon", ema=0.9)
    for step in (1, 2):
        first.step([batch_of([4, 2], seed=step)], step)
    path = tmp_path / "state.pt"
    torch.save(first.state(2), path)
    second = trainer_of(tree, optimizer="muon", ema=0.9)
    assert second.restore(torch.load(path, weights_only=True), path) == 2
    for trainer in (first, second):
        trainer.step([batch_of([3, 3], seed=3)], 3)
    for name, value in weights_of(first).items():
        assert torch.equal(value, weights_of(second)[name]), name


def test_under_muon_the_predicting_layers_and_all_vectors_learn_by_adamw(tree):
    trainer = trainer_of(tree, optimizer="muon")
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    matrices, others = (
        {names[id(p)] for p in group["params"]} for group in trainer.optimizer.param_groups
    )
    assert matrices | others == set(names.values())
    weights = {name for name, p in trainer.model.named_parameters() if p.dim() > 1}
    assert weights - matrices == {"head.cls.weight", "head.reg.weight", "head.quality.weight"}
    assert matrices < weights
