"""What an import took, what stays at its start value and what was left over; and its file."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from clq_train.checkpoint import save_weights
from clq_train.config import Config
from clq_train.detector import ClqDetector
from clq_train.errors import CheckpointError, ConfigError
from clq_train.init_weights import COUNTER, misfit, module, started

CLASS_LAYER = ("head.cls.weight", "head.cls.bias")


class Foreign(NamedTuple):
    """The tensors of another file, as its reader understood them.

    mapped   detector's name -> the name there, and the tensor
    left     name there -> why it has no place in the detector
    classes  class names in label order, None where the file does not say
    notes    what a user should know of the file
    """

    mapped: dict[str, tuple[str, Tensor]]
    left: dict[str, str]
    classes: list[str] | None
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Imported:
    """What fits a detector.

    own      names of all tensors of the detector
    tensors  detector's name -> tensor, of the detector's shape
    sources  detector's name -> name there
    left     name there -> why it was not taken
    notes    what a user should know of the file
    """

    own: list[str]
    tensors: dict[str, Tensor]
    sources: dict[str, str]
    left: dict[str, str]
    notes: list[str]

    def write(self, path: Path) -> None:
        """Writes the tensors as .safetensors, beside first.  Raises CheckpointError."""
        beside = path.with_name(f"{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({k: v.clone().contiguous() for k, v in self.tensors.items()}, beside)
            os.replace(beside, path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise CheckpointError(f"{path}: {error.strerror or error}") from error

    def write_checkpoint(self, run: Path, model: ClqDetector, config: Config) -> Path:
        """A checkpoint of the detector with these tensors, to export and evaluate.

        Raises CheckpointError if a part of the detector would stay at its start value.
        """
        left = [name for name in self.own if name not in self.tensors and COUNTER not in name]
        if left:
            lines = "\n".join(f"  {line}" for line in started(self.own, self.tensors))
            raise CheckpointError(
                f"no checkpoint: at their start value would stay\n{lines}\n"
                "write them by --out FILE and train from it (init=FILE)"
            )
        return save_weights(run, model.state_dict() | self.tensors, config)

    def lines(self, each: bool) -> Iterator[str]:
        """The report; `each` names every tensor that was taken, not only their modules."""
        yield from self.notes
        yield f"mapped: {len(self.tensors)} of the detector's {len(self.own)} tensors"
        if each:
            yield from (f"  {name} <- {self.sources[name]}" for name in self.tensors)
        else:
            yield from (f"  {line}" for line in _by_module(self.sources))
        yield "at its start value:"
        yield from (f"  {line}" for line in started(self.own, self.tensors) or ["nothing"])
        yield "left over:"
        yield from (f"  {line}" for line in _by_reason(self.left) or ["nothing"])


def fit_to(
    model: ClqDetector, classes: list[str], foreign: Foreign, only: Sequence[str]
) -> Imported:
    """What of the foreign tensors the detector takes.

    classes  of the configuration, in label order
    only     modules such as `backbone` or `head.cls_tower`; none takes all

    The class layer is taken where the file's classes are known and hold all of the configuration's
    (by name, in the configuration's order), or where they are unknown and equally many.

    Raises ConfigError for a module that the detector does not have, CheckpointError if nothing
    fits.
    """
    own = model.state_dict()
    for part in only:
        if not any(_inside(name, part) for name in own):
            known = sorted({module(name) for name in own} | {name.split(".")[0] for name in own})
            raise ConfigError(f"--only: the detector has no {part!r}; accepted: {', '.join(known)}")
    tensors, sources, left = {}, {}, dict(foreign.left)
    for name, (source, value) in foreign.mapped.items():
        problem = None
        if (
            name in CLASS_LAYER
            and foreign.classes is not None
            and len(value) == len(foreign.classes)
        ):
            if set(classes) <= set(foreign.classes):
                value = value[[foreign.classes.index(c) for c in classes]]
            else:
                new = [c for c in classes if c not in foreign.classes]
                problem = f"holds no class {', '.join(new)}"
        problem = problem or misfit(own, name, value)
        if only and not any(_inside(name, part) for part in only):
            problem = "not asked for by --only"
        if problem:
            left[source] = problem
        else:
            tensors[name], sources[name] = value, source
    if not tensors:
        raise CheckpointError(
            "no tensor fits the detector:\n" + "\n".join(f"  {line}" for line in _by_reason(left))
        )
    return Imported(list(own), tensors, sources, left, foreign.notes)


def _inside(name: str, part: str) -> bool:
    return f"{name}.".startswith(f"{part}.")


def _by_module(sources: dict[str, str]) -> Iterator[str]:
    """`backbone.stages.1: 60 tensors from backbone.layer1` for each module of the detector."""
    parts: dict[str, list[str]] = {}
    for name, source in sources.items():
        parts.setdefault(module(name), []).append(source)
    for part, names in parts.items():
        count = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
        columns = zip(*(name.split(".") for name in names), strict=False)
        shared = ".".join(column[0] for column in columns if len(set(column)) == 1)
        several = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
        yield f"{part}: {count} from {shared or several}"


def _by_reason(left: dict[str, str]) -> list[str]:
    """`NAME: reason`, and where a module's tensors share a reason one line for them."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, reason in left.items():
        part = f"*{COUNTER}" if name.endswith(COUNTER) else ".".join(name.split(".")[:3])
        groups.setdefault((part, reason), []).append(name)
    return [
        f"{names[0]}: {reason}" if len(names) == 1 else f"{part}: {len(names)} tensors: {reason}"
        for (part, reason), names in groups.items()
    ]
