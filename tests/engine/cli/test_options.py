"""Flags made from dataclasses: every field of every dataclass goes to the command line and back."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from radixmesh.engine.cli.bench.datasets import DatasetOptions
from radixmesh.engine.cli.bench.latency import LatencyBenchOptions
from radixmesh.engine.cli.bench.offline import OfflineBenchOptions
from radixmesh.engine.cli.bench.serve import ServeBenchOptions
from radixmesh.engine.cli.options import Parser, add_options, flag_of, read_options
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ConfigError
from radixmesh.engine.request import SamplingParams
from radixmesh.engine.server.options import ServerOptions

CLASSES = [
    EngineConfig, SamplingParams, ServerOptions, DatasetOptions, ServeBenchOptions, OfflineBenchOptions,
    LatencyBenchOptions,
]  # fmt: skip
FIELDS = [
    (cls, option)
    for cls in CLASSES
    for option in dataclasses.fields(cls)
    if option.metadata.get("flag", True)
]
# Options whose values are not free: what the dataclass itself accepts.
VALUES: dict[str, Any] = {
    "tp_size": 1, "dp_size": 1, "mem_fraction_static": 0.25, "top_p": 0.25, "min_p": 0.25,
    "random_range_ratio": 0.25, "base_url": "http://host:1",
}  # fmt: skip


def other_value(name: str, annotation: Any, default: Any) -> Any:
    """A value of the field's type that is not its default."""
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    kind = next(each for each in kinds if each is not types.NoneType)
    if name in VALUES:
        return VALUES[name]
    if typing.get_origin(kind) is Literal:
        return next(each for each in typing.get_args(kind) if each != default)
    if typing.get_origin(kind) is tuple:
        return (3, 4) if typing.get_args(kind)[0] is int else ("a b", "--c")
    if typing.get_origin(kind) is Mapping:
        return {15: -1.5, 7: 2.0}
    return {bool: default is not True, int: 7, float: 0.5, str: "some text"}[kind]


def as_arguments(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag_of(name)] if value else [flag_of(name).replace("--", "--no-", 1)]
    if isinstance(value, tuple):
        return [f"{flag_of(name)}={each}" for each in value]
    if isinstance(value, dict):
        inner = ", ".join(f'"{key}": {each}' for key, each in value.items())
        return [flag_of(name), "{" + inner + "}"]
    return [flag_of(name), str(value)]


def parse(cls: type, arguments: list[str]) -> dict[str, Any]:
    parser = Parser(prog="radixmesh test")
    add_options(parser, cls)
    namespace, extra = parser.parse_known_args(arguments)
    if extra:
        parser.refuse(extra)
    return read_options(namespace, cls)


@pytest.mark.parametrize("cls, option", FIELDS, ids=lambda each: getattr(each, "__name__", None) or each.name)
def test_every_field_goes_to_a_flag_and_back(cls: type, option: Any) -> None:
    annotation = typing.get_type_hints(cls)[option.name]
    value = other_value(option.name, annotation, option.default)
    assert parse(cls, as_arguments(option.name, value)) == {option.name: value}


@pytest.mark.parametrize("cls", CLASSES)
def test_nothing_given_leaves_every_default(cls: type) -> None:
    assert parse(cls, []) == {}


def test_a_whole_config_round_trips() -> None:
    arguments = "--model-path m --page-size 32 --disable-radix-cache --schedule-policy lpm".split()
    assert EngineConfig(**parse(EngineConfig, arguments)) == EngineConfig(
        model_path="m", page_size=32, disable_radix_cache=True, schedule_policy="lpm"
    )


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--chunked-prefil-size", "3"], "--chunked-prefil-size is not an option of radixmesh test; near are"
         " --chunked-prefill-size"),
        (["--model", "m"], "--model is not an option"),  # no abbreviation, though it is one
        (["--page-size", "many"], "--page-size: invalid int value: 'many'"),
        (["--schedule-policy", "best"], "invalid choice: 'best'"),
        (["--page-size"], "--page-size: expected one argument"),
        (["stray"], "stray is not an option"),
    ],
)  # fmt: skip
def test_wrong_flags_are_refused_in_one_sentence(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(EngineConfig, arguments)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_logit_bias_must_be_an_object_of_numbers() -> None:
    for text in ("[1]", "{", '{"a": 1}', "3"):
        with pytest.raises(ConfigError, match="logit-bias"):
            parse(SamplingParams, ["--logit-bias", text])


@pytest.mark.parametrize("cls", CLASSES)
def test_help_tells_each_default(cls: type) -> None:
    parser = Parser(prog="radixmesh test", formatter_class=argparse.HelpFormatter)
    add_options(parser, cls, helps={"max_new_tokens": "50% of all"})
    text = " ".join(parser.format_help().split())
    for option in dataclasses.fields(cls):
        assert (flag_of(option.name) in text) == option.metadata.get("flag", True)
        if isinstance(option.default, int) and not isinstance(option.default, bool):
            assert f"(default: {option.default})" in text
