"""Configuration files: located by name, read safely, validated with every mistake reported at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from cxrlt_ray.errors import UsageError

PACKAGE = Path(__file__).parent


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text, since it expects 1.0e-3; people write 1e-3. A key given twice it would drop once."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                twice = f"key '{key.value}' is given twice: keep one"
                raise yaml.composer.ComposerError(None, None, twice, key.start_mark)
            seen.add(key.value)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class Config(BaseModel):
    """Base of every configuration: frozen, and an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("seed", "split_seed", check_fields=False)
    @classmethod
    def _check_seed(cls, seed: Any) -> Any:
        """No generator of random numbers takes a negative seed, and some say so only after an hour's work."""
        if isinstance(seed, int) and seed < 0:
            raise UsageError(f"seed {seed} is negative: give 0 or more.")
        return seed


Model = TypeVar("Model", bound=BaseModel)


def names(folder: str) -> list[str]:
    """The names that `find(folder, NAME)` knows, sorted."""
    return sorted({path.stem for directory in _directories(folder) for path in directory.glob("*.yaml")})


def find(folder: str, name: str) -> Path:
    """The file for `name`: a path, else NAME.yaml in ./FOLDER, else the copy shipped with the package.

    Raises UsageError when there is none.
    """
    if (path := Path(name)).is_file():
        return path
    for directory in _directories(folder):
        if (path := directory / f"{name}.yaml").is_file():
            return path
    raise UsageError(
        f"no {folder} file '{name}': it is neither a path nor one of {', '.join(names(folder))} "
        f"(looked in {', '.join(map(str, _directories(folder)))})."
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UsageError, naming the file, if there is none."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a mapping of keys to values, not {type(content).__name__}.")
    return content


def validate(model: type[Model], content: dict[str, Any], source: Path | str) -> Model:
    """`content` as a `model`. Raises UsageError naming `source` and, per mistake, key, value and what is allowed."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        mistakes = "; ".join(_mistake(model, item) for item in error.errors())
        raise UsageError(f"{source}: {mistakes}.") from None


def _directories(folder: str) -> list[Path]:
    # an installed wheel carries the folder inside the package, a checkout beside it
    return [Path(folder), PACKAGE / folder, PACKAGE.parent / folder]


def _mistake(model: type[BaseModel], item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"] if part != "[key]") or "the file"
    if item["type"] == "extra_forbidden":
        parent = ".".join(str(part) for part in item["loc"][:-1])
        allowed = f"; allowed at the top: {', '.join(model.model_fields)}" if not parent else ""
        return f"unknown key '{key}'{allowed}"
    if item["type"] == "missing":
        return f"key '{key}' is missing"
    message = item["msg"].removeprefix("Value error, ")
    return f"key '{key}': given {item['input']!r}: {message}"
