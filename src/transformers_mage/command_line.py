"""Command lines of the scripts: a YAML file for a recipe, every value of which can be overridden."""

import dataclasses
import difflib
import functools
import math
import operator
import sys
import traceback
import types
import typing
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import yaml
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import HfArgumentParser

from .files import write_text
from .processes import end_with_launcher
from .progress import library_bars_where_watched

# What shells give for Ctrl-C.
EXIT_CTRL_C = 130


class Checked(Protocol):
    """A dataclass of arguments that knows which of its values would not do."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def check(self) -> None:
        """Raises `ValueError`, naming the flag, the value that came and what would do."""


Arguments = TypeVar("Arguments", bound=Checked)


def argument(default: Any, help: str, **kwargs: Any) -> Any:
    # argparse formats help with %, which in ours is a percentage.
    metadata = {"help": help.replace("%", "%%"), **kwargs}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def group(help: str, known: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """
    Metadata of a group of values: a mapping in the YAML file, `--name.key value` on the command line. Its field is a
    dictionary with `init=False`.

    Args:
        help (`str`): what it is.
        known (`Callable`): gives the keys that there are, with their defaults.
    """
    return {"help": help, "known": known}


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows the defaults, and descriptions as they are written."""


def parse_arguments(arguments_class: type[Arguments], description: str, argv: list[str] | None = None) -> Arguments:
    """
    Reads a command line, with the values of `--config FILE.yaml` as the defaults. All values are checked before
    anything is loaded.

    Args:
        arguments_class (`type`): a dataclass with a method `check`. Its `REPLACES`, if any, names flags that on the
            command line take the place of others in a recipe.
        description (`str`): what `--help` says about the script.
        argv (`list[str]`, *optional*): the command line's words; the process's by default.

    Raises:
        SystemExit: with a message, for values that do not exist or would not do.
    """
    hints = typing.get_type_hints(arguments_class)
    words, unset = _split_off_nulls(list(sys.argv[1:] if argv is None else argv), hints)
    groups = {f.name: f.metadata for f in dataclasses.fields(arguments_class) if not f.init}
    parser = _create_parser(arguments_class, description, groups if {"-h", "--help"} & set(words) else {})
    config_file = parser.parse_known_args(words)[0].config
    recipe = _read_recipe(config_file, arguments_class, hints) if config_file else {}
    recipe = _without_replaced(recipe, words, getattr(arguments_class, "REPLACES", {}))
    mappings = {name: dict(recipe.pop(name, None) or {}) for name in groups}
    parser.set_defaults(**recipe | dict.fromkeys(unset))
    arguments, *_, rest = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    _override_mappings(mappings, rest, parser)
    for name, values in mappings.items():
        setattr(arguments, name, values)
    try:
        for name, values in mappings.items():
            _check_keys(name, values, groups[name]["known"]())
        _check_finite(arguments)
        arguments.check()
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _without_replaced(
    recipe: dict[str, Any], words: Sequence[str], replaces: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The recipe without the values in whose place a flag on the command line comes with its own."""
    said = {word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")}
    replaced = {other for name in said for other in replaces.get(name, ())}
    return {name: value for name, value in recipe.items() if name not in replaced}


def _create_parser(
    arguments_class: Any, description: str, described_groups: Mapping[str, Mapping[str, Any]]
) -> HfArgumentParser:
    parser = HfArgumentParser(
        arguments_class,
        # argparse would show all flags before each message.
        usage="%(prog)s [--config FILE.yaml] [--flag value ...]; --help lists the flags",
        description=description,
        epilog=_describe_groups(described_groups),
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--config", help="YAML file with a recipe; flags on the command line override its values")
    return parser


def _describe_groups(groups: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    for name, described in groups.items():
        keys = [f"  --{name}.{key} (default: {default})" for key, default in described["known"]().items()]
        parts.append("\n".join([f"{name}: {described['help']}", *keys]))
    return "\n\n".join(parts)


def _read_recipe(path: str, arguments_class: type[Checked], hints: Mapping[str, Any]) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SystemExit(f"The recipe {path} cannot be read: {error}") from error
    if not isinstance(recipe, dict):
        raise SystemExit(f"The recipe {path} must be a mapping from names to values, got a {type(recipe).__name__}.")
    fields = {f.name: f for f in dataclasses.fields(arguments_class)}
    for name, value in recipe.items():
        if name not in fields:
            suggestion = _suggestion(str(name), list(fields))
            raise SystemExit(f"The recipe {path} sets `{name}`, which does not exist.{suggestion}")
        if not _fits(value, hints[name]):
            wanted = getattr(hints[name], "__name__", str(hints[name]))
            raise SystemExit(f"The recipe {path} sets `{name}` to {value!r}; it must be {wanted}.")
        choices = fields[name].metadata.get("choices")
        if choices and value is not None and value not in choices:
            raise SystemExit(f"The recipe {path} sets `{name}` to {value!r}; it must be among {', '.join(choices)}.")
    return recipe


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a YAML file is of a field's type, or a text that argparse can make it of, as 1e-3 is."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(hint))
    if hint is dict:
        return value is None or isinstance(value, dict)
    if typing.get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if hint in (int, float):
        if isinstance(value, str):
            try:
                return hint(value) is not None
            except ValueError:
                return False
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, hint)


def _split_off_nulls(words: list[str], hints: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Takes `--name null` out, which unsets what a recipe says, where a field can be without a value."""
    optional = [name for name, hint in hints.items() if type(None) in typing.get_args(hint)]
    kept, unset, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        flag, _, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else ""
        if name in optional and value == "null":
            unset.append(name)
        elif name in optional and rest[:1] == ["null"]:
            unset.append(name)
            rest.pop(0)
        else:
            kept.append(word)
    return kept, unset


def _override_mappings(mappings: dict[str, dict[str, Any]], words: list[str], parser: HfArgumentParser):
    """Applies `--name.key value` and `--name.key=value`."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        flag = words.pop(0)
        name, _, key = flag.removeprefix("--").partition(".")
        if not flag.startswith("--") or name not in mappings or not key:
            flags = [option for action in parser._actions for option in action.option_strings]
            parser.error(f"unrecognized argument {flag}.{_suggestion(flag, flags)}")
        if not words or words[0].startswith("--"):
            parser.error(f"{flag} needs a value")
        word = words.pop(0)
        try:
            mappings[name][key] = yaml.safe_load(word)
        except yaml.YAMLError as error:
            parser.error(f"{flag} {word} is not a YAML value: {error}")


def _check_keys(name: str, values: Mapping[str, Any], known: Mapping[str, Any]):
    for key in values:
        if key not in known:
            raise ValueError(f"`--{name}.{key}` does not exist.{_suggestion(str(key), list(known), f'--{name}.')}")


def _check_finite(arguments: Checked):
    for name, value in as_flat_dict(arguments).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"`--{name}` must be a finite number, got {value}.")


def check_numbers(arguments: Any, names: str, at_least: float | None = None, **bounds: float):
    """
    Holds numbers, and those of lists, against bounds; None is left alone.

    Args:
        names (`str`): of the fields, with spaces between them.
        at_least (`float`, *optional*): the least that would do.
        bounds (`float`): `more_than`, which must be exceeded; `at_most`, the most that would do; `less_than`.

    Raises:
        ValueError: naming the flag and the value that came.
    """
    tests: list[tuple[str, float | None, Callable[[float, float], bool]]] = [
        ("at least", at_least, operator.ge),
        ("more than", bounds.get("more_than"), operator.gt),
        ("at most", bounds.get("at_most"), operator.le),
        ("less than", bounds.get("less_than"), operator.lt),
    ]
    wanted = [(words, bound, holds) for words, bound, holds in tests if bound is not None]
    said = " and ".join(f"{words} {bound}" for words, bound, _ in wanted)
    for name in names.split():
        given = getattr(arguments, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not all(holds(value, bound) for _, bound, holds in wanted):
                raise ValueError(f"`--{name}` must be {said}, got {value}.")


def _suggestion(name: str, names: list[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {prefix}{close[0]}?" if close else ""


def as_flat_dict(arguments: Any) -> dict[str, Any]:
    """All values under the names of the command line, mappings as `name.key`."""
    flat = {}
    for name, value in dataclasses.asdict(arguments).items():
        group = value if isinstance(value, dict) else None
        flat.update({name: value} if group is None else {f"{name}.{key}": item for key, item in group.items()})
    return flat


def save_recipe(arguments: Any, path: str | Path):
    """Writes the resolved values as a YAML file that `--config` takes."""
    write_text(path, yaml.safe_dump(dataclasses.asdict(arguments), sort_keys=False))


def reports_errors(main: Callable[..., None]) -> Callable[..., None]:
    """
    Ends a script with one line and a status where its user, the data or the disk is at fault: for the errors that this
    package and the script raise themselves, and for those of the operating system. What anything else raises is a
    bug, and keeps its traceback. The script does not outlive what launched it, leaves other processes in good order
    when it is done, and keeps the progress bars of libraries out of files.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None):
        end_with_launcher()
        try:
            with library_bars_where_watched():
                main(argv)
        except (OSError, SafetensorError) as error:
            is_ours = getattr(error, "errno", None) is None and _is_meant_for_users(error, main)
            raise SystemExit(str(error) if is_ours else f"The system refused: {error}") from error
        except (ImportError, ValueError, RuntimeError) as error:
            if _is_of_lost_process(error):
                raise SystemExit(
                    "Another process of this run has ended, and this one cannot continue alone. The checkpoints are "
                    "untouched."
                ) from error
            if _is_of_lost_worker(error):
                said = str(error).strip().splitlines()[0]
                raise SystemExit(f"{said} If memory ran out, try fewer `--dataloader_num_workers`.") from error
            if not _is_meant_for_users(error, main):
                raise
            status = getattr(error, "exit_status", None)
            if status is None:
                raise SystemExit(str(error)) from error
            if str(error):
                print(error, file=sys.stderr)
            raise SystemExit(status) from error
        except KeyboardInterrupt as error:
            print("Interrupted.", file=sys.stderr)
            raise SystemExit(EXIT_CTRL_C) from error
        PartialState().destroy_process_group()

    return run


def _is_of_lost_process(error: Exception) -> bool:
    """Whether processes could not talk to each other: gloo has no type of error for it."""
    return any(f"Connection {what} by peer" in str(error) for what in ("closed", "reset"))


def _is_of_lost_worker(error: Exception) -> bool:
    """Whether a loading process was killed, which PyTorch says wherever the main thread is at that moment."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def _is_meant_for_users(error: Exception, main: Callable[..., None]) -> bool:
    """Whether the error was raised by this package or by the script itself, rather than somewhere below them."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1] == main.__module__ or frames[-1].partition(".")[0] == __name__.partition(".")[0]
