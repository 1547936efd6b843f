"""The two kinds of boxes that the report's sections are made of, as HTML."""

from collections.abc import Sequence


def cards(figures: Sequence[tuple[str, str, str]]) -> str:
    """Headline figures: name, value and a note each, all of them HTML."""
    cells = "".join(
        f"<div><span class=soft>{name}</span><b>{value}</b><small>{note}</small></div>"
        for name, value, note in figures
    )
    return f"<div class=figures>{cells}</div>"


def card(title: str, content: str, note: str) -> str:
    """A titled box with a note below its content, all of them HTML."""
    return f"<div class=card><h3>{title}</h3>{content}<p>{note}</p></div>"
