"""What a run tells and leaves as it goes: progress, figures, checkpoints and the best of them."""

from contextlib import ExitStack
from pathlib import Path

from clq_serve.detector import DetectOptions
from clq_train.checkpoint import (
    best_checkpoint,
    checkpoint_folder,
    checkpoint_step,
    link_best,
    load_model,
    save_checkpoint,
)
from clq_train.config import Config
from clq_train.evaluate import TorchEngine, evaluate
from clq_train.event_file import EventFile
from clq_train.metrics_file import MetricsFile, read_metrics
from clq_train.progress import Progress
from clq_train.trainer import Trainer

MEASURED = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar_100")


class Keeper:
    """Of several processes only the first has one: the others neither write nor evaluate."""

    def __init__(
        self, config: Config, run: Path, trainer: Trainer, start: int, shown: bool
    ) -> None:
        """start  the step that the run goes on from; what was written after it goes"""
        self._config, self._run, self._trainer, self._shown = config, run, trainer, shown
        self._open = ExitStack()
        self._metrics = self._open.enter_context(MetricsFile(run / "metrics.csv", start))
        if config.run.eval_every is not None:
            self._evaluations = self._open.enter_context(MetricsFile(run / "eval.csv", start))
        self._events: EventFile | None = None
        if config.run.tensorboard:
            self._events = EventFile(run, start)
            self._open.callback(self._events.close)
        steps, batch = config.schedule.steps, config.schedule.batch
        self._progress = self._open.enter_context(
            Progress(steps, start, batch, config.run.log_every, shown)
        )
        ap_of = {int(row["step"]): float(row["ap"]) for row in read_metrics(run / "eval.csv")}
        best = best_checkpoint(run)
        self._best_ap = -1.0 if best is None else ap_of.get(checkpoint_step(best), -1.0)
        if start and self._evaluates(start) and start not in ap_of:  # killed after saving it
            self._evaluate(checkpoint_folder(run, start), start)

    def after(self, step: int, values: dict[str, float]) -> None:
        """To be called after every step, with what it gave."""
        self._metrics.write(step, values)
        if self._events is not None:
            self._events.write(step, "train", values)
        self._progress.step(step, values)
        every, last = self._config.run.checkpoint_every, self._config.schedule.steps
        if step % every == 0 or step == last or self._evaluates(step):
            weights, state = self._trainer.weights(), self._trainer.state(step)
            saved = save_checkpoint(self._run, step, weights, state, self._config)
            if self._evaluates(step):
                self._evaluate(saved, step)

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def _evaluates(self, step: int) -> bool:
        every = self._config.run.eval_every
        return every is not None and (step % every == 0 or step == self._config.schedule.steps)

    def _evaluate(self, checkpoint: Path, step: int) -> None:
        """Measures the checkpoint as it was saved, and makes it the best if it is."""
        model, _ = load_model(checkpoint)
        limits = self._config.eval
        found = evaluate(
            TorchEngine(model, str(self._trainer.device)),
            self._config.input_rule,
            self._config.data,
            "val",
            DetectOptions(limits.score, limits.iou, limits.max),
            progress=self._shown,
        )
        values = {name: float(getattr(found, name)) for name in MEASURED}
        best = values["ap"] > self._best_ap
        if best:
            link_best(self._run, checkpoint)
            self._best_ap = values["ap"]
        # After the link: a run that is killed between the two measures once more.
        self._evaluations.write(step, values)
        if self._events is not None:
            self._events.write(step, "val", values)
        self._progress.say(
            f"step {step}: AP {100 * values['ap']:.1f}, AP50 {100 * values['ap50']:.1f}, "
            f"AP75 {100 * values['ap75']:.1f} on val{', the best so far' if best else ''}"
        )
