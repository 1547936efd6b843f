"""clq-client eval: the AP of a running service, by the rules of clq-train eval."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from clq_client.evaluate import measure, read_truth
from clq_client.inputs import InputError
from clq_client.results import Label

LABELS = tuple(Label(i, name, 10 * (i + 1)) for i, name in enumerate(("red", "green", "blue")))


def random_case(seed, images=6):
    """A COCO tree with three known categories and one that is not, and made-up detections."""
    rng = np.random.default_rng(seed)
    tree = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 200, "height": 200} for i in range(images)
        ],
        "annotations": [],
        "categories": [{"id": item.category_id, "name": item.label} for item in LABELS],
    }
    tree["categories"].append({"id": 99, "name": "other"})
    results = []
    for image_id in range(images):
        for _ in range(rng.integers(0, 7)):
            x, y = rng.uniform(0, 100, 2)
            w, h = rng.uniform(4, 100, 2)
            number = len(tree["annotations"]) + 1
            entry = {"id": number, "image_id": image_id, "bbox": [x, y, w, h]}
            entry["category_id"] = int(rng.choice([10, 20, 30, 99]))
            if rng.random() < 0.2:
                entry |= {"iscrowd": 1, "area": w * h / 2}
            tree["annotations"].append(entry)
            box = (np.array([x, y, w, h]) + rng.normal(0, 4, 4)).clip(1).tolist()
            label = int(rng.integers(3))
            score = float(rng.uniform())
            results.append(
                {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
            )
    return tree, results


@pytest.mark.parametrize("seed", range(8))
def test_the_same_detections_have_the_ap_of_clq_train(seed, tmp_path):
    from clq_train.config import DataConfig
    from clq_train.measure import measure as measure_in_training
    from clq_train.truth import ground_truth

    tree, results = random_case(seed)
    results = [] if seed == 7 else results
    (tmp_path / "a.json").write_text(json.dumps(tree))
    for image in tree["images"]:
        Image.new("L", (200, 200)).save(tmp_path / image["file_name"])
    split = {"annotations": "a.json", "images": "."}
    config = DataConfig.model_validate(
        {
            "root": tmp_path,
            "splits": {"val": split},
            "classes": [item.label for item in LABELS],
            "drop": ["other"],
        }
    )
    expected = measure_in_training(ground_truth(config, "val"), results, list(config.classes))
    truth = read_truth(tmp_path / "a.json", tmp_path, LABELS)
    assert truth.dropped == ("other",)
    found = measure(truth.tree, results, LABELS)
    lowest = -1.0 if results else 0.0  # the client gives 0 for everything where nothing was found
    assert_same_figures(asdict(found), expected, lowest, 1e-9)


def assert_same_figures(found, expected, lowest, tolerance):
    """The client's figures as a dict are those of an Evaluation of clq_train."""
    per_class = {name: max(figures.ap, lowest) for name, figures in expected.per_class.items()}
    assert found.pop("per_class") == pytest.approx(per_class, abs=tolerance)
    totals = {name: max(getattr(expected, name), lowest) for name in found}
    assert found == pytest.approx(totals, abs=tolerance)


@pytest.fixture
def cells(tmp_path):
    """Two images with squares on the cells of the tiny model, and their annotations."""
    tree = {"images": [], "annotations": [], "categories": []}
    tree["categories"] = [{"id": item.category_id, "name": item.label} for item in LABELS]
    colours = {10: (255, 0, 0), 20: (0, 255, 0), 30: (0, 0, 255)}
    for number, squares in enumerate([[(0, 10), (64, 20)], [(32, 30)]]):
        image = Image.new("RGB", (128, 64), (255, 255, 255))
        for x, category in squares:
            image.paste(colours[category], (x, 32, x + 32, 64))
            annotation = {"id": len(tree["annotations"]) + 1, "image_id": number}
            annotation |= {"bbox": [x, 32, 32, 32], "category_id": category}
            tree["annotations"].append(annotation)
        (tmp_path / "pictures").mkdir(exist_ok=True)
        image.save(tmp_path / "pictures" / f"{number}.png")
        tree["images"].append(
            {"id": number, "file_name": f"{number}.png", "width": 128, "height": 64}
        )
    (tmp_path / "coco.json").write_text(json.dumps(tree))
    return tree


def test_a_service_that_finds_every_object_has_an_ap_of_100(service, cells, clq):
    done = clq("eval", "--data", "coco.json", "--images", "pictures", "--url", service)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["2 images", "AP           100.0", "AP50         100.0"]
    assert lines[-3:] == [f"  {name:16s} 100.0" for name in ("red", "green", "blue")]


def test_an_image_that_fails_counts_as_nothing_found_and_is_told(service, cells, clq, tmp_path):
    (tmp_path / "pictures" / "1.png").write_bytes(b"no image")
    done = clq("eval", "--data", "coco.json", "--images", "pictures", "--json", "--url", service)
    assert done.returncode == 1
    assert "1 of 2 images failed:\n  pictures/1.png: ImageRefused" in done.stderr
    found = json.loads(done.stdout)
    assert found["ap"] == pytest.approx(2 / 3)
    assert found["per_class"] == pytest.approx({"red": 1.0, "green": 1.0, "blue": 0.0})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"categories": [{"id": 10, "name": "cat"}]}, "category 10 is 'cat', 'red' in the service"),
        ({"categories": [{"id": 5, "name": "cat"}]}, "no category of the service's model"),
        ({"images": [{"id": 1, "file_name": "a"}] * 2}, "stands twice"),
        ({"images": None}, "images: a COCO file has a list"),
        ({"annotations": [{"id": 1}]}, "not of COCO's form"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(cells, tmp_path, change, reason):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(cells | change))
    with pytest.raises(InputError, match=reason):
        read_truth(path, tmp_path, LABELS)


@pytest.mark.slow
def test_a_running_service_has_the_ap_that_clq_train_measures_of_its_bundle(
    bundle_folder, shapes_folder, start_service, clq
):
    from shapes_data import shapes_tree

    from clq_train.config import parse_config
    from clq_train.evaluate import evaluate
    from clq_train.targets import open_target

    config = parse_config(shapes_tree(shapes_folder), "test")
    target = open_target(bundle_folder)
    expected = evaluate(
        target.engine, target.rule, config.data, "val", target.options, progress=False
    )
    data = ["--data", shapes_folder / "annotations.json", "--images", shapes_folder / "images"]
    done = clq("eval", *data, "--json", "--url", start_service(bundle=bundle_folder))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # The service rounds boxes to 0.001 px and scores to 1e-6.
    assert_same_figures(found, expected, -1.0, 1e-3)
    assert found["ap"] > 0
