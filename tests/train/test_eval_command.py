"""`clq-train eval` as a person types it: any COCO data, bundles, checkpoints, files, the report."""

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from clq_train import cli
from clq_train.errors import ConfigError, DataError
from clq_train.eval_data import ANNOTATIONS, Categories, eval_data

LOW = ("--score", "0.01")  # the fixture is trained for a few steps only


@pytest.fixture
def clq_train(monkeypatch, capsys):
    """Runs the command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["clq-train", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, told.err

    return run


@pytest.fixture
def data(shapes_folder, tmp_path):
    """A copy of the shapes, laid out as COCO's own files, with a category that is no class."""
    tree = json.loads((shapes_folder / "annotations.json").read_text())
    tree["categories"] += [{"id": 9, "name": "crimson"}, {"id": 11, "name": "shadow"}]
    for number, entry in enumerate(tree["annotations"]):
        if entry["category_id"] == 3 and number % 2:
            entry["category_id"] = 9
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(tree))
    shutil.copytree(shapes_folder / "images", tmp_path / "val2017")
    return tmp_path


def test_a_bundle_needs_no_configuration(clq_train, bundle_folder, shapes_folder):
    annotations = shapes_folder / "annotations.json"
    code, out, err = clq_train("eval", bundle_folder, "--data", annotations, *LOW)
    assert code == 0, err
    assert out.splitlines()[0] == "shapes/1"
    assert f"{annotations}: 4 images, 12 objects, 2 classes" in out
    assert f"images of {shapes_folder / 'images'}" in out
    assert "ranking score" in out
    assert "class score alone" in out
    assert "suppression kept a worse box of" in out


def test_a_folder_of_cocos_layout_needs_the_split_only(clq_train, bundle_folder, data):
    code, out, err = clq_train(
        *("eval", bundle_folder, "--data", data, "--merge", "crimson=red", "--drop", "shadow"),
        *("--json", *LOW),
    )
    assert code == 0, err
    found = json.loads(out)
    assert (found["merge"], found["drop"], found["absent"]) == ({"crimson": "red"}, ["shadow"], [])
    assert (
        found["objects"]
        == found["per_class"]["red"]["objects"] + found["per_class"]["blue"]["objects"]
    )
    assert found["objects"] == 12
    assert found["options"] == {"score": 0.01, "iou": 0.6, "max": 100}
    assert found["localisation"]["nms"]["objects"] > 0
    assert f"images of {data / 'val2017'}" in err


def test_a_checkpoint_and_its_bundle_measure_the_same(
    clq_train, checkpoint, bundle_folder, shapes_folder
):
    ways = [
        (checkpoint,),
        (bundle_folder, "--annotations", shapes_folder / "annotations.json"),
        (bundle_folder, "--config", checkpoint / "config.yaml", f"data.root={shapes_folder}"),
    ]
    torch, onnx, named = (json.loads(clq_train("eval", *way, "--json", *LOW)[1]) for way in ways)
    assert named == onnx
    assert torch["runtime"].startswith("torch ")
    assert onnx["runtime"].startswith("float32, sha256:")
    assert torch["alpha"] == onnx["alpha"] == 0.3
    for key in ("ap", "ap50", "ar_100"):
        assert torch[key] == pytest.approx(onnx[key], abs=0.01)
    known = [found["localisation"]["after_nms"]["all"]["ranking_score"] for found in (torch, onnx)]
    assert known[0]["pearson"] == pytest.approx(known[1]["pearson"], abs=0.01)


def test_saved_detections_measure_the_same_without_the_model(
    clq_train, bundle_folder, data, tmp_path
):
    file = tmp_path / "results" / "detections.json"
    rules = ("--data", data, "--merge", "crimson=red", "--drop-rest", "--json")
    code, out, err = clq_train("eval", bundle_folder, *rules, *LOW, "--save-results", file)
    assert code == 0, err
    entries = json.loads(file.read_text())
    assert {entry["category_id"] for entry in entries} <= {3, 7}  # the data set's own ids
    assert set(entries[0]) == {"image_id", "category_id", "bbox", "score"}
    code, again, err = clq_train("eval", file, *rules)
    assert code == 0, err
    first, second = json.loads(out), json.loads(again)
    for key in ("ap", "ap75", "ar_10", "best_threshold"):
        assert second[key] == pytest.approx(first[key], abs=1e-6)
    assert second["localisation"] is None


def test_where_measures_what_a_file_of_those_images_alone_gives(
    clq_train, bundle_folder, shapes_folder, tmp_path
):
    tree = json.loads((shapes_folder / "annotations.json").read_text())
    few = {"0.png", "2.png"}
    tree["images"] = [image for image in tree["images"] if image["file_name"] in few]
    ids = {image["id"] for image in tree["images"]}
    tree["annotations"] = [own for own in tree["annotations"] if own["image_id"] in ids]
    alone = tmp_path / "few.json"
    alone.write_text(json.dumps(tree))
    images = ("--images", shapes_folder / "images", "--json", *LOW)
    of_all, saved = shapes_folder / "annotations.json", tmp_path / "found.json"
    code, expected, err = clq_train("eval", bundle_folder, "--data", alone, *images)
    assert code == 0, err
    where = ("--where", "file_name=0.png,2.png")
    code, out, err = clq_train("eval", bundle_folder, "--data", of_all, *where, *images)
    assert code == 0, err
    assert "2 images" in err
    assert "only images of file_name 0.png, 2.png" in err
    found, wanted = json.loads(out), json.loads(expected)
    assert found.pop("where") == {"file_name": ["0.png", "2.png"]}
    assert wanted.pop("where") == {}
    differing = {key for key in found if found[key] != wanted[key]}
    assert differing == {"annotations"}
    clq_train("eval", bundle_folder, "--data", of_all, "--save-results", saved, *LOW)
    code, out, err = clq_train("eval", saved, "--data", of_all, *where, "--json")
    assert code == 0, err
    assert json.loads(out)["ap"] == pytest.approx(found["ap"], abs=1e-6)
    both = (*where, "--where", "width=1")
    code, out, err = clq_train("eval", bundle_folder, "--data", of_all, *both, *images)
    assert (code, out) == (1, "")
    assert "width: no image has the value '1'; there are 128" in err
    apart = ("--where", "file_name=0.png", "--where", "id=2")
    code, out, err = clq_train("eval", bundle_folder, "--data", of_all, *apart, *images)
    assert (code, out) == (1, "")
    assert "--where: no image has all of file_name=0.png, id=2" in err


class Page(HTMLParser):
    """What a page would fetch, and the text of its headings."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.boxes, self.images, self.tags = [], 0, 0, set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.images += tag == "img"
        self.boxes += values.get("class") in ("right", "wrong", "missed")
        links = [values[key] for key in ("src", "href", "srcset") if key in values]
        self.fetched += [link for link in links if not link.startswith("data:")]


@pytest.fixture(scope="module")
def reports(bundle_folder, shapes_folder, tmp_path_factory):
    """The folder of --out with two pictures, and one without."""
    out = tmp_path_factory.mktemp("reports")
    command = ["eval", str(bundle_folder), "--data", str(shapes_folder / "annotations.json"), *LOW]
    for name, pictures in (("with", "2"), ("without", "0")):
        sys.argv = ["clq-train", *command, "--out", str(out / name), "--pictures", pictures]
        with pytest.raises(SystemExit, match="0"):
            cli.main()
    return out


def test_the_report_is_one_file_that_fetches_nothing(reports):
    text = (reports / "with" / "report.html").read_text()
    page = Page(text)
    assert (page.fetched, page.images) == ([], 2)
    assert page.boxes > 2
    assert not page.tags & {"script", "link", "iframe"}
    assert "url(" not in text
    assert "@import" not in text
    assert sorted(path.name for path in (reports / "with").iterdir()) == [
        "report.html",
        "results.json",
    ]
    assert json.loads((reports / "with" / "results.json").read_text())["images"] == 4


def test_a_report_without_pictures_shows_none_of_the_data(reports):
    text = (reports / "without" / "report.html").read_text()
    assert Page(text).images == 0
    assert "base64" not in text
    assert "0.png" not in text


def test_names_from_the_data_are_text_in_the_report(clq_train, data, tmp_path):
    path = data / "annotations" / "instances_val2017.json"
    tree = json.loads(path.read_text())
    name = "<script>alert(1)</script>"
    for category in tree["categories"]:
        category["name"] = name if category["id"] == 3 else category["name"]
    path.write_text(json.dumps(tree))
    results = tmp_path / "<b>.json"
    results.write_text("[]")
    code, _, err = clq_train("eval", results, "--data", data, "--out", tmp_path / "out")
    assert code == 0, err
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in text
    assert "<b>.json" not in text
    assert "&lt;script&gt;alert(1)" in text


@pytest.mark.slow
def test_the_report_fits_wide_and_narrow_in_both_colour_schemes(reports):
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        backgrounds = set()
        for scheme in ("light", "dark"):
            for width in (1280, 360):
                page = browser.new_page(
                    viewport={"width": width, "height": 900}, color_scheme=scheme
                )
                told = []
                page.on("console", lambda message, told=told: told.append(message.text))
                page.goto((reports / "with" / "report.html").as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
                assert page.locator("figure img").count() == 2
                assert page.locator("rect.missed:visible, rect.wrong:visible").count() > 0
                page.uncheck("#show-missed")
                page.uncheck("#show-wrong")
                assert page.locator("rect.missed:visible, rect.wrong:visible").count() == 0
                assert told == []
        browser.close()
    assert len(backgrounds) == 2


@pytest.mark.slow
def test_an_8_bit_bundle_is_measured_as_it_is_served(
    clq_train, bundle_folder, checkpoint, shapes_folder, tmp_path
):
    from clq_export.reduced_bundle import ReducedRequest, export_reduced
    from clq_train.config import load_config

    request = ReducedRequest(
        bundle=bundle_folder,
        precision="int8",
        config=load_config(checkpoint / "config.yaml", []),
        split="val",
        out=tmp_path,
        version=None,
        runtime="onnxruntime",
        calibration=4,
        max_ap_drop=100.0,
        command="clq-train eval",
        threads=1,
    )
    made = export_reduced(request)
    annotations = shapes_folder / "annotations.json"
    code, out, err = clq_train("eval", made.folder, "--data", annotations, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["runtime"].startswith("int8 for onnxruntime, sha256:")
    assert found["ap"] == pytest.approx(made.after.ap, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "names no data; give --data FILE_OR_FOLDER, or --config FILE"),
        (["--images", "."], "go with --data"),
        (
            ["eval.iou=0.5", "--data", "."],
            "override 'eval.iou=0.5': there is none without --config",
        ),
        (
            ["input.shorter_px=96", "--data", "."],
            "override 'input.shorter_px=96': changes nothing here, the model brings all else",
        ),
        (["--data", "{data}", "--merge", "x"], "--merge 'x': expected CATEGORY=CLASS"),
        (["--data", "{data}", "--device", "gpu"], "--device: 'gpu' is not a device"),
        (["--data", "{data}", "--device", "cuda:0,cuda:1"], "one device"),
        (["--data", "{data}", "--device", "cuda:0"], "cuda"),
        (["--data", "{data}"], "not classes of the model: crimson, shadow; let one count as"),
        (["--data", "{data}", "--drop", "teal"], "--drop teal: no such category in"),
        (["--data", "{data}", "--drop", "red"], "--drop red: is a class of the model"),
        (
            ["--data", "{data}", "--merge", "crimson=pink"],
            "crimson=pink: no such class",
        ),
        (["--data", "{data}", "--drop-rest", "--by", "place"], "has no key 'place'"),
        (["--data", "{data}", "--drop-rest", "--where", "place"], "expected KEY=VALUE,VALUE"),
        (["--data", "{data}", "--drop-rest", "--where", "place=x"], "has no key 'place'"),
        (
            ["--data", "{data}", "--drop-rest", "--where", "id=1", "--where", "id=2"],
            "--where 'id=2': id is given twice, first as '1'",
        ),
        (
            ["--data", "{data}", "--merge", "crimson=red", "--merge", "crimson=blue"],
            "--merge 'crimson=blue': crimson is given twice, first as 'red'",
        ),
        (["--data", "{data}", "--split", "test"], "no annotations of the split 'test'"),
        (["--data", "nowhere.json"], "nowhere.json: No such file"),
        (
            ["--data", "{data}", "--drop-rest", "--images", "nowhere"],
            "nowhere: there is no such folder",
        ),
        (
            ["--data", "{data}", "--drop-rest", "--out", "/proc/none"],
            "/proc/none: can't write there",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(clq_train, bundle_folder, data, arguments, message):
    filled = [argument.format(data=data) for argument in arguments]
    code, out, err = clq_train("eval", bundle_folder, *filled)
    assert (code, out) == (1, "")
    assert err.startswith("clq-train: ")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.classes=[red]", "data.drop=[blue]"], "was trained on ['red', 'blue']"),
        (["--split", "test"], "no split 'test'; the configuration has train, val"),
        (["data.x=1"], "data.x: Extra inputs are not permitted"),
        (["--device", "tpu"], "'tpu'"),
    ],
)
def test_a_mistake_with_a_checkpoint_is_one_clear_line(clq_train, checkpoint, arguments, message):
    code, _, err = clq_train("eval", checkpoint, *arguments)
    assert code == 1
    assert err.startswith("clq-train: ")
    assert message in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("{}", "expected a list of detections"),
        ("[1]", "entry 0: 1 is no object"),
        ('[{"image_id": 99}]', "entry 0: image_id 99 is not in the annotations"),
        ('[{"image_id": 1, "category_id": 5}]', "category_id 5 is not in the annotations"),
        (
            '[{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3], "score": 1}]',
            "are not five finite numbers",
        ),
        (
            '[{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": NaN}]',
            "are not five finite numbers",
        ),
    ],
)
def test_a_broken_results_file_is_told_with_its_entry(
    clq_train, shapes_folder, tmp_path, content, message
):
    file = tmp_path / "results.json"
    file.write_text(content)
    code, _, err = clq_train("eval", file, "--data", shapes_folder)
    assert code == 1
    assert f"{file}: " in err
    assert message in err


def test_what_is_for_a_model_is_refused_with_a_results_file(clq_train, shapes_folder, tmp_path):
    file = tmp_path / "results.json"
    file.write_text("[]")
    code, _, err = clq_train("eval", file, "--data", shapes_folder, "--iou", "0.5")
    assert code == 1
    assert "--score, --iou, --max and --device are for a model" in err


def test_what_is_neither_bundle_nor_checkpoint_nor_file_is_told(clq_train, checkpoint, tmp_path):
    code, _, err = clq_train("eval", tmp_path, "--data", tmp_path)
    assert code == 1
    assert "neither a bundle (it has no manifest.json) nor a checkpoint (no config.yaml)" in err
    code, _, err = clq_train("eval", checkpoint.parent)
    assert code == 1
    assert f"; its checkpoints: {checkpoint}" in err
    code, _, err = clq_train("eval", tmp_path / "nowhere", "--data", tmp_path)
    assert code == 1
    assert "nowhere: there is no such file or folder" in err


@pytest.mark.parametrize("pattern", ANNOTATIONS)
def test_annotations_and_images_are_found_in_each_known_layout(shapes_folder, tmp_path, pattern):
    annotations = tmp_path / pattern.format(split="val")
    annotations.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(shapes_folder / "annotations.json", annotations)
    for folder in (annotations.parent, tmp_path / "images", tmp_path / "val"):
        shutil.copytree(shapes_folder / "images", folder, dirs_exist_ok=True)
        config, notes = eval_data(tmp_path, None, "val", ["red", "blue"], Categories({}))
        split = config.splits["val"]
        assert split.annotations == annotations
        assert (split.images / "0.png").is_file()
        assert notes == [f"images of {split.images}"]
        for image in split.images.glob("*.png"):
            image.unlink()


def test_images_that_are_nowhere_near_are_told_with_what_was_tried(shapes_folder, tmp_path):
    shutil.copy(shapes_folder / "annotations.json", tmp_path / "val.json")
    with pytest.raises(DataError, match=r"0.png is in none of .*name its folder by --images"):
        eval_data(tmp_path / "val.json", None, "val", ["red", "blue"], Categories({}))


def test_a_class_without_a_category_is_not_measured_and_told(clq_train, bundle_folder, data):
    path = data / "annotations" / "instances_val2017.json"
    tree = json.loads(path.read_text())
    tree["categories"] = [c for c in tree["categories"] if c["name"] == "blue"]
    tree["annotations"] = [a for a in tree["annotations"] if a["category_id"] == 7]
    path.write_text(json.dumps(tree))
    code, out, err = clq_train("eval", bundle_folder, "--data", data, "--json", *LOW)
    assert code == 0, err
    assert "not measured, for want of a category: red" in err
    found = json.loads(out)
    assert found["per_class"]["red"]["ap"] == -1
    assert found["absent"] == ["red"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": ["red"]}, "no category is a class"),
        ({"categories": [{"id": 3, "name": "red"}, 7]}, "category 7: expected a number `id`"),
        ({"categories": [{"id": 3, "name": "red"}] * 2}, "category id 3 stands twice"),
        ({"images": []}, "images: no entry has a file_name"),
        ({"images": ["0.png"]}, "images: no entry has a file_name"),
        ({"annotations": None}, "annotations: a COCO file has a list of this name"),
    ],
)
def test_a_broken_annotation_file_is_told(clq_train, shapes_folder, tmp_path, change, message):
    tree = json.loads((shapes_folder / "annotations.json").read_text()) | change
    (tmp_path / "val.json").write_text(json.dumps(tree))
    (tmp_path / "found.json").write_text("[]")
    images = () if "images" in change else ("--images", shapes_folder / "images")
    code, _, err = clq_train(
        "eval", tmp_path / "found.json", "--data", tmp_path / "val.json", *images
    )
    assert code == 1
    assert err.startswith("clq-train: ")
    assert message in err


def test_nothing_in_common_is_an_error(data):
    with pytest.raises(ConfigError, match="no category is a class; the model's classes: cat"):
        eval_data(data, None, "val", ["cat"], Categories({}, drop_rest=True))


def test_a_checkpoints_own_merging_counts_for_other_data_too(data, shapes_folder):
    from clq_train.config import DataConfig

    own = DataConfig.model_validate(
        {
            "root": shapes_folder,
            "splits": {},
            "classes": ["red", "blue"],
            "merge": {"crimson": "red", "navy": "blue"},
            "drop": ["shadow", "fog"],
        }
    )
    config, _ = eval_data(data, None, "val", own.classes, Categories({}), own)
    assert (config.merge, config.drop) == ({"crimson": "red"}, ["shadow"])
    config, _ = eval_data(data, None, "val", own.classes, Categories({}, ["crimson"]), own)
    assert (config.merge, config.drop) == ({}, ["crimson", "shadow"])


def test_a_checkpoint_of_a_device_that_is_not_here_tells_how_to_measure_it(
    clq_train, checkpoint, tmp_path
):
    moved = shutil.copytree(checkpoint, tmp_path / "step-000024")
    config = moved / "config.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: cuda:99"))
    code, _, told = clq_train("eval", str(moved))
    assert code == 1
    assert f"{moved}: it was trained on cuda:99: run.device: 'cuda:99' is not there" in told
    assert "--device cpu measures it here" in told
    code, _, told = clq_train("eval", str(moved), "--device", "cpu")
    assert code == 0, told


@pytest.mark.slow
def test_the_installed_command_measures_a_checkpoint(checkpoint):
    command = [str(Path(sys.executable).parent / "clq-train"), "eval", str(checkpoint), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 4
