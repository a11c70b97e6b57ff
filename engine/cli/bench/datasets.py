"""Workloads for the benchmarks: conversations of one or more turns, drawn from a seed.

A turn is what the user adds and how many tokens should come back; its prompt is everything before
it, answers included, and what it adds. Added text is token ids, or words where a server takes no ids.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...config import option
from ...errors import ConfigError

FIRST_ID = 1000  # ids below are often special tokens

# Short, common words: one token each in most vocabularies when a space goes before.
WORDS = (
    "time year people way day man thing woman life child world school state family student group country"
    " problem hand part place case week company system program question work government number night point"
    " home water room mother area money story fact month lot right study book eye job word business issue"
    " side kind head house service friend father power hour game line end member law car city community"
    " name president team minute idea kid body information back parent face others level office door health"
    " person art war history party result change morning reason research girl guy moment air teacher force"
).split()

Message = dict[str, Any]
Content = str | list[int] | list[Message]  # text, token ids, or chat messages


@dataclass(frozen=True)
class Turn:
    """What is added to the conversation, and the number of tokens wanted back."""

    content: Content
    output_len: int


@dataclass(frozen=True)
class Conversation:
    """Turns that wait for each other; most workloads have one."""

    turns: tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """Which workload, and its sizes. Lengths in tokens (in words where the prompts are words)."""

    dataset_name: Literal["random", "shared-prefix", "multi-turn", "jsonl"] = option(
        "random", "workload to draw"
    )
    dataset_path: str | None = option(
        None, "file for jsonl: an object a line with prompt or messages, and output_len (default: none)"
    )
    num_prompts: int = option(64, "requests (random, jsonl) or conversations (multi-turn)")
    random_input_len: int = option(256, "prompt length of the random workload")
    random_output_len: int = option(128, "output length of the random workload")
    random_range_ratio: float = option(
        1.0, "random lengths go from this share of the full ones up to them; 1 fixes them"
    )
    num_groups: int = option(16, "shared-prefix: groups of prompts that begin alike")
    prompts_per_group: int = option(8, "shared-prefix: prompts in a group")
    prefix_len: int = option(512, "shared-prefix: length of what a group shares")
    question_len: int = option(32, "shared-prefix, multi-turn: length of what is a prompt's own")
    output_len: int = option(32, "shared-prefix, multi-turn: output length; jsonl: where a line has none")
    num_turns: int = option(4, "multi-turn: turns in a conversation")
    vocab_size: int | None = option(None, "token ids are drawn below this; default: the model's, else 30000")
    seed: int = option(1, "seed of everything that is drawn")

    def __post_init__(self) -> None:
        for name in (
            "num_prompts", "random_input_len", "random_output_len", "num_groups", "prompts_per_group",
            "prefix_len", "question_len", "output_len", "num_turns",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; accepted is an integer of at least 1")
        if not 0 < self.random_range_ratio <= 1:
            raise ConfigError(
                f"random_range_ratio is {self.random_range_ratio}; accepted is a number above 0 up to 1"
            )
        if self.vocab_size is not None and self.vocab_size < 2:
            raise ConfigError(f"vocab_size is {self.vocab_size}; accepted is an integer of at least 2")
        if (self.dataset_name == "jsonl") != (self.dataset_path is not None):
            raise ConfigError(
                f"dataset_name is {self.dataset_name} and dataset_path is {self.dataset_path}; a path goes"
                " with jsonl, and jsonl needs one"
            )


def draw_conversations(
    options: DatasetOptions, unit: Literal["ids", "words"], vocab_size: int
) -> list[Conversation]:
    """The workload's conversations; the same options give the same ones.

    Raises ConfigError for a jsonl file that cannot be read, naming the line.
    """
    source = _Source(np.random.default_rng(options.seed), unit, options.vocab_size or vocab_size)
    match options.dataset_name:
        case "random":
            return list(_random(options, source))
        case "shared-prefix":
            return _shared_prefix(options, source)
        case "multi-turn":
            turns = range(options.num_turns)
            return [
                Conversation(
                    tuple(Turn(source.draw(options.question_len), options.output_len) for _ in turns)
                )
                for _ in range(options.num_prompts)
            ]
        case "jsonl":
            return list(_jsonl(options))


@dataclass(frozen=True)
class _Source:
    """Draws prompts."""

    random: np.random.Generator
    unit: Literal["ids", "words"]
    vocab_size: int

    def draw(self, length: int) -> Content:
        """`length` ids, or words that each begin with a space so that prompts can be joined."""
        if self.unit == "ids":
            first = min(FIRST_ID, self.vocab_size // 2)
            ids: NDArray[np.int64] = self.random.integers(first, self.vocab_size, length)
            return [int(each) for each in ids]
        return "".join(f" {WORDS[each]}" for each in self.random.integers(0, len(WORDS), length))


def _random(options: DatasetOptions, source: _Source) -> Iterator[Conversation]:
    def length(full: int) -> int:
        return int(source.random.integers(max(1, int(full * options.random_range_ratio)), full + 1))

    for _ in range(options.num_prompts):
        prompt = source.draw(length(options.random_input_len))
        yield Conversation((Turn(prompt, length(options.random_output_len)),))


def _shared_prefix(options: DatasetOptions, source: _Source) -> list[Conversation]:
    """Prompts of all groups, shuffled: neighbours in a group are far apart in time, as users are."""
    prompts = []
    for _ in range(options.num_groups):
        prefix = source.draw(options.prefix_len)
        prompts += [join(prefix, source.draw(options.question_len)) for _ in range(options.prompts_per_group)]
    order = source.random.permutation(len(prompts))
    return [Conversation((Turn(prompts[each], options.output_len),)) for each in order]


def _jsonl(options: DatasetOptions) -> Iterator[Conversation]:
    path = Path(options.dataset_path or "")
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"dataset_path is {str(path)!r}, which cannot be read: {error.strerror}") from error
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    for number, line in filled[: options.num_prompts]:
        try:
            entry = json.loads(line)
            content = entry["messages"] if "messages" in entry else entry["prompt"]
            yield Conversation((Turn(content, int(entry.get("output_len", options.output_len))),))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"dataset_path is {str(path)!r}, whose line {number} is no object with prompt or messages"
            ) from error


def join(before: Content, added: Content) -> Content:
    """The prompt `before` with `added` behind it. Both are text, both token ids, or both messages."""
    return before + added  # type: ignore[operator]
