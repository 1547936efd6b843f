"""`clq-train eval`: measures a model, or detections, on COCO-format data."""

import json
from pathlib import Path
from typing import Annotated

import typer


def eval_(
    target: Annotated[
        Path,
        typer.Argument(help="a bundle NAME/VERSION, a checkpoint folder, or COCO results (a file)"),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value of the configuration")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", "--annotations", help="a COCO annotation file, or a folder that has one"
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="folder of the images; else looked for near the annotations")
    ] = None,
    merge: Annotated[
        list[str] | None,
        typer.Option(metavar="CATEGORY=CLASS", help="let a category count as a class; repeatable"),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="CATEGORY", help="leave a category out; repeatable"),
    ] = None,
    drop_rest: Annotated[
        bool, typer.Option("--drop-rest", help="leave out every category that is no class")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="YAML file that names the data; a checkpoint has its own")
    ] = None,
    split: Annotated[str, typer.Option(help="name of the split")] = "val",
    by: Annotated[
        str | None, typer.Option(help="key of the image records: AP of each value as well")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE",
            help="only images whose record has one of the values; repeatable for other keys",
        ),
    ] = None,
    score: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="detections above it count; else of the configuration, else 0.05"
        ),
    ] = None,
    iou: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="threshold of the suppression; else of the configuration, else the bundle's",
        ),
    ] = None,
    max_: Annotated[
        int | None,
        typer.Option(
            "--max", min=1, help="detections an image; else of the configuration, else 100"
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="such as cpu or cuda:0; of a bundle as of the service")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder that gets results.json and report.html")
    ] = None,
    pictures: Annotated[
        int, typer.Option(min=0, help="images in the report; 0 leaves all out")
    ] = 6,
    save_results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the detections, as COCO's result format")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Measure what a model finds: COCO's metrics, and how well its scores know the boxes.

    A bundle runs in the service's own engine, a checkpoint in torch; both go through the service's
    decoding, resizing and suppression.
    """
    # torch takes seconds to import: not before the arguments are known to be good.
    from clq_train.eval_run import EvalRequest, as_dict, prepare, run, write_outputs
    from clq_train.report.table import table_lines

    request = EvalRequest(
        target=target,
        overrides=overrides or [],
        data=data,
        images=images,
        merge=merge or [],
        drop=drop or [],
        drop_rest=drop_rest,
        config=config,
        split=split,
        by=by,
        where=where or [],
        score=score,
        iou=iou,
        max=max_,
        device=device,
        out=out,
        pictures=pictures,
        save_results=save_results,
    )
    job = prepare(request)
    for line in job.heading():
        typer.echo(line, err=as_json)
    found = run(job)
    if as_json:
        typer.echo(json.dumps(as_dict(job, found)))
    else:
        typer.echo("\n".join(["", *table_lines(found, by)]))
    for path in write_outputs(job, request, found):
        typer.echo(f"wrote {path}", err=as_json)
