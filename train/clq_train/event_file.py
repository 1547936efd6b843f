"""The figures of a run as TensorBoard reads them, if run.tensorboard asks for them."""

from importlib.util import find_spec
from pathlib import Path

from clq_train.errors import ConfigError


def check_tensorboard() -> None:
    """Raises ConfigError if the package that writes the files is not there."""
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "run.tensorboard: the package tensorboard is not installed: "
            "pip install 'clq-train[tensorboard]', or run.tensorboard=false"
        )


class EventFile:
    """RUN/tensorboard; on resuming, what was written after `start` is hidden."""

    def __init__(self, run: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run / "tensorboard", purge_step=start + 1)

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        """Each value under `group/name`."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()
