"""How far a run is, for who watches it: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from datetime import timedelta

from tqdm import tqdm

LOSS_TERMS = ("cls", "reg", "lqe", "centerness")


class Progress:
    """The losses, the learning rate, images/s, and the time that is left.

    batch  images a step, `every` the steps between two lines
    """

    def __init__(self, steps: int, start: int, batch: int, every: int, shown: bool) -> None:
        self._steps, self._batch, self._every, self._shown = steps, batch, every, shown
        # disable=None: a bar on a terminal only
        self._bar = tqdm(
            total=steps,
            initial=start,
            disable=None if shown else True,
            unit="step",
            dynamic_ncols=True,
        )
        self._start, self._began = start, time.monotonic()
        self._step = start
        self._since, self._since_time = self._start, self._began

    def step(self, step: int, values: dict[str, float]) -> None:
        """values  as Trainer.step gives them"""
        self._step = step
        loss = sum(values.get(name, 0.0) for name in LOSS_TERMS)
        if not self._bar.disable:
            rate = (self._bar.format_dict["rate"] or 0.0) * self._batch
            self._bar.set_postfix_str(
                f"loss {loss:.3f}, lr {values['lr']:.2g}, {rate:.1f} images/s", refresh=False
            )
            self._bar.update()
        elif self._shown and (step % self._every == 0 or step == self._steps):
            self.say(self._line(step, loss, values))

    def say(self, text: str) -> None:
        """A line of its own, above the bar; images/s counts anew from here."""
        if self._shown:
            self._bar.write(text, file=sys.stderr)
        self._since, self._since_time = self._step, time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def _line(self, step: int, loss: float, values: dict[str, float]) -> str:
        now = time.monotonic()
        rate = (step - self._since) * self._batch / (now - self._since_time)
        left = (self._steps - step) * (now - self._began) / (step - self._start)
        parts = ", ".join(f"{k} {values[k]:.3f}" for k in LOSS_TERMS if k in values)
        return (
            f"step {step}/{self._steps}: loss {loss:.3f} ({parts}), lr {values['lr']:.2g}, "
            f"{rate:.1f} images/s, {timedelta(seconds=round(left))} left"
        )
