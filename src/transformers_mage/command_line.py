"""Command lines of the scripts: a YAML file for a recipe, every value of which can be overridden."""

import dataclasses
import difflib
import functools
import sys
import traceback
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import HfArgumentParser


class Checked(Protocol):
    """A dataclass of arguments that knows which of its values would not do."""

    def check(self) -> None:
        """Raises `ValueError`, naming the flag, the value that came and what would do."""


Arguments = TypeVar("Arguments", bound=Checked)


def argument(default: Any, help: str, **kwargs) -> Any:
    return field(default=default, metadata={"help": help, **kwargs})


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows the defaults, and the description as it is written."""


def parse_arguments(arguments_class: type[Arguments], description: str, argv: list[str] | None = None) -> Arguments:
    """
    Reads a command line, with the values of `--config FILE.yaml` as the defaults.

    Args:
        arguments_class (`type`): a dataclass with a method `check`.
        description (`str`): what `--help` says about the script.
        argv (`list[str]`, *optional*): the command line's words; the process's by default.

    Raises:
        SystemExit: with a message, for values that do not exist or would not do.
    """
    parser = HfArgumentParser(
        arguments_class, description=description, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument("--config", help="YAML file with a recipe; flags on the command line override its values")
    words = sys.argv[1:] if argv is None else argv
    config_file = parser.parse_known_args(words)[0].config
    mapping_names = [f.name for f in dataclasses.fields(arguments_class) if not f.init]
    recipe = _read_recipe(config_file, arguments_class) if config_file else {}
    mappings = {name: dict(recipe.pop(name, None) or {}) for name in mapping_names}
    parser.set_defaults(**recipe)
    arguments, *_, rest = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    _override_mappings(mappings, rest, parser)
    for name, values in mappings.items():
        setattr(arguments, name, values)
    try:
        arguments.check()
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _read_recipe(path: str, arguments_class: type) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise SystemExit(f"The recipe {path} cannot be read: {error}") from error
    if not isinstance(recipe, dict):
        raise SystemExit(f"The recipe {path} must be a mapping from names to values, got a {type(recipe).__name__}.")
    names = [f.name for f in dataclasses.fields(arguments_class)]
    for name in recipe:
        if name not in names:
            raise SystemExit(f"The recipe {path} sets `{name}`, which does not exist.{_suggestion(name, names)}")
    return recipe


def _override_mappings(mappings: dict[str, dict[str, Any]], words: list[str], parser: HfArgumentParser):
    """Applies `--name.key value` and `--name.key=value`."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        flag = words.pop(0)
        name, _, key = flag.removeprefix("--").partition(".")
        if not flag.startswith("--") or name not in mappings or not key:
            flags = [option for action in parser._actions for option in action.option_strings]
            parser.error(f"unrecognized argument {flag}.{_suggestion(flag, flags)}")
        if not words:
            parser.error(f"{flag} needs a value")
        mappings[name][key] = yaml.safe_load(words.pop(0))


def _suggestion(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def as_flat_dict(arguments: Any) -> dict[str, Any]:
    """All values under the names of the command line, mappings as `name.key`."""
    flat = {}
    for name, value in dataclasses.asdict(arguments).items():
        group = value if isinstance(value, dict) else None
        flat.update({name: value} if group is None else {f"{name}.{key}": item for key, item in group.items()})
    return flat


def save_recipe(arguments: Any, path: str | Path):
    """Writes the resolved values as a YAML file that `--config` takes."""
    Path(path).write_text(yaml.safe_dump(dataclasses.asdict(arguments), sort_keys=False))


def reports_errors(main: Callable[..., None]) -> Callable[..., None]:
    """
    Ends a script with one line and a status where its user, the data or the disk is at fault: for the errors that this
    package and the script raise themselves, and for those of the operating system. What anything else raises is a
    bug, and keeps its traceback. Other processes are left in good order when it is done.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None):
        try:
            main(argv)
        except (OSError, SafetensorError) as error:
            raise SystemExit(f"The system refused: {error}") from error
        except (ValueError, RuntimeError) as error:
            if not _is_meant_for_users(error, main):
                raise
            status = getattr(error, "exit_status", None)
            if status is None:
                raise SystemExit(str(error)) from error
            print(error, file=sys.stderr)
            raise SystemExit(status) from error
        PartialState().destroy_process_group()

    return run


def _is_meant_for_users(error: Exception, main: Callable[..., None]) -> bool:
    """Whether the error was raised by this package or by the script itself, rather than somewhere below them."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1] == main.__module__ or frames[-1].partition(".")[0] == __name__.partition(".")[0]
