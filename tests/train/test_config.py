"""The configuration: complete files, strict keys, overrides."""

from pathlib import Path

import pytest
import yaml
from shapes_data import shapes_tree

from clq_train.config import dump_config, load_config, parse_config
from clq_train.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "train/configs").glob("*.yaml"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(shapes_tree(tmp_path)))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_named_run_is_valid_and_survives_a_round_trip(path, tmp_path):
    config = load_config(path, [])
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy, []) == config


def test_overrides_replace_values_and_are_validated(file):
    config = load_config(file, ["model.head.lqe=false", "schedule.lr=2e-3", "data.classes=[red]"])
    assert config.model.head.lqe is False
    assert config.schedule.lr == 0.002
    assert config.data.classes == ["red"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.head.lqee=true", "model.head.lqee: Extra inputs are not permitted"),
        ("schedule.steps=0", "schedule.steps: Input should be greater than 0"),
        ("schedule.steps=many", "schedule.steps: Input should be a valid integer"),
        ("model.head.channels=48", "48 is no multiple"),
        ("model.head.channels=64", "head.channels 64 differs from neck.channels 32"),
        ("augment.crop_px=100", "yaml: augment.crop_px 100 is no multiple of the largest stride"),
        ("augment.shorter_px=[480, 800]", "augment: give exactly one of crop_px and shorter_px"),
        ("model.candidates=1000", "candidates 1000 exceeds levels x candidates_per_level 200"),
        ("data.merge={green: yellow}", "'yellow', which is not in classes"),
        ("data.drop=[red]", "'red' is in classes"),
        ("model.backbone.weights=a.pth", "weights: give the top-level key init"),
        ("model.backbone.frozen_norm=true", "is for torchvision's backbones, not for regnet_nano"),
        ("schedule.frozen_statistics=true", "only with init: a random start has no statistics"),
        ("model.head.centerness=true", "centerness takes the place of lqe"),
        ("model.candidates_per_level=3841", "should be less than or equal to 3840"),
        ("steps", "expected key.path=value"),
        ("name.first=a", "'name' is a value, not a section"),
    ],
)
def test_a_bad_override_names_its_key(file, override, message):
    changes = [override]
    if "channels=48" in override:
        changes += ["model.neck.channels=48", "model.head.norm=group"]
    with pytest.raises(ConfigError) as error:
        load_config(file, changes)
    assert message in str(error.value)


def test_a_missing_section_is_named(tmp_path):
    tree = shapes_tree(tmp_path)
    del tree["model"]["neck"]
    with pytest.raises(ConfigError, match=r"here: model\.neck: Field required"):
        parse_config(tree, "here")


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(path, [])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml: No such file"):
        load_config(tmp_path / "gone.yaml", [])


def test_the_configuration_is_frozen(file):
    with pytest.raises(ValueError, match="frozen"):
        load_config(file, []).name = "other"


def test_a_checkpoint_of_before_init_still_reads(file):
    assert load_config(file, ["model.backbone.weights=null"]) == load_config(file, [])


def test_a_bare_off_is_no_autocast(file):
    assert load_config(file, ["run.autocast=off"]).run.autocast == "off"
    with pytest.raises(ConfigError, match=r"run\.autocast: Input should be 'off', 'bfloat16' or"):
        load_config(file, ["run.autocast=on"])
