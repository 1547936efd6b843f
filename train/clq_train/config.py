"""The configuration of a run: one complete YAML file, frozen; an unknown key is an error."""

import math
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clq_serve.preprocess import InputRule
from clq_train.errors import ConfigError

MOST_CANDIDATES = 3840  # TensorRT's TopK takes no more


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitConfig(Section):
    """One COCO-format annotation file and the folder that its file names are relative to."""

    annotations: Path
    images: Path
    allow_broken: int = Field(
        default=0, ge=0, description="so many broken entries are left out; more are an error"
    )


class MoreConfig(SplitConfig):
    """Another data set to train on."""

    times: int = Field(default=1, ge=1, description="how often an epoch shows each of its images")


class DataConfig(Section):
    """COCO-format data; every category is in `classes`, a key of `merge`, or in `drop`."""

    root: Path = Field(description="folder that the paths of the splits are relative to")
    splits: dict[str, SplitConfig]
    more: list[MoreConfig] = Field(
        default=[], description="data sets to train on beside `train`; each may lack classes"
    )
    classes: list[str] = Field(min_length=1, description="category names in label order")
    merge: dict[str, str] = Field(
        default={}, description="category name -> class that it counts as"
    )
    drop: list[str] = Field(default=[], description="category names that are left out")
    absent: list[str] = Field(
        default=[], description="classes that may have no category: they are not measured then"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name stands twice")
        for name, target in self.merge.items():
            if target not in self.classes:
                raise ValueError(f"merge: {name!r} goes to {target!r}, which is not in classes")
        for name in [*self.merge, *self.drop]:
            if name in self.classes:
                raise ValueError(f"{name!r} is in classes, so it can't be merged or dropped")
        for name in self.absent:
            if name not in self.classes:
                raise ValueError(f"absent: {name!r} is not in classes")
        return self


class InputConfig(Section):
    """How an image becomes the network's input in evaluation and in the service."""

    shorter_px: int = Field(gt=0)
    longer_px: int = Field(gt=0)
    upscale: bool
    largest_scale: float | None = Field(
        default=None, gt=0, description="of the resizing; null: as large as the sides allow"
    )
    pad_value: tuple[int, int, int] = (124, 116, 104)
    background: tuple[int, int, int] = (255, 255, 255)


class AugmentConfig(Section):
    """What happens to a training image."""

    crop_px: int | None = Field(
        default=None, gt=0, description="side of a random square crop; null trains on whole images"
    )
    shorter_px: tuple[int, int] | None = Field(
        default=None, description="whole images: shorter side drawn from this range"
    )
    size_by_step: bool = Field(
        default=False, description="whole images: one shorter side for all images of a step"
    )
    group_aspect: bool = Field(
        default=False, description="the images of a step are all wide or all tall: less padding"
    )
    scale: tuple[float, float] = Field(
        default=(1.0, 1.0), description="crops: size factor drawn log-uniformly from this range"
    )
    aim: float = Field(
        default=0.0, ge=0, le=1, description="crops: probability that one holds a chosen object"
    )
    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a horizontal flip")
    invert: float = Field(default=0.0, ge=0, le=1, description="probability of inverted colours")
    jitter: float = Field(
        default=0.0, ge=0, lt=1, description="largest change of brightness and contrast"
    )
    saturation: float = Field(default=0.0, ge=0, le=1, description="largest change of saturation")
    hue_deg: float = Field(default=0.0, ge=0, le=180, description="largest turn of the hue")
    min_visible: float = Field(
        default=0.2, ge=0, le=1, description="a cropped box stays if this share of its area does"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.crop_px is None) == (self.shorter_px is None):
            raise ValueError("give exactly one of crop_px and shorter_px")
        for name in ("shorter_px", "scale"):
            low, high = getattr(self, name) or (1, 1)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name}: expected [low, high] with 0 < low <= high")
        if self.crop_px is None and self.aim:
            raise ValueError("aim: whole images are not aimed; give crop_px or leave aim out")
        if self.crop_px is not None and (self.size_by_step or self.group_aspect):
            raise ValueError("size_by_step, group_aspect: crops all have one size; leave them out")
        return self


class BackboneConfig(Section):
    name: Literal[
        "resnet50",
        "resnet101",
        "resnext101_64x4d",
        "regnet_x_400mf",
        "regnet_nano",
        "regnet_small",
    ]
    frozen_stages: int = Field(
        default=0, ge=0, le=4, description="2: the stem and stage 1 stay as they are"
    )
    frozen_norm: bool = Field(default=False, description="batch-norm statistics and factors stay")

    @model_validator(mode="before")
    @classmethod
    def _before_init(cls, tree: Any) -> Any:
        """Checkpoints of before the key `init` say `weights: null`."""
        if isinstance(tree, dict) and "weights" in tree:
            if tree["weights"] is not None:
                raise ValueError("weights: give the top-level key init, see docs/weights.md")
            return {key: value for key, value in tree.items() if key != "weights"}
        return tree

    @model_validator(mode="after")
    def _pretrained_only(self) -> Self:
        if self.name in ("regnet_nano", "regnet_small") and self.frozen_norm:
            raise ValueError(f"frozen_norm is for torchvision's backbones, not for {self.name}")
        return self


class NeckConfig(Section):
    channels: int = Field(gt=0)
    extra_levels: int = Field(ge=0, le=2, description="2: P3..P7, 1: P3..P6, 0: P3..P5")


class HeadConfig(Section):
    """The head: the paper's three switches (tables II and III), then what else can be varied.

    docs/variants.md names the combinations that the paper and its figure 1 are about.
    """

    channels: int = Field(gt=0, description="equal to neck.channels")
    tower_depth: int = Field(ge=1)
    norm: Literal["group", "batch"]
    anchor_scale: float = Field(gt=0, description="anchor side in strides")
    qfl: bool = Field(description="quality focal loss; else focal loss")
    lqe: bool = Field(description="a branch predicts the IoU of each box")
    align: bool = Field(description="a DCN before the classification tower")
    alpha: float = Field(default=0.3, gt=0, le=1, description="ranking = class x quality ** alpha")
    centerness: bool = Field(default=False, description="a branch predicts centerness, not IoU")
    align_offsets: Literal["learned", "star"] = "learned"
    lqe_input: Literal["regression", "aligned"] = Field(
        default="regression", description="tower that the lqe branch hangs on"
    )
    iou_target: Literal["prediction", "anchor"] = Field(
        default="prediction", description="IoU' is that of the regressed box or of its anchor"
    )
    quality_target: Literal["powered", "plain"] = Field(
        default="powered", description="the ranking score learns IoU' ** alpha or IoU'"
    )
    reg_weight: Literal["none", "iou", "centerness"] = Field(
        default="none", description="weight of each positive in the regression loss"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.norm == "group" and self.channels % 32:
            raise ValueError(f"norm 'group' has 32 groups; channels {self.channels} is no multiple")
        if self.centerness and (self.lqe or self.qfl):
            raise ValueError("centerness takes the place of lqe and goes with qfl: false")
        if self.lqe_input == "aligned" and not (self.lqe and self.align):
            raise ValueError("lqe_input 'aligned' needs lqe: true and align: true")
        return self


class ModelConfig(Section):
    backbone: BackboneConfig
    neck: NeckConfig
    head: HeadConfig
    candidates_per_level: int = Field(default=1000, gt=0, le=MOST_CANDIDATES)
    candidates: int = Field(
        default=1000,
        gt=0,
        le=MOST_CANDIDATES,
        description="K, the fixed count an image leaves with",
    )

    @property
    def strides(self) -> list[int]:
        return [8 * 2**level for level in range(3 + self.neck.extra_levels)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.head.channels != self.neck.channels:
            raise ValueError(
                f"head.channels {self.head.channels} differs from "
                f"neck.channels {self.neck.channels}"
            )
        most = self.candidates_per_level * len(self.strides)
        if self.candidates > most:
            raise ValueError(
                f"candidates {self.candidates} exceeds levels x candidates_per_level {most}"
            )
        return self


class ScheduleConfig(Section):
    """Steps and learning rate; `step` divides by 10 at each of `drops`, shares of the run."""

    steps: int = Field(gt=0)
    batch: int = Field(gt=0, description="images a step, of all processes together")
    accumulate: int = Field(
        default=1, gt=0, description="parts of a process's images that are computed one by one"
    )
    optimizer: Literal["sgd", "adamw", "muon"]
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    decay: Literal["cosine", "step"]
    drops: list[float] = [8 / 12, 11 / 12]
    warmup_steps: int = Field(ge=0)
    clip_norm: float | None = Field(default=None, gt=0)
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="final decay of the weights' average"
    )
    frozen_statistics: bool = Field(
        default=False, description="batch norms keep and use the statistics that init holds"
    )

    @model_validator(mode="after")
    def _drops_are_shares(self) -> Self:
        if self.drops != sorted(self.drops) or not all(0 < share < 1 for share in self.drops):
            raise ValueError(f"drops {self.drops}: expected rising shares of the run in (0, 1)")
        return self


class RunConfig(Section):
    seed: int = 0
    device: str = "cpu"
    autocast: Literal["off", "bfloat16", "float16"] = "off"
    workers: int = Field(default=1, ge=0)
    cache_mib: int = Field(
        default=0, ge=0, description="decoded images kept in memory, by all workers together"
    )
    checkpoint_every: int = Field(default=500, gt=0)
    keep: int = Field(default=2, gt=0, description="checkpoints kept, beside the best")
    eval_every: int | None = Field(
        default=None, gt=0, description="steps between evaluations on the split val"
    )
    log_every: int = Field(
        default=50, gt=0, description="steps between lines where there is no terminal for a bar"
    )
    tensorboard: bool = False
    sync_norm: bool = Field(
        default=False, description="batch norms see the images of all processes; GPUs only"
    )

    @field_validator("autocast", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        """YAML 1.1 reads a bare `off` as false."""
        return "off" if value is False else value


class EvalConfig(Section):
    """Thresholds of evaluation, and the service's defaults in an exported bundle."""

    score: float = Field(default=0.05, ge=0, lt=1)
    iou: float = Field(default=0.6, gt=0, le=1)
    max: int = Field(default=100, gt=0)


class Config(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    data: DataConfig
    input: InputConfig
    augment: AugmentConfig
    model: ModelConfig
    schedule: ScheduleConfig
    run: RunConfig = RunConfig()
    eval: EvalConfig = EvalConfig()
    init: Path | None = Field(
        default=None, description="weights to start from, made by `clq-train import`"
    )

    @property
    def input_rule(self) -> InputRule:
        """How the service will turn an image into the input of this model."""
        return InputRule(
            shorter_px=self.input.shorter_px,
            longer_px=self.input.longer_px,
            upscale=self.input.upscale,
            multiple=self.model.strides[-1],
            pad_value=self.input.pad_value,
            background=self.input.background,
            largest_scale=self.input.largest_scale,
        )

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        side, multiple = self.augment.crop_px, self.model.strides[-1]
        if side is not None and side % multiple:
            raise ValueError(
                f"augment.crop_px {side} is no multiple of the largest stride {multiple}"
            )
        return self

    @model_validator(mode="after")
    def _statistics_are_known(self) -> Self:
        if self.schedule.frozen_statistics and self.init is None:
            raise ValueError(
                "schedule.frozen_statistics: only with init: a random start has no statistics"
            )
        return self


def load_config(path: Path, overrides: list[str]) -> Config:
    """The YAML file, then `key.path=value` overrides (values in YAML), then validation.

    Raises ConfigError naming the file and the key.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the file must hold a mapping of sections")
    for item in overrides:
        _override(tree, item)
    return parse_config(tree, str(path))


def parse_config(tree: dict[str, Any], source: str) -> Config:
    """Validates a tree; `source` names it in the ConfigError."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            place = ": ".join([source, ".".join(map(str, item["loc"]))]).removesuffix(": ")
            lines.append(f"{place}: {item['msg'].removeprefix('Value error, ')}")
        raise ConfigError("\n".join(lines)) from error


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that load_config reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _override(tree: dict[str, Any], item: str) -> None:
    dotted, equals, value = item.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"override {item!r}: expected key.path=value")
    *parents, leaf = dotted.split(".")
    node = tree
    for key in parents:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {item!r}: {key!r} is a value, not a section")
    node[leaf] = yaml.safe_load(value)
