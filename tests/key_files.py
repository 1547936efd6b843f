"""Files of API keys, as the service reads them."""

import hashlib
import os
from pathlib import Path


def entry(key: str, *scopes: str, more: str = "") -> str:
    """An entry of the file; the name is the key itself."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f'[{key}]\ndigest = "sha256:{digest}"\nscopes = {list(scopes)}\n{more}\n'


def write(path: Path, *entries: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text("\n".join(entries))
    beside.chmod(0o600)
    os.replace(beside, path)
