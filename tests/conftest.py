"""Fixtures that several folders share: one small trained model, and its bundle.

torch is imported inside the fixtures, so that the tests of the service and the client start fast.
"""

from pathlib import Path

import pytest
from shapes_data import shapes_tree, write_shapes


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four made images in COCO format."""
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data")


@pytest.fixture(scope="session")
def checkpoint(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `clq-train fit`, a few steps on the four images."""
    from clq_train.config import parse_config
    from clq_train.fit import fit

    tree = shapes_tree(shapes_folder)
    tree["schedule"] |= {"steps": 24, "batch": 4}
    tree["run"]["checkpoint_every"] = 24
    return fit(parse_config(tree, "fixture"), tmp_path_factory.mktemp("run"), progress=False)


@pytest.fixture(scope="session")
def bundle_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle shapes/1 of that checkpoint, by the command line, with its measured AP."""
    from typer.testing import CliRunner

    from clq_export.cli import app

    out = tmp_path_factory.mktemp("models")
    arguments = ["onnx", str(checkpoint), "--out", str(out), "--evaluate", "val"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out / "shapes" / "1"
