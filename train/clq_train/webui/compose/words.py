"""What the pages of our own say, in many languages and scripts: data/words.toml."""

import random
import tomllib
from dataclasses import dataclass
from functools import cache

from clq_train.webui.sources import DATA


@dataclass(frozen=True, slots=True)
class Words:
    """Short texts of a language. direction: "ltr" or "rtl"."""

    language: str
    direction: str
    buttons: list[str]
    links: list[str]
    menu: list[str]
    labels: list[str]
    options: list[str]
    titles: list[str]
    sentences: list[str]
    names: list[str]
    status: list[str]


@cache
def _languages() -> tuple[dict[str, Words], dict[str, float]]:
    tree = tomllib.loads((DATA / "words.toml").read_text())
    weights = {language: entry.pop("weight") for language, entry in tree.items()}
    words = {}
    for language, entry in tree.items():
        direction = entry.pop("direction", "ltr")
        lists = {key: text.split("|") for key, text in entry.items()}
        words[language] = Words(language=language, direction=direction, **lists)
    return words, weights


def words_for(rng: random.Random) -> Words:
    """A language by its weight."""
    words, weights = _languages()
    return words[rng.choices(list(words), list(weights.values()))[0]]
