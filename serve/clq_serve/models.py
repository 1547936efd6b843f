"""Which models the service has, by name and version."""

from clq_serve.errors import UnknownModel
from clq_serve.loading import LoadedModel


class ModelStore:
    """The models that are loaded now; the default is the one that was loaded first."""

    def __init__(self, models: list[LoadedModel]) -> None:
        assert models, "a service has at least one model"
        self._models = models

    def get(self, name: str | None = None, version: int | None = None) -> LoadedModel:
        """The model `name` (None: the default) in `version` (None: its newest that is loaded).

        Raises UnknownModel.
        """
        wanted = self._models[0].name if name is None else name
        found = [m for m in self._models if m.name == wanted and version in (None, m.version)]
        if not found:
            asked = wanted if version is None else f"{wanted}/{version}"
            loaded = [f"{m.name}/{m.version}" for m in self._models]
            raise UnknownModel(
                f"there is no model {asked!r}; loaded: {', '.join(loaded)}",
                extra={"accepted": loaded},
            )
        return max(found, key=lambda model: model.version)

    def all(self) -> list[LoadedModel]:
        """Every loaded model, in the order of loading."""
        return list(self._models)
