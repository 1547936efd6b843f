"""Which images a command line means, and what their annotated copies are called."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp")


class InputError(ValueError):
    """The paths of a command line cannot be what was meant.  The message names the path."""


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The images in the order of `paths`, each once; those of a folder, at any depth, sorted.

    A file that is named is taken whatever its suffix; the service looks at the bytes.

    Raises InputError for a path that is not there and for a folder without images.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if _is_image(p))
            if not inside:
                raise InputError(f"{path}: no images in it; looked for {' '.join(IMAGE_SUFFIXES)}")
            found |= dict.fromkeys(inside)
        elif path.exists():
            found[path] = None
        else:
            raise InputError(f"{path}: no such file or folder")
    return list(found)


def annotated_names(images: Sequence[Path]) -> list[str]:
    """One file name for each image, all different, also where case does not count.

    shots/home.jpg -> home.png; where a stem is there twice, folder and suffix tell them apart:
    a/home.jpg, b/home.jpg, b/home.png -> a_home.jpg.png, b_home.jpg.png, b_home.png.png
    """
    stems = Counter(image.stem.casefold() for image in images)
    names: list[str] = []
    taken = {f"{stem}.png" for stem, count in stems.items() if count == 1}
    for image in images:
        if stems[image.stem.casefold()] == 1:
            names.append(f"{image.stem}.png")
            continue
        base = f"{image.parent.name}_{image.name}" if image.parent.name else image.name
        name, number = f"{base}.png", 2
        while name.casefold() in taken:
            name, number = f"{base}-{number}.png", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names


def refuse_overwriting(folder: Path, names: Sequence[str], images: Sequence[Path]) -> None:
    """Raises InputError where an annotated copy would replace an image of the input."""
    originals = {image.resolve() for image in images}
    for name in names:
        if (folder / name).resolve() in originals:
            raise InputError(f"{folder}: {name} would replace an image of the input")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
