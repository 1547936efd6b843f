"""A fontconfig file of fonts out of packages only: pages look alike on every machine."""

from pathlib import Path
from xml.sax.saxutils import escape

from clq_train.webui.fetch import package_folder
from clq_train.webui.sources import Package, all_packages

FONT_PACKAGES = (
    "fonts-dejavu-core", "fonts-liberation", "fonts-noto-core", "fonts-noto-cjk",
    "fonts-noto-color-emoji",
)  # fmt: skip
FAMILIES = {
    "sans-serif": ("DejaVu Sans", "Noto Sans", "Noto Sans CJK SC"),
    "serif": ("DejaVu Serif", "Noto Serif", "Noto Serif CJK SC"),
    "monospace": ("DejaVu Sans Mono", "Noto Sans Mono CJK SC"),
    "system-ui": ("Noto Sans", "Noto Sans CJK SC"),
    "Arial": ("Liberation Sans",),
    "Helvetica": ("Liberation Sans",),
    "Times New Roman": ("Liberation Serif",),
    "Courier New": ("Liberation Mono",),
}


def font_packages() -> list[Package]:
    return [all_packages()[key] for key in FONT_PACKAGES]


def write_fontconfig(cache: Path) -> Path:
    """Writes the file into the cache, beside the unpacked packages."""
    folders = [package_folder(cache, p) / "usr/share/fonts" for p in font_packages()]
    lines = ['<?xml version="1.0"?>', '<!DOCTYPE fontconfig SYSTEM "fonts.dtd">', "<fontconfig>"]
    lines += [f"<dir>{escape(str(folder))}</dir>" for folder in folders]
    lines += [f"<cachedir>{escape(str(cache / 'fontconfig'))}</cachedir>"]
    for alias, names in FAMILIES.items():
        prefer = "".join(f"<family>{name}</family>" for name in names)
        lines.append(
            f'<alias binding="same"><family>{alias}</family><prefer>{prefer}</prefer></alias>'
        )
    lines.append("</fontconfig>")
    path = cache / "fonts.conf"
    path.write_text("\n".join(lines) + "\n")
    return path
