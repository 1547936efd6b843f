"""The page / in a real browser, with the built-in model, under its own Content-Security-Policy."""

import base64
import io
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from clq_serve.bundle import builtin_bundle_path
from clq_serve.keys import Scope, new_key

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

pytestmark = pytest.mark.slow

SCREENS = Path(__file__).parents[1] / "data/screens"
SCREEN = SCREENS / "checkout.png"
PATIENCE_MS = 60_000
GIVE = """(target, [kind, name, text]) => {
  const bytes = Uint8Array.from(atob(text), (mark) => mark.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type: "image/png" }));
  const more = kind === "paste" ? { clipboardData: carried } : { dataTransfer: carried };
  const Kind = kind === "paste" ? ClipboardEvent : DragEvent;
  target.dispatchEvent(new Kind(kind, { bubbles: true, cancelable: true, ...more }));
}"""

Page = "playwright.Page"
OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as player:
        try:
            launched = player.chromium.launch(executable_path=shutil.which("chromium"))
        except playwright.Error as err:
            pytest.skip(f"no browser: {err.message.splitlines()[0]}")
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: "playwright.Browser", builtin_server: str) -> Iterator[OpenPage]:
    """open_page(url=None, **context options) -> the page /; no complaint in its console is let pass
    but those that `page.expected` names.
    """
    contexts, complaints, expected = [], [], []

    def open_one(url: str | None = None, **options: object) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.expected = expected
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url or builtin_server)
        page.wait_for_load_state("networkidle")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert [c for c in complaints if not any(word in c for word in expected)] == []


def wait_for_result(page: Page, name: str) -> None:
    expect(page.locator("#status")).to_contain_text(f" in {name}, ", timeout=PATIENCE_MS)


def choose(page: Page, path: Path) -> None:
    page.set_input_files("#file", path)
    wait_for_result(page, path.name)


def saved_json(page: Page) -> dict:
    with page.expect_download() as download:
        page.click("#save-json")
    return json.loads(Path(download.value.path()).read_text())


def service_says(url: str, path: Path, **query: object) -> list[dict]:
    files = {"image": path.read_bytes()}
    answer = httpx.post(
        f"{url}/v1/detect", params=query, files=files, timeout=60, trust_env=False
    ).raise_for_status()
    return answer.json()["detections"]


def test_a_chosen_image_is_shown_with_the_detections_of_the_service(
    open_page: OpenPage, builtin_server: str
) -> None:
    page = open_page()
    choose(page, SCREEN)
    expected = service_says(builtin_server, SCREEN)
    assert saved_json(page)["detections"] == expected
    assert page.locator("#boxes button").count() == len(expected) > 20
    assert page.locator("#rows tr").count() == len(expected)
    first = page.locator("#boxes button").first.bounding_box()
    image = page.locator("#image").bounding_box()
    scale = image["width"] / 1280
    for side, want in zip(("x", "y"), expected[0]["box"], strict=False):
        assert first[side] - image[side] == pytest.approx(want * scale, abs=1)
    assert "1280 × 800 PNG" in page.inner_text("#status")
    assert [line.split("\n")[0] for line in page.locator("#stages dt").all_inner_texts()][:1] == [
        "decode and resize"
    ]


@pytest.mark.parametrize(("kind", "target"), [("drop", "#drop"), ("paste", "body")])
def test_an_image_can_be_dropped_or_pasted(open_page: OpenPage, kind: str, target: str) -> None:
    page = open_page()
    data = base64.b64encode(SCREEN.read_bytes()).decode()
    page.locator(target).evaluate(GIVE, [kind, f"{kind}.png", data])
    wait_for_result(page, f"{kind}.png")
    assert page.locator("#boxes button").count() > 20
    assert page.locator("#veil").is_hidden()


def test_a_turned_webp_is_shown_upright_with_its_boxes(
    open_page: OpenPage, builtin_server: str, tmp_path: Path
) -> None:
    file = tmp_path / "turned.webp"  # stored on its side: browsers do not turn WebP by its EXIF
    turned = Image.open(SCREEN).convert("RGB").transpose(Image.Transpose.ROTATE_90)
    orientation = Image.Exif()
    orientation[0x0112] = 6
    turned.save(file, "WEBP", quality=90, exif=orientation)
    page = open_page()
    choose(page, file)
    size = "picture => `${picture.naturalWidth} x ${picture.naturalHeight}`"
    page.wait_for_selector("#stage:not(.busy)")
    expect(page.locator("#image")).to_have_js_property("naturalWidth", 1280, timeout=PATIENCE_MS)
    assert page.locator("#image").evaluate(size) == "1280 x 800"
    assert "1280 × 800 WEBP" in page.inner_text("#status")
    assert saved_json(page)["detections"] == service_says(builtin_server, file)


def test_the_model_can_be_chosen(
    open_page: OpenPage, start_server: Callable[..., str], tmp_path: Path, tiny_bundle: Path
) -> None:
    builtin = builtin_bundle_path()
    for bundle in (builtin, tiny_bundle):
        shutil.copytree(bundle, tmp_path / bundle.parent.name / bundle.name)
    page = open_page(start_server(bundle=None, models=tmp_path))
    choices = page.locator("#model option").all_inner_texts()
    assert sorted(choices) == ["tiny / 1", "webui-nano / 4"]
    page.select_option("#model", label="webui-nano / 4")
    choose(page, SCREEN)
    assert saved_json(page)["model"]["name"] == "webui-nano"
    page.select_option("#model", label="tiny / 1")
    expect(page.locator("#curl")).to_contain_text("/v1/models/tiny/versions/1/detect?score=0.3")
    wait_for_result(page, SCREEN.name)
    assert saved_json(page)["model"]["name"] == "tiny"
    assert set(page.locator(".chip").evaluate_all("c => c.map(x => x.dataset.label)")) <= {
        "red",
        "green",
        "blue",
    }


def test_a_new_version_that_was_loaded_meanwhile_is_named(
    open_page: OpenPage, start_server: Callable[..., str], tmp_path: Path, tiny_bundle: Path
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "tiny/1")
    url = start_server(bundle=None, models=tmp_path, public_model_control=True)
    page = open_page(url)
    choose(page, SCREEN)
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    shutil.copytree(tiny_bundle, tmp_path / "tiny/2")
    (tmp_path / "tiny/2/manifest.json").write_text(json.dumps(manifest | {"version": 2}))
    load = f"{url}/v2/repository/models/tiny/load"
    httpx.post(load, timeout=60, trust_env=False).raise_for_status()
    choose(page, SCREENS / "docs.png")
    assert saved_json(page)["model"]["version"] == 2
    assert page.locator("#model option").all_inner_texts() == ["tiny / 2"]


def test_the_example_is_one_click_away(open_page: OpenPage) -> None:
    page = open_page()
    page.click("#example")
    wait_for_result(page, "example.webp")
    assert page.locator("#boxes button").count() > 20


def test_several_images_are_looked_at_by_turns_and_asked_about_once(open_page: OpenPage) -> None:
    page = open_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.method))
    screens = sorted(SCREENS.glob("*.png"))
    page.set_input_files("#file", screens)
    wait_for_result(page, screens[0].name)
    assert asked.count("POST") == 1
    thumbs = page.locator("#strip button")
    assert thumbs.count() == len(screens)
    first = saved_json(page)
    thumbs.nth(1).click()
    wait_for_result(page, screens[1].name)
    assert saved_json(page)["id"] != first["id"]
    assert asked.count("POST") == 2
    thumbs.first.click()
    wait_for_result(page, screens[0].name)
    assert saved_json(page) == first
    assert asked.count("POST") == 2
    assert thumbs.first.get_attribute("aria-pressed") == "true"


def test_sliders_and_classes_give_what_the_service_would_without_asking_it(
    open_page: OpenPage, builtin_server: str
) -> None:
    page = open_page()
    choose(page, SCREEN)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    found = {}
    for score, iou, classes in [
        (0.4, 0.6, ""),
        (0.05, 0.3, ""),
        (0.05, 0.95, "text"),
        (0.2, 0.0, ""),
        (0.35, 0.5, "button,link"),
        (0.99, 0.5, ""),
    ]:
        page.locator("#score").fill(str(score))
        page.locator("#iou").fill(str(iou))
        wanted = classes.split(",") if classes else []
        for chip in page.locator(".chip").all():
            pressed = chip.get_attribute("aria-pressed") == "true"
            if pressed != (chip.get_attribute("data-label") in wanted):
                chip.click()
        found[score, iou, classes] = saved_json(page)["detections"]
    assert [url for url in asked if not url.startswith("blob:")] == []
    for (score, iou, classes), ours in found.items():
        options = {"score": score, "iou": iou} | ({"classes": classes} if classes else {})
        assert ours == service_says(builtin_server, SCREEN, **options), options
    assert len({len(ours) for ours in found.values()}) >= 5


def test_the_curl_line_prints_what_is_shown(open_page: OpenPage, tmp_path: Path) -> None:
    file = shutil.copy(SCREEN, tmp_path / 'it\'s a; "screen".png')
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    choose(page, Path(file))
    page.locator("#score").fill("0.5")
    page.locator('.chip[data-label="heading"]').click()
    page.click("#copy")
    expect(page.locator("#copy")).to_have_text("Copied")
    line = page.evaluate("() => navigator.clipboard.readText()")
    assert line == page.inner_text("#curl")
    command = [*shlex.split(line), "--silent", "--show-error", "--fail"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["detections"] == saved_json(page)["detections"] != []


def test_each_class_has_its_count_and_can_be_shown_alone(open_page: OpenPage) -> None:
    page = open_page()
    choose(page, SCREEN)
    everything = page.locator("#rows tr").count()
    counts = [int(text) for text in page.locator(".chip span").all_inner_texts()]
    assert sum(counts) == everything
    chip = page.locator('.chip[data-label="button"]')
    chip.click()
    assert chip.get_attribute("aria-pressed") == "true"
    assert set(page.locator("#rows tr td:first-child").all_inner_texts()) == {"button"}
    assert page.locator("#rows tr").count() == int(chip.locator("span").inner_text())
    assert [int(text) for text in page.locator(".chip span").all_inner_texts()] == counts
    chip.click()
    assert page.locator("#rows tr").count() == everything


def test_hovering_over_a_box_shows_how_its_score_comes_about(open_page: OpenPage) -> None:
    page = open_page()
    choose(page, SCREEN)
    found = saved_json(page)["detections"][0]
    page.locator("#boxes button").first.hover(force=True)
    tip = page.inner_text("#tip")
    assert f"{found['label']} {found['score']:.3f}" in tip
    assert f"= class {found['cls_score']:.3f} × quality {found['quality']:.3f}0.3" in tip
    assert found["score"] == pytest.approx(found["cls_score"] * found["quality"] ** 0.3, abs=1e-5)
    assert "active" in page.locator("#rows tr").first.get_attribute("class")
    page.mouse.move(0, 0)
    assert page.locator("#tip").is_hidden()


def test_the_image_is_saved_in_its_own_size_with_the_boxes(open_page: OpenPage) -> None:
    page = open_page()
    choose(page, SCREEN)
    with page.expect_download() as download:
        page.click("#save-image")
    assert download.value.suggested_filename == "checkout.boxes.png"
    picture = Image.open(io.BytesIO(Path(download.value.path()).read_bytes())).convert("RGB")
    original = Image.open(SCREEN).convert("RGB")
    assert picture.size == original.size
    left, top, *_ = saved_json(page)["detections"][0]["box"]
    corner = (round(left), round(top))
    assert picture.getpixel(corner) != original.getpixel(corner)
    assert picture.getpixel((2, 70)) == original.getpixel((2, 70))


def test_a_refused_file_is_explained_with_its_code(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page()
    page.expected.append("415")
    choose(page, SCREEN)
    (tmp_path / "no.png").write_text("no image")
    page.set_input_files("#file", tmp_path / "no.png")
    problem = page.locator("#problem")
    expect(problem).to_contain_text("415 unsupported_image")
    assert "accepted: JPEG, PNG, WEBP, AVIF, BMP" in problem.inner_text()
    assert page.locator("#problem-code").get_attribute("href") == "docs#unsupported_image"
    assert page.locator("#again").is_hidden()
    assert page.locator("#result").is_hidden()
    choose(page, SCREEN)
    assert problem.is_hidden()


def test_a_service_that_does_not_answer_can_be_asked_again(open_page: OpenPage) -> None:
    page = open_page()
    page.expected.append("ERR_INTERNET_DISCONNECTED")
    page.context.set_offline(True)
    page.set_input_files("#file", SCREEN)
    expect(page.locator("#problem")).to_contain_text("The service does not answer")
    page.context.set_offline(False)
    page.click("#again")
    wait_for_result(page, SCREEN.name)
    assert page.locator("#problem").is_hidden()


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(
    open_page: OpenPage, start_server: Callable[..., str], tmp_path: Path
) -> None:
    key, entry = new_key("page", frozenset({Scope.INFER}))
    keys = tmp_path / "keys.toml"
    keys.write_text(entry)
    keys.chmod(0o600)
    page = open_page(start_server(bundle=None, keys=keys))
    page.expected.append("401")
    problem = page.locator("#problem")
    expect(problem).to_contain_text("401 no_key")
    assert page.locator("#key-value:focus").count() == 1
    page.fill("#key-value", "wrong")
    page.keyboard.press("Enter")
    expect(problem).to_contain_text("401 unknown_key")
    page.fill("#key-value", key)
    page.keyboard.press("Enter")
    expect(page.locator("#model option")).to_have_text("webui-nano / 4", timeout=PATIENCE_MS)
    assert problem.is_hidden()
    assert page.locator("#key").is_hidden()
    choose(page, SCREEN)
    line = page.inner_text("#curl")
    assert line.startswith('curl -H "Authorization: Bearer $CLQ_API_KEY" -F image=@checkout.png')
    assert key not in page.content()
    assert page.evaluate("() => localStorage.length + document.cookie.length") == 0
    command = [part.replace("$CLQ_API_KEY", key) for part in shlex.split(line)]
    done = subprocess.run(
        [*command, "--silent", "--fail"], cwd=SCREENS, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["detections"] == saved_json(page)["detections"]
    page.reload()
    choose(page, SCREEN)  # without asking for the key again
    page.click("#key-open")
    page.click("#key-forget")
    page.set_input_files("#file", SCREEN)
    expect(problem).to_contain_text("401 no_key")


def test_the_page_works_without_a_mouse(open_page: OpenPage) -> None:
    page = open_page()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.locator("#example:focus").count():
            break
    page.keyboard.press("Enter")
    wait_for_result(page, "example.webp")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.locator("#boxes button:focus").count():
            break
    words = page.locator("#boxes button:focus").get_attribute("aria-label")
    assert words.startswith("switch 0.")
    assert "class score" in words
    assert page.locator("#tip").is_visible()
    page.keyboard.press("ArrowRight")
    assert page.locator("#boxes button").nth(1).evaluate("box => box === document.activeElement")
    page.keyboard.press("End")
    assert page.locator("#boxes button").last.evaluate("box => box === document.activeElement")
    page.keyboard.press("Tab")  # the boxes are one stop
    assert page.locator("#another:focus").count() == 1
    page.locator("#score").focus()
    before = page.locator("#rows tr").count()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#score-shown") == "0.50"
    assert page.locator("#rows tr").count() < before
    assert page.locator("#score:focus").count() == 1


def test_the_page_fits_a_phone_and_answers_a_finger(
    open_page: OpenPage, browser: "playwright.Browser"
) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.locator("#example").tap()
    wait_for_result(page, "example.webp")
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
    page.locator("#boxes button").nth(1).tap(force=True)
    assert page.locator("#tip").is_visible()
    tip = page.locator("#tip").bounding_box()
    assert tip["x"] >= 0
    assert tip["x"] + tip["width"] <= 390
    assert page.locator("#score").bounding_box()["width"] > 250


def test_the_page_is_dark_where_the_system_is(open_page: OpenPage) -> None:
    lightness = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    assert max(open_page(color_scheme="dark").evaluate(lightness)) < 40
    assert min(open_page(color_scheme="light").evaluate(lightness)) > 230
