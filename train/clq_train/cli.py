"""The command `clq-train`."""

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from clq_serve.bundle import MANIFEST_FILE
from clq_serve.errors import BundleError
from clq_train.errors import ClqTrainError, ConfigError
from clq_train.import_command import import_weights

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


@app.command("eval")
def eval_(
    target: Annotated[Path, typer.Argument(help="a checkpoint folder, or a bundle NAME/VERSION")],
    overrides: Overrides = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with the data; a checkpoint has its own")
    ] = None,
    split: Annotated[str, typer.Option(help="name of a split in data.splits")] = "val",
    by: Annotated[
        str | None, typer.Option(help="key of the image records: AP of each value as well")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Measure COCO average precision through the service's own decoding, resizing and suppression.

    A checkpoint runs in torch; a bundle runs as it is served, in ONNX Runtime.
    """
    from clq_train.config import load_config
    from clq_train.evaluate import evaluate
    from clq_train.targets import open_target

    is_bundle = (target / MANIFEST_FILE).is_file()
    if is_bundle and config is None:
        raise ConfigError(f"{target}: a bundle holds no data paths; name them by --config FILE")
    settings = load_config(config or target / "config.yaml", overrides or [])
    engine, rule, options = open_target(target, settings)
    result = evaluate(engine, rule, settings.data, split, options, by)
    if as_json:
        typer.echo(json.dumps(asdict(result)))
        return
    typer.echo(f"{split}: {result.images} images")
    for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"):
        typer.echo(f"{name.replace('_', ' ').upper():12s} {100 * getattr(result, name):5.1f}")
    per_class = {name: figures.ap for name, figures in result.per_class.items()}
    for name, value in (per_class | result.per_group).items():
        typer.echo(f"  {name:16s} {100 * value:5.1f}" if value >= 0 else f"  {name:16s}   none")


app.command("import")(import_weights)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("clq_train").setLevel(logging.INFO)
    try:
        app()
    except (ClqTrainError, BundleError) as error:
        print(f"clq-train: {error}", file=sys.stderr)
        sys.exit(1)
