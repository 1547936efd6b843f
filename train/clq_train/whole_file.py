"""Text files that are whole or as they were."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes beside the file, then renames."""
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
