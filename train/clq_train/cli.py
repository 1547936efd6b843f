"""The command `clq-train`."""

import logging
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
    from clq_train.fit import fit as run_fit

    settings = load_config(config, overrides or [])
    last = run_fit(settings, out or Path("runs") / settings.name, resume)
    typer.echo(f"checkpoint {last}")


app.add_typer(data, name="data")
app.command("eval")(eval_)
app.command("import")(import_weights)
app.add_typer(webui_app, name="webui")


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("clq_train").setLevel(logging.INFO)
    try:
        app()
    except (ClqTrainError, ClqServeError) as error:
        print(f"clq-train: {error}", file=sys.stderr)
        sys.exit(1)
