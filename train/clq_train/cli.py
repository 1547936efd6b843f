"""The command `clq-train`."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from clq_serve.errors import ClqServeError
from clq_train.commands_data import data
from clq_train.errors import ClqTrainError
from clq_train.eval_command import eval_
from clq_train.import_command import import_weights
from clq_train.webui.command import app as webui_app

app = typer.Typer(
    help="Trains and evaluates the CLQ detector on COCO-format data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.path=value, for example schedule.steps=100")
]


@app.command()
def fit(
    config: Annotated[Path, typer.Argument(help="YAML file of the run")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="folder of the run [default: runs/NAME]")] = None,
    resume: Annotated[bool, typer.Option(help="go on from the run's last checkpoint")] = False,
) -> None:
    """Train on the split `train`; checkpoints and metrics.csv go to the run's folder."""
    # torch takes seconds to import: not before the arguments are known to be good.
    from clq_train.config import load_config
    from clq_train.curves import draw_curves
    from clq_train.fit import fit as run_fit
    from clq_train.processes import find_processes

    settings = load_config(config, overrides or [])
    run = out or Path("runs") / settings.name
    last = run_fit(settings, run, resume)
    if find_processes().leads:
        typer.echo(f"curves {draw_curves(run)}")
        typer.echo(f"checkpoint {last}")


@app.command()
def curves(run: Annotated[Path, typer.Argument(help="folder of a run, ended or not")]) -> None:
    """Draw the losses, learning rate, gradient norm and AP of a run: RUN/curves.png."""
    from clq_train.curves import draw_curves

    typer.echo(f"curves {draw_curves(run)}")


@app.command()
def replay(
    dump: Annotated[Path, typer.Argument(help="folder RUN/nonfinite-step-NNNNNN")],
    overrides: Overrides = None,
) -> None:
    """Compute a step again whose loss or gradient was not finite, and say where that arises."""
    from clq_train.replay import replay as replay_lines

    for line in replay_lines(dump, overrides or []):
        typer.echo(line)


app.add_typer(data, name="data")
app.command("eval")(eval_)
app.command("import")(import_weights)
app.add_typer(webui_app, name="webui")


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    # Under torchrun only the first process tells how it goes.
    leads = os.environ.get("RANK", "0") == "0"
    logging.getLogger("clq_train").setLevel(logging.INFO if leads else logging.ERROR)
    try:
        app()
    except (ClqTrainError, ClqServeError) as error:
        if _is_first_to_fail():
            print(f"clq-train: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception:
        # The others lose their connection to a process that failed: it has told why.
        if _is_first_to_fail():
            raise
        sys.exit(1)


def _is_first_to_fail() -> bool:
    from clq_train.processes import first_to_fail

    return first_to_fail()
