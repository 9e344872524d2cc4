"""A run written as one YAML file: the options of a command by their names, lists as YAML lists."""

from __future__ import annotations

import difflib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from cyclopts import Token

from ..errors import CompareError, HyperparameterError
from ..model import DEMO_MODEL
from ..storage.yaml_file import yaml_mapping
from .options import Contender, Place

if TYPE_CHECKING:
    from cyclopts import App, ArgumentCollection

NAME = "run.yaml"


def options_of_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """If the first positional argument is a .yaml file, take from it every option that the command line does not set.

    Its values are parsed like those of the command line, and errors name the file and the key. Raises
    HyperparameterError for a file that cannot be read, or a key that is no option.
    """
    positional = next(argument for argument in arguments if argument.index == 0)
    if not positional.tokens or Path(positional.tokens[0].value).suffix not in (".yaml", ".yml"):
        return
    path = positional.tokens.pop().value
    by_name = {name[2:]: each for each in arguments if each.show for name in each.names if name.startswith("--")}
    for key, value in yaml_mapping(path, "methods: [memit]").items():
        argument = by_name.get(name := str(key).replace("_", "-"))
        if argument is None:
            near = difflib.get_close_matches(name, by_name, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(by_name)}"
            raise HyperparameterError(f"{path}: unknown key {str(key)!r}{hint}")
        if value is None or argument.tokens:
            continue
        words = value if isinstance(value, list) else [value]
        takes_many = argument.token_count()[1]
        if not words or (len(words) > 1 and not takes_many) or any(isinstance(word, dict | list) for word in words):
            raise HyperparameterError(f"{path}: {key} must be {'one or several words' if takes_many else 'one word'}")
        for index, word in enumerate(words):
            argument.append(Token(keyword=f"{key} in {path}", value=str(word), index=index))


def write_run_file(path: Path, model: str, *options: Any) -> None:
    """The file that repeats a run: `model`, and each field of the dataclasses `options` that is not its default.

    Paths are absolute, so that it can be run from anywhere.
    """
    values = {"model": _plain(model)}
    for group in options:
        for field in fields(group):
            value = getattr(group, field.name)
            if value != field.default:
                values[field.name] = _plain(value)
    from ..storage.files import write_text

    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    write_text(path, f"# To repeat this run: alphaedit compare {NAME}\n{text}", CompareError)


def _plain(value: Any) -> Any:
    """In YAML's types."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Contender):
        file, colon, function = value.partition(":")
        return f"{Path(file).absolute()}{colon}{function}" if colon and Path(file).is_file() else str(value)
    if isinstance(value, Place) and value != DEMO_MODEL and not Path(value).exists():
        file, colon, form = value.rpartition(":")  # of a data set
        return f"{Path(file).absolute()}{colon}{form}" if colon and Path(file).is_file() else str(value)
    if isinstance(value, Place):
        return str(Path(value).absolute() if value != DEMO_MODEL else value)
    return str(value.absolute()) if isinstance(value, Path) else value
