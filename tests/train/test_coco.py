"""Broken annotations are reported with file, id and value before anything is trained."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes_data import shapes_tree, write_shapes

from clq_train.coco import category_ids, load_split, read_split, records_of, training_records
from clq_train.config import DataConfig
from clq_train.errors import DataError


@pytest.fixture
def shapes(tmp_path):
    return write_shapes(tmp_path)


def data_config(folder, **changes):
    return DataConfig.model_validate({**shapes_tree(folder)["data"], **changes})


def break_file(folder, change):
    path = folder / "annotations.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    return path


def test_records_hold_corners_and_labels_in_the_order_of_the_classes(shapes):
    tree = json.loads((shapes / "annotations.json").read_text())
    records = load_split(data_config(shapes), "train")
    assert [r.image_id for r in records] == [1, 2, 3, 4]
    for record in records:
        entries = [a for a in tree["annotations"] if a["image_id"] == record.image_id]
        assert len(entries) == len(record.boxes) == 3
        for entry, box, label in zip(entries, record.boxes, record.labels, strict=True):
            x, y, w, h = entry["bbox"]
            assert box.tolist() == [x, y, x + w, y + h]
            assert ["red", "blue"][label] == {3: "red", 7: "blue"}[entry["category_id"]]


BREAKS = {
    "missing file": (
        lambda t: t["images"][1].update(file_name="nowhere.png"),
        "image 2: no file",
    ),
    "duplicate image": (lambda t: t["images"][1].update(id=1), "image 1: the id stands twice"),
    "no size": (lambda t: t["images"][0].update(width=0), "image 1: width and height are (0, 128)"),
    "image of another size": (
        lambda t: t["images"][2].update(width=60, height=50),
        "2.png is 128 x 128, the annotations say 60 x 50",
    ),
    "not an image": (
        lambda t: t["images"][3].update(file_name="../annotations.json"),
        "annotations.json: the bytes are not an image of an accepted format",
    ),
    "image without a number": (
        lambda t: t["images"].append({"id": "5", "file_name": "0.png"}),
        "image '5': the id '5' is not a whole number",
    ),
    "image without a name": (
        lambda t: t["images"][1].pop("file_name"),
        "image 2: file_name None is not a name",
    ),
    "no object": (lambda t: t["annotations"].append("box"), "annotation 'box': the id None is not"),
    "no id": (
        lambda t: t["annotations"][0].pop("id"),
        "annotation None: the id None is not a whole number",
    ),
    "category without a name": (
        lambda t: t["categories"].append({"id": 9}),
        "category {'id': 9}: expected a number `id` and a `name`",
    ),
    "infinite": (
        lambda t: t["annotations"][2].update(bbox=[10, 10, 10**400, 5]),
        "annotation 3: bbox [10, 10, 1000",
    ),
    "duplicate annotation": (
        lambda t: t["annotations"][4].update(id=2),
        "annotation 2: the id stands twice",
    ),
    "unknown category": (
        lambda t: t["annotations"][0].update(category_id=99),
        "annotation 1: category_id 99 is unknown",
    ),
    "unknown image": (
        lambda t: t["annotations"][0].update(image_id=50),
        "annotation 1: image_id 50 is unknown",
    ),
    "outside": (
        lambda t: t["annotations"][2].update(bbox=[100, 10, 60, 20]),
        "annotation 3: bbox [100, 10, 60, 20] reaches 32 px outside image 1 of 128 x 128",
    ),
    "zero area": (
        lambda t: t["annotations"][2].update(bbox=[10, 10, 0, 20]),
        "annotation 3: bbox [10, 10, 0, 20] has no area",
    ),
    "at the edge": (
        lambda t: t["annotations"][2].update(bbox=[-0.9, 10, 0.5, 20]),
        "annotation 3: bbox [-0.9, 10, 0.5, 20] has no area inside image 1",
    ),
    "not numbers": (
        lambda t: t["annotations"][2].update(bbox=[10, None, 5, 20]),
        "annotation 3: bbox [10, None, 5, 20] is not four finite numbers",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_entry_is_named_with_file_id_and_value(shapes, name):
    change, message = BREAKS[name]
    path = break_file(shapes, change)
    with pytest.raises(DataError) as error:
        load_split(data_config(shapes), "train")
    assert str(path) in str(error.value)
    assert message in str(error.value)


values = st.sampled_from(
    [None, True, -1, -0.5, 0, 3, 1e-9, 1.5, 10**400, math.nan, "", "0.png", [], [1], {}]
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["images", "annotations", "categories"]), st.data())
def test_no_value_in_any_place_ends_in_anything_but_records_or_a_list_of_faults(
    shapes_folder, tmp_path_factory, kind, data
):
    tree = json.loads((shapes_folder / "annotations.json").read_text())
    entries = tree[kind]
    index = data.draw(st.integers(0, len(entries) - 1))
    key = data.draw(st.sampled_from([None, *entries[index]]))
    value = data.draw(values)
    if key is None:
        entries[index] = value
    elif key == "bbox" and data.draw(st.booleans()):
        entries[index][key][data.draw(st.integers(0, 3))] = value
    else:
        entries[index][key] = value
    changed = tmp_path_factory.getbasetemp() / "mutated.json"
    changed.write_text(json.dumps(tree))
    splits = {"train": {"annotations": changed, "images": "images"}}
    config = data_config(shapes_folder, splits=splits)

    found = read_split(config, "train")
    records, problems = records_of(found), found.mismatches + found.broken
    for record in records:
        assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
        assert record.boxes.min(initial=0) >= 0
        assert record.boxes[:, 2].max(initial=0) <= record.width
    if problems:
        with pytest.raises(DataError) as error:
            load_split(config, "train")
        assert problems[0] in str(error.value)
    else:
        assert len(load_split(config, "train")) == len(records)


def test_what_is_not_broken_can_be_read_all_the_same(shapes):
    def change(tree):
        tree["images"][1].update(file_name="nowhere.png")
        tree["annotations"][0].update(bbox=[10, 10, 0, 20])
        tree["categories"].append({"id": 9, "name": "green"})

    break_file(shapes, change)
    found = read_split(data_config(shapes), "train")
    assert [record.image_id for record in records_of(found)] == [1, 3, 4]
    assert [len(record.boxes) for record in records_of(found)] == [2, 3, 3]
    assert (len(found.broken), len(found.mismatches)) == (2, 1)


def test_only_as_many_broken_entries_as_allowed_are_left_out_and_each_is_logged(shapes, caplog):
    """COCO's own train2017 has two boxes without height (cocoapi issue 355)."""

    def change(tree):
        for entry in tree["annotations"][:2]:
            entry["bbox"][3] = 0.0

    break_file(shapes, change)
    data = data_config(shapes).model_dump()
    data["splits"]["train"]["allow_broken"] = 1
    with pytest.raises(DataError, match="2 broken entries"):
        load_split(DataConfig.model_validate(data), "train")
    data["splits"]["train"]["allow_broken"] = 2
    config = DataConfig.model_validate(data)
    assert [len(r.boxes) for r in load_split(config, "train")] == [1, 3, 3, 3]
    assert "annotation 2: bbox" in caplog.text
    assert "0.0] has no area" in caplog.text
    with pytest.raises(DataError, match="2 broken entries"):
        load_split(config, "val")


def test_all_broken_entries_are_counted_and_the_first_twenty_shown(shapes):
    def change(tree):
        for entry in tree["annotations"]:
            entry["category_id"] = 99
        tree["annotations"] *= 3
        for i, entry in enumerate(tree["annotations"]):
            tree["annotations"][i] = {**entry, "id": i}

    break_file(shapes, change)
    with pytest.raises(DataError, match="36 broken entries") as error:
        load_split(data_config(shapes), "train")
    assert "... and 16 more" in str(error.value)
    assert str(error.value).count("is unknown") == 20


def test_a_category_that_the_configuration_does_not_mention_is_an_error(shapes):
    with pytest.raises(DataError, match="category 7 'blue' is unknown"):
        load_split(data_config(shapes, classes=["red"]), "train")


def test_categories_can_be_dropped_or_merged(shapes):
    whole = sum(len(r.boxes) for r in load_split(data_config(shapes), "train"))
    dropped = load_split(data_config(shapes, classes=["red"], drop=["blue"]), "train")
    merged = load_split(data_config(shapes, classes=["red"], merge={"blue": "red"}), "train")
    assert sum(len(r.boxes) for r in dropped) < whole
    assert sum(len(r.boxes) for r in merged) == whole
    assert all((r.labels == 0).all() for r in [*dropped, *merged])


def test_a_class_without_a_category_is_an_error(shapes):
    with pytest.raises(DataError, match="no category of the file is named green"):
        load_split(data_config(shapes, classes=["red", "blue", "green"]), "train")


def test_more_data_sets_are_trained_on_as_often_as_they_say_and_may_lack_classes(shapes, tmp_path):
    own = write_shapes(tmp_path / "own", images=2, seed=1)

    def only_red(tree):
        tree["annotations"] = [a for a in tree["annotations"] if a["category_id"] == 3]
        tree["categories"] = tree["categories"][:1]

    break_file(own, only_red)
    more = {"annotations": own / "annotations.json", "images": own / "images", "times": 3}
    records = training_records(data_config(shapes, more=[more]))
    assert [r.path.parent for r in records] == [shapes / "images"] * 4 + [own / "images"] * 6
    assert [r.path.name for r in records[4:]] == ["0.png", "1.png"] * 3
    assert {label for r in records[4:] for label in r.labels.tolist()} == {0}


def test_an_error_in_one_of_more_data_sets_names_its_file(shapes, tmp_path):
    own = write_shapes(tmp_path / "own")
    more = {"annotations": "own/annotations.json", "images": "own/images"}
    break_file(own, lambda t: t["annotations"][0].update(bbox=[1, 2, 3]))
    with pytest.raises(DataError, match=r"own/annotations\.json: annotation 1: bbox \[1, 2, 3\]"):
        training_records(data_config(shapes, more=[more]))
    allowed = data_config(shapes, more=[{**more, "allow_broken": 1}])
    assert len(training_records(allowed)[4].boxes) == 2
    break_file(own, lambda t: t["categories"][0].update(name="green"))
    with pytest.raises(DataError, match=r"own/annotations\.json: category 3 'green' is unknown"):
        training_records(allowed)


def test_crowd_regions_are_not_trained_on(shapes):
    break_file(shapes, lambda t: t["annotations"][0].update(iscrowd=1))
    assert len(load_split(data_config(shapes), "train")[0].boxes) == 2


def test_a_box_up_to_a_pixel_outside_is_clipped(shapes):
    break_file(shapes, lambda t: t["annotations"][0].update(bbox=[100.0, 10, 28.9, 20]))
    assert load_split(data_config(shapes), "train")[0].boxes[0].tolist() == [100, 10, 128, 30]


@pytest.mark.parametrize("text", ["not json", "[]", '{"images": []}'])
def test_a_file_that_is_not_coco_is_refused(shapes, text):
    (shapes / "annotations.json").write_text(text)
    with pytest.raises(DataError, match=r"annotations\.json"):
        load_split(data_config(shapes), "train")


def test_an_unknown_split_names_the_known_ones(shapes):
    with pytest.raises(DataError, match="no split 'test'; the configuration has train, val"):
        load_split(data_config(shapes), "test")


def test_category_ids_are_those_of_the_data_set(shapes):
    assert category_ids(data_config(shapes), shapes / "annotations.json") == [3, 7]
