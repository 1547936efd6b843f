"""The annotated picture, read back from its file."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from clq_client import Detection, DetectResult
from clq_client.annotate import (
    _caption_size,
    _fitting,
    _place,
    _readable_on,
    colour_of,
    draw_detections,
    luminance,
    upright_rgb,
    write_annotated,
)


def detection(box, class_id=0, label="button", score=0.875):
    return Detection(box, score, label, class_id, 1.0, score)


def test_the_edges_of_a_box_have_the_colour_of_its_class(answer, png, tmp_path):
    path = tmp_path / "a.png"
    write_annotated(png, DetectResult.from_json(answer), path)
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (400, 200))
        pixels = image.load()
        colour = colour_of(0)  # box 100 50 300 150, line 2 pixels, the label is above it
        for x in range(100, 300):
            assert pixels[x, 149] == pixels[x, 148] == colour
            assert pixels[x, 50] == pixels[x, 51] == colour
        for y in range(50, 150):
            assert pixels[100, y] == pixels[101, y] == colour
            assert pixels[299, y] == pixels[298, y] == colour
        for x, y in [(99, 100), (300, 100), (200, 150), (102, 100), (297, 100), (200, 147)]:
            assert pixels[x, y] == (200, 200, 200)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_boxes_are_drawn_in_the_upright_image(answer, tmp_path, orientation, kind):
    upright = Image.new("RGB", (400, 200), (200, 200, 200))
    upright.paste((0, 0, 255), (350, 150, 400, 200))  # blue where right and bottom are
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that undoes the turn
    stored = upright if orientation == 1 else upright.transpose(back[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "secret"
    file = io.BytesIO()
    stored.save(file, kind, exif=exif, quality=95)
    path = tmp_path / "a.png"
    write_annotated(file.getvalue(), DetectResult.from_json(answer), path)
    assert b"secret" not in path.read_bytes()
    assert b"eXIf" not in path.read_bytes()
    with Image.open(path) as image:
        assert image.info == {}
        assert image.size == (400, 200)
        assert image.getpixel((200, 149)) == colour_of(0)
        red, _, blue = image.getpixel((390, 190))
        assert blue > 200
        assert red < 60


def test_a_result_about_another_image_is_refused_and_nothing_written(answer, png_of, tmp_path):
    with pytest.raises(ValueError, match=r"10x20 pixels.* 400x200"):
        write_annotated(png_of(10, 20, 0), DetectResult.from_json(answer), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_an_os_error(answer, png, tmp_path):
    for data in (b"", b"text", png[: len(png) // 2]):
        with pytest.raises(OSError, match=r"."):
            write_annotated(data, DetectResult.from_json(answer), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_transparency_is_put_on_white_and_16_bits_are_scaled():
    file = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(file, "PNG")
    assert upright_rgb(file.getvalue()).getpixel((1, 1)) == (255, 255, 255)
    file = io.BytesIO()
    Image.new("I;16", (4, 4), 128 * 257).save(file, "PNG")
    assert upright_rgb(file.getvalue()).getpixel((1, 1)) == (128, 128, 128)
    file = io.BytesIO()
    Image.new("CMYK", (4, 4), (0, 0, 0, 0)).save(file, "JPEG")
    assert upright_rgb(file.getvalue()).getpixel((1, 1)) == (255, 255, 255)


SIDE = st.integers(1, 300)


@settings(deadline=None, max_examples=30)
@given(SIDE, SIDE, st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=8), st.text(max_size=30))
def test_any_box_and_any_label_can_be_drawn(width, height, parts, label):
    image = Image.new("RGB", (width, height))
    found = []
    for a, b, c, d in parts:
        (x1, x2), (y1, y2) = sorted((a * width, c * width)), sorted((b * height, d * height))
        found.append(detection((x1, y1, x2, y2), label=label))
    draw_detections(image, found)
    assert image.size == (width, height)
    assert not found or image.getcolors(1) != [(width * height, (0, 0, 0))]


@given(st.tuples(*[st.integers(0, 400)] * 2), st.tuples(*[st.integers(20, 400)] * 2))
def test_a_label_is_inside_the_image(corner, size):
    font = ImageFont.load_default(size=12)
    caption = _fitting("a rather long label 0.50", font, size[0])
    x, y = min(corner[0], size[0]), min(corner[1], size[1])
    x1, y1, x2, y2 = _place((x, y, x, y), _caption_size(caption, font), size, [])
    assert 0 <= x1 < x2 <= size[0]
    assert 0 <= y1 < y2 <= size[1]


def test_labels_of_one_box_do_not_hide_each_other():
    taken = []
    for _ in range(3):
        taken.append(_place((50.0, 50.0, 90.0, 90.0), (60, 14), (200, 200), taken))
    assert sorted(place[1] for place in taken) == [36, 50, 90]  # above, inside, below


def test_colours_differ_and_text_on_them_is_readable():
    colours = [colour_of(class_id) for class_id in range(80)]
    assert len(set(colours)) == 80
    for colour in colours:
        light, dark = sorted((luminance(colour), luminance(_readable_on(colour))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA
