"""The page /docs in a real browser, under its own Content-Security-Policy."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.slow


def test_an_image_given_to_the_page_is_shown_with_its_detections(
    server: str, tmp_path: Path
) -> None:
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :32] = (255, 0, 0)
    pixels[:32, 32:64] = (0, 200, 0)
    Image.fromarray(pixels).save(tmp_path / "cells.png")
    complaints: list[str] = []
    with playwright.sync_playwright() as player:
        try:
            browser = player.chromium.launch(executable_path=shutil.which("chromium"))
        except playwright.Error as err:
            pytest.skip(f"no browser: {err.message.splitlines()[0]}")
        page = browser.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{server}/docs")
        page.set_input_files("#file", tmp_path / "cells.png")
        page.wait_for_selector("#canvas:not([hidden])", timeout=10_000)
        assert "2 of 2 detections, 96 × 64 PNG" in page.inner_text("#state")
        assert page.locator("#found tbody tr").count() == 2
        page.select_option("#class", "green")
        assert page.locator("#found tbody tr td").first.inner_text() == "green"
        (tmp_path / "no.png").write_text("no image")
        page.set_input_files("#file", tmp_path / "no.png")
        page.wait_for_selector("#state.bad", timeout=10_000)
        assert "415 unsupported_image" in page.inner_text("#state")
        assert page.title() == "CLQ service"
        browser.close()
    assert [text for text in complaints if "415" not in text] == []
