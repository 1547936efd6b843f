"""The Content-Security-Policy of a self-contained page: its own inline blocks and nothing else."""

import base64
import hashlib
import re


def content_security_policy(page: str) -> str:
    """A policy under which exactly the <script> and <style> blocks of `page` work.

    Images may come from memory (blob:, data:), requests may go to the same origin.
    """
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hashes(page, 'script')}",
            f"style-src {_hashes(page, 'style')}",
            "img-src 'self' blob: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _hashes(page: str, tag: str) -> str:
    blocks: list[str] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = [hashlib.sha256(block.encode()).digest() for block in blocks]
    return " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests) or "'none'"
