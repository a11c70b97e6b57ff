"""Command line flags made from the fields of a dataclass, and read back into it.

A field `page_size: int | None = 16` becomes `--page-size PAGE_SIZE`; its help is the field's
`metadata["help"]`. Flags that were not given leave no trace in the namespace, so that the dataclass's
own defaults, or a model's, stay in force.
"""

import argparse
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NoReturn

from ..errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes flags in full only and raises ConfigError rather than exit."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")

    def refuse(self, extra: Sequence[str]) -> NoReturn:
        """Raise ConfigError for arguments that no flag took, with the flags that look alike."""
        flag = extra[0].split("=")[0]
        known = [each for each in self._option_string_actions if each.startswith("--")]
        near = difflib.get_close_matches(flag, known, n=3)
        hint = f"near are {', '.join(near)}" if near else f"see {self.prog} --help"
        raise ConfigError(f"{flag} is not an option of {self.prog}; {hint}")


def add_options(
    parser: argparse.ArgumentParser,
    cls: type,
    helps: Mapping[str, str] | None = None,
    exclude: Collection[str] = (),
    unset: str = "chosen at start",
) -> None:
    """Add a flag for each field of the dataclass `cls` to `parser`.

    One whose metadata says flag=False gets none. `helps` gives texts for fields without their own;
    `unset` says what a default of None means.
    """
    title = (cls.__doc__ or cls.__name__).split("\n\n")[0].split(". ")[0].rstrip(".")
    group = parser.add_argument_group(" ".join(title.split()).lower())
    hints = typing.get_type_hints(cls)
    for option in dataclasses.fields(cls):
        if option.name in exclude or not option.metadata.get("flag", True):
            continue
        text = (helps or {}).get(option.name) or option.metadata.get("help", "")
        group.add_argument(
            flag_of(option.name),
            *option.metadata.get("aliases", ()),
            dest=option.name,
            default=argparse.SUPPRESS,
            help=_help(text, _default(option), unset),
            **_argument(hints[option.name], _default(option)),
        )


def read_options(arguments: argparse.Namespace, cls: type, exclude: Collection[str] = ()) -> dict[str, Any]:
    """The fields of `cls` that the command line gave, ready for `cls(**options)`."""
    names = (option.name for option in dataclasses.fields(cls) if option.name not in exclude)
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def flag_of(name: str) -> str:
    """The flag of a field: `page_size` is `--page-size`."""
    return "--" + name.replace("_", "-")


def _default(option: "dataclasses.Field[Any]") -> Any:
    if option.default_factory is not dataclasses.MISSING:
        return option.default_factory()
    return option.default


def _argument(annotation: Any, default: Any) -> dict[str, Any]:
    """What `add_argument` needs for a type: int, float, str, bool, Literal, tuple, Mapping, or None too."""
    kind = _without_none(annotation)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is bool:
        # A flag that is on by default needs a way to turn it off: --no-...
        return {"action": argparse.BooleanOptionalAction if default is True else "store_true"}
    if origin is Literal:
        return {"choices": inner}
    if origin is tuple:
        return {"action": _Append, "type": inner[0]}
    if origin in (dict, Mapping):
        return {"type": _mapping(*inner), "metavar": "JSON"}
    if kind in (int, float, str):
        return {"type": kind}
    raise TypeError(f"no flag can be made of the type {annotation}")


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) not in (types.UnionType, typing.Union):
        return annotation
    kinds = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
    return kinds[0]


class _Append(argparse.Action):
    """Collect a flag's values into a tuple: the flag may be given several times."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), values))


def _mapping(key: type, value: type) -> Callable[[str], dict[Any, Any]]:
    """A reader of JSON objects such as {"15": -100}, for argparse."""

    def read(text: str) -> dict[Any, Any]:
        try:
            return {key(name): value(each) for name, each in json.loads(text).items()}
        except (ValueError, TypeError, AttributeError):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no JSON object of {key.__name__} to {value.__name__}"
            ) from None

    return read


def _help(text: str, default: Any, unset: str) -> str:
    if "default:" not in text and default is not False and default not in ((), {}):
        text += f" (default: {unset if default is None else default})"
    return text.strip().replace("%", "%%")
