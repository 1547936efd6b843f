"""Who may import whom: what keeps the service small and the client smaller."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"clq_train", "clq_export", "clq_serve", "clq_client"}
ALLOWED = {
    "serve/clq_serve": {"clq_serve"},
    "client/clq_client": {"clq_client"},
    "train/clq_train": {"clq_train", "clq_serve"},
    "export/clq_export": {"clq_export", "clq_train", "clq_serve"},
}
# Distribution that each import name of the service and the client comes from.
DEPENDENCIES = {
    "serve/clq_serve": {
        *("annotated_doc", "fastapi", "numpy", "onnxruntime", "PIL", "pydantic", "starlette"),
        *("typer", "uvicorn", "python_multipart", "prometheus_client", "httptools"),
        *("tensorrt", "cuda"),  # the extra `tensorrt`, imported when a plan is opened
        "opentelemetry",  # the extra `otel`, imported when an endpoint is configured
    },
    "client/clq_client": {
        *("httpx", "typer", "rich", "PIL", "numpy", "av", "pyarrow", "pycocotools"),
    },
}


def imports(folder):
    """(file, top-level name) of every import statement below the folder."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                yield path, (node.module or "").partition(".")[0]


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_distribution_imports_only_the_ones_of_ours_that_it_may(folder):
    found = {name for _, name in imports(folder)}
    assert found, folder
    assert found & OURS <= ALLOWED[folder]


@pytest.mark.parametrize("folder", DEPENDENCIES)
def test_service_and_client_import_only_what_they_declare(folder):
    foreign = {
        name
        for _, name in imports(folder)
        if name not in sys.stdlib_module_names and name not in OURS
    }
    assert foreign <= DEPENDENCIES[folder]
    assert "torch" not in foreign


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/clq_*/**/*.py")), ids=lambda p: p.name)
def test_no_file_is_longer_than_the_house_allows(path):
    assert len(path.read_text().splitlines()) <= 600
