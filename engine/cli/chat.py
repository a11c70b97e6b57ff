"""Talk to a model in the terminal. The conversation is kept until it is reset.

/reset begins anew, /system TEXT sets the system message, /exit (or Ctrl-D) leaves; Ctrl-C stops the
answer and nothing else. When stdin is a pipe each line is one turn. Answers go to stdout, all else to
stderr.
"""

import argparse
import asyncio
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ..config import EngineConfig
from ..errors import RequestError
from ..request import SamplingParams
from .joints import Joints
from .options import add_options, read_options
from .sampling import add_sampling_options, sampling_params

_ONE_TEXT = (
    "n",
    "logprobs",
    "prompt_logprobs",
    "prompt_logprob_start",
    "logprob_token_ids",
)  # have no place in a conversation
_COMMANDS = "/reset begins anew, /system TEXT sets the system message, /exit leaves"


@dataclass
class Conversation:
    """What was said so far."""

    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as a chat template takes it."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return first + self.turns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command, of sampling and of the engine."""
    parser.add_argument("--system", help="system message to begin with")
    add_sampling_options(
        parser,
        {"max_new_tokens": "most tokens in an answer (default: as the context allows)"},
        exclude=_ONE_TEXT,
    )
    add_options(parser, EngineConfig, exclude=("skip_tokenizer_init",))


def run(arguments: argparse.Namespace, joints: Joints) -> int:
    """Chat until the input ends. Returns 1 when piped input had a turn that failed, 130 after Ctrl-C."""
    config = EngineConfig(**read_options(arguments, EngineConfig))
    given = {"max_new_tokens": None, **read_options(arguments, SamplingParams, exclude=_ONE_TEXT)}
    SamplingParams(**given)  # a wrong value is told before the model loads
    from ..async_llm import AsyncLLM

    llm = AsyncLLM(config, joints.find_backend(config))
    # One loop for all: between turns it stands still, and Ctrl-C cancels only the turn that runs.
    with asyncio.Runner() as runner:
        try:
            runner.run(llm.start())
            params = sampling_params(llm.info, given)
            _note(f"{llm.info.name}: {_COMMANDS}, Ctrl-C stops an answer", only_terminal=True)
            return _talk(runner, llm, params, Conversation(arguments.system))
        finally:
            runner.run(llm.close())


def _talk(runner: asyncio.Runner, llm: Any, params: SamplingParams, conversation: Conversation) -> int:
    failed = interrupted = False
    if sys.stdin.isatty():
        import readline  # noqa: F401  (gives input() its line editing and history)
    while True:
        try:
            line = _read_line()
            interrupted = False
        except KeyboardInterrupt:
            if interrupted:
                return 130
            interrupted = True
            _note("\nCtrl-C again, Ctrl-D or /exit leaves")
            continue
        if line is None or line.strip() == "/exit":
            return int(failed and not sys.stdin.isatty())
        if line.startswith("/"):
            _note(_obey(line.strip(), conversation))
        elif line.strip():
            try:
                runner.run(_answer(llm, params, conversation, line))
            except KeyboardInterrupt:
                _note("\n(stopped)")
            except RequestError as error:
                failed = True
                _note(f"radixmesh: error: {error}")


def _read_line() -> str | None:
    """The next line; None at the end of the input."""
    if sys.stdin.isatty():
        try:
            return input("> ")
        except EOFError:
            return None
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _obey(line: str, conversation: Conversation) -> str:
    """Carry out a line that begins with a slash; returns what to tell."""
    command, _, text = line.partition(" ")
    if command == "/reset":
        conversation.turns.clear()
        return "(a new conversation)"
    if command == "/system":
        conversation.system = text.strip() or None
        return "(the system message is set)" if conversation.system else "(no system message)"
    return f"{command} is not a command; {_COMMANDS}"


async def _answer(llm: Any, params: SamplingParams, conversation: Conversation, text: str) -> None:
    """Stream one answer. One that was stopped stays in the conversation as far as it came."""
    asked = {"role": "user", "content": text}
    prompt = llm.tokenizer.apply_chat_template([*conversation.messages, asked])
    ids = llm.tokenizer.encode(prompt, add_special_tokens=False)
    begin = first = time.perf_counter()
    output = None
    try:
        async with aclosing(llm.generate(ids, params)) as outputs:
            async for output in outputs:
                if len(output.token_ids) == len(output.new_token_ids):
                    first = time.perf_counter()
                print(output.text_delta, end="", flush=True)
    finally:
        if output is not None:
            conversation.turns += [asked, {"role": "assistant", "content": output.text}]
    print(flush=True)
    if output is not None:
        _note(_figures(output, begin, first))


def _figures(output: Any, begin: float, first: float) -> str:
    """How fast the answer came: decode speed after the first token, and what the cache saved."""
    number, seconds = len(output.token_ids), time.perf_counter() - first
    speed = f"{(number - 1) / seconds:.1f} tokens/s" if number > 1 and seconds > 0 else "1 token"
    return (
        f"({number} tokens, {speed}, first after {(first - begin) * 1000:.0f} ms;"
        f" {output.num_cached_tokens} of {output.num_prompt_tokens} prompt tokens were cached)"
    )


def _note(text: str, only_terminal: bool = False) -> None:
    """Tell something that is no answer: on stderr, dim in a terminal."""
    if sys.stderr.isatty():
        print(f"\x1b[2m{text}\x1b[0m", file=sys.stderr, flush=True)
    elif not only_terminal:
        print(text, file=sys.stderr, flush=True)
