"""Whether a configuration can go on with the run of a checkpoint, and what differs."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from clq_train.checkpoint import CONFIG, checkpoint_step
from clq_train.config import Config, load_config
from clq_train.errors import CheckpointError

FIXED = ("data.classes", "schedule.optimizer")  # and all of `model`: a state fits no other


def check_resumed(checkpoint: Path, config: Config) -> list[str]:
    """What differs from the run so far but may: a line `key: was, is` for each key.

    Raises CheckpointError naming the keys that may not: the state would not fit.
    """
    was, now = _flat(load_config(checkpoint / CONFIG, [])), _flat(config)
    if config.schedule.steps < checkpoint_step(checkpoint):
        raise CheckpointError(f"{checkpoint}: beyond schedule.steps: {config.schedule.steps}")
    differing = sorted(key for key in was | now if was.get(key) != now.get(key))
    lines = {key: f"{key}: was {was.get(key)}, is {now.get(key)}" for key in differing}
    wrong = [line for key, line in lines.items() if _is_fixed(key, was, now)]
    if wrong:
        raise CheckpointError("\n".join([f"{checkpoint}: the run can't go on with", *wrong]))
    return list(lines.values())


def _is_fixed(key: str, was: dict[str, Any], now: dict[str, Any]) -> bool:
    if key == "schedule.ema":  # its value may change, not whether there is an average
        return was.get(key) is None or now.get(key) is None
    return key in FIXED or key.startswith("model.")


def _flat(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by dotted key."""
    flat: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
