"""The thresholds of every decision in one value, and reading them from a file.

Belongs here: putting the policies of `core` together and telling a user what is wrong with a file of them. Does not
belong here: what a threshold means or may be, which the policy's own class says.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Self

import yaml

from bike_assets.core.drift import DriftPolicy
from bike_assets.core.errors import PermanentError
from bike_assets.core.promotion import PromotionPolicy
from bike_assets.core.retraining import RetrainingPolicy
from bike_assets.settings import Settings

DEFAULT_NAME: Final = "default"


@dataclass(frozen=True)
class Policies:
    """What counts as drift, when to retrain, and whom to promote; `name` is what reports call it.

    The others are named as in the settings.
    """

    name: str = DEFAULT_NAME
    monitoring: DriftPolicy = field(default_factory=DriftPolicy)
    retraining: RetrainingPolicy = field(default_factory=RetrainingPolicy)
    promotion: PromotionPolicy = field(default_factory=PromotionPolicy)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Those of the settings."""
        return cls(
            monitoring=settings.monitoring, retraining=settings.retraining, promotion=settings.promotion
        )

    def read(self, path: Path) -> Self:
        """Policies of a TOML or YAML file with the sections `monitoring`, `retraining` and `promotion`.

        What the file does not name is as it is here; the name is the file's, without its ending.

        Raises:
            PermanentError: the file cannot be read, or names a section, a threshold or a value that is not allowed.
        """
        sections = _sections(self)
        content = _content(path)
        if unknown := [str(name) for name in content if name not in sections]:
            raise PermanentError(
                f"{path.name}: there is no section {', '.join(unknown)}; use {', '.join(sections)}"
            )
        read = {name: _section(path, name, sections[name], content[name]) for name in content}
        return replace(self, name=path.stem, **read)

    def applied(self, settings: Settings) -> Settings:
        """The settings with these thresholds."""
        return settings.model_copy(update=_sections(self))

    def thresholds(self) -> dict[str, dict[str, Any]]:
        """Every threshold by section and name."""
        return {name: asdict(value) for name, value in _sections(self).items()}


def _sections(policies: Policies) -> dict[str, Any]:
    return {each.name: getattr(policies, each.name) for each in fields(policies) if each.name != "name"}


def _content(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            content: Any = tomllib.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            content = yaml.safe_load(text) or {}
        else:
            raise PermanentError(f"{path.name}: a policy file ends in .toml, .yaml or .yml")
    except OSError as error:
        raise PermanentError(f"{path} cannot be read: {error.strerror}; name a policy file") from error
    except UnicodeDecodeError as error:
        raise PermanentError(f"{path.name} is not text in UTF-8; write it again") from error
    except tomllib.TOMLDecodeError as error:
        raise PermanentError(f"{path.name} is not TOML: {error}") from error
    except yaml.YAMLError as error:
        raise PermanentError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise PermanentError(f"{path.name}: give sections with thresholds, as in docs/how-to.md")
    return content


def _section(path: Path, section: str, policy: Any, values: Any) -> Any:
    """A policy with the values of its section; each is checked against the type of the one it replaces."""
    if not isinstance(values, Mapping):
        raise PermanentError(f"{path.name}: {section} is {values!r}; give thresholds by name under it")
    defaults = asdict(policy)
    if unknown := [str(name) for name in values if name not in defaults]:
        raise PermanentError(
            f"{path.name}: {section} has no threshold {', '.join(unknown)}; it has {', '.join(defaults)}"
        )
    given = {}
    for name, value in values.items():
        default = defaults[name]
        given[name] = float(value) if type(default) is float and type(value) is int else value
        if type(given[name]) is not type(default):
            raise PermanentError(f"{path.name}: {section}.{name} is {value!r}; give a value like {default!r}")
    try:
        return replace(policy, **given)
    except PermanentError as error:
        raise PermanentError(f"{path.name}: {error}") from error
