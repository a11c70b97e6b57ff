"""Generate text for prompts from the arguments, a file, or stdin.

Text files and stdin hold one prompt a line. A .jsonl file holds an object a line: "prompt" (text or token
ids) or "messages", and optionally "sampling_params" and an "id" that comes back with the answer. The
answer to a single prompt is streamed.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from ..config import EngineConfig
from ..errors import ConfigError, RequestError
from ..grammar.given import FIELDS, only_one, spec_of
from ..outputs import RequestOutput
from ..request import SamplingParams
from ..runner import Backend
from .joints import Joints
from .options import add_options, read_options
from .sampling import add_sampling_options, sampling_params

_ENTRY_FIELDS = ("prompt", "messages", "sampling_params", "id")


@dataclass(frozen=True)
class Entry:
    """One prompt: text, token ids, or chat messages, with sampling parameters of its own."""

    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    id: Any = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command, of sampling and of the engine."""
    parser.usage = "radixmesh generate [options] [PROMPT ...]"
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="text to go on from")
    parser.add_argument("--input", metavar="FILE", help="file with prompts; .jsonl holds an object a line")
    parser.add_argument("--output", metavar="FILE", help="file for the answers (default: stdout)")
    parser.add_argument("--json-lines", action="store_true", help="write an object a line for each answer")
    parser.add_argument("--chat", action="store_true", help="put each prompt into the model's chat template")
    add_sampling_options(parser)
    add_options(parser, EngineConfig)


def run(arguments: argparse.Namespace, joints: Joints) -> int:
    """Generate and write. Returns 1 when an answer ended with an error."""
    config = EngineConfig(**read_options(arguments, EngineConfig))
    given = read_options(arguments, SamplingParams)
    entries = read_entries(arguments.prompts, arguments.input, arguments.chat)
    for entry in entries:
        SamplingParams(**{**given, **entry.sampling})  # a wrong value is told before the model loads
    backend = joints.find_backend(config)
    with _opened(arguments.output) as out:
        texts = given.get("n", 1) if len(entries) == 1 else 0
        if texts == 1 and not arguments.json_lines and not arguments.output and not entries[0].sampling:
            return asyncio.run(_stream(config, backend, entries[0], given))
        return _generate_all(config, backend, entries, given, arguments.json_lines, out)


def read_entries(prompts: Sequence[str], path: str | None, chat: bool) -> list[Entry]:
    """The prompts of the arguments, or of the file at `path`, or of stdin.

    With `chat`, text becomes a message of the user. Raises ConfigError when there is none or a line cannot
    be read, naming it.
    """
    if prompts and path is not None:
        raise ConfigError("prompts are given as arguments and by --input; accepted is one of both")
    if prompts:
        entries = [Entry(prompt=text) for text in prompts]
    elif path is not None:
        lines = _read(path).splitlines()
        entries = list(_parse_lines(lines, path) if path.endswith(".jsonl") else _text_lines(lines))
    elif sys.stdin.isatty():
        raise ConfigError("there is no prompt; give it as an argument, by --input FILE or on stdin")
    else:
        entries = list(_text_lines(sys.stdin.read().splitlines()))
    if not entries:
        raise ConfigError(f"{path or 'stdin'} has no prompt; accepted is one a line")
    return [_as_chat(entry) for entry in entries] if chat else entries


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"input is {path!r}, which cannot be read: {error}") from error


def _text_lines(lines: Iterable[str]) -> Iterable[Entry]:
    return (Entry(prompt=line) for line in lines if line.strip())


def _parse_lines(lines: Iterable[str], path: str) -> Iterable[Entry]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _parse(json.loads(line))
            except (ValueError, RequestError) as error:
                raise ConfigError(f"input is {path!r}, whose line {number} is wrong: {error}") from error


def _parse(value: Any) -> Entry:
    """One line's object as an Entry. Raises ValueError, or RequestError for a sampling parameter."""
    if not isinstance(value, dict) or ("prompt" in value) == ("messages" in value):
        raise ValueError("accepted is an object with either prompt or messages")
    for name in value:
        if name not in _ENTRY_FIELDS:
            raise ValueError(f"{name} is not known; accepted are {', '.join(_ENTRY_FIELDS)}")
    sampling = value.get("sampling_params", {})
    if not isinstance(sampling, dict):
        raise ValueError("sampling_params is no object")
    grammars = {name: spec_of(name, sampling.pop(name)) for name in FIELDS if name in sampling}
    known = [each.name for each in fields(SamplingParams) if each.name != "grammar"] + list(FIELDS)
    for name in sampling:
        if name not in known:
            raise ValueError(f"sampling_params has {name}; accepted are {', '.join(known)}")
    if "logit_bias" in sampling and isinstance(sampling["logit_bias"], dict):
        bias = sampling["logit_bias"]  # JSON's keys are strings
        sampling["logit_bias"] = {int(key): each for key, each in bias.items()}
    if grammars:
        sampling["grammar"] = only_one(grammars)
    SamplingParams(**sampling)
    return Entry(value.get("prompt"), value.get("messages"), sampling, value.get("id"))


def _as_chat(entry: Entry) -> Entry:
    if isinstance(entry.prompt, str):
        return Entry(None, [{"role": "user", "content": entry.prompt}], entry.sampling, entry.id)
    if entry.prompt is not None:
        raise ConfigError("chat is set and a prompt is token ids; accepted are text and messages")
    return entry


def _opened(path: str | None) -> Any:
    """The file for the answers, opened before the model loads; stdout without one."""
    if path is None:
        return nullcontext(sys.stdout)
    try:
        return open(path, "w")
    except OSError as error:
        raise ConfigError(f"output is {path!r}, which cannot be written: {error.strerror}") from error


async def _stream(config: EngineConfig, backend: Backend, entry: Entry, given: dict[str, Any]) -> int:
    """Write one answer to stdout as it comes."""
    from ..async_llm import AsyncLLM

    output = None
    async with AsyncLLM(config, backend) as llm:
        prompt = prompt_of(entry, llm.tokenizer)
        stream: Any = llm.generate(prompt, sampling_params(llm.info, given))
        async with aclosing(stream) as outputs:
            async for output in outputs:
                print(output.text_delta if llm.tokenizer else _ids(output), end="", flush=True)
    print(flush=True)
    return _status([output] if output is not None else [])


def _ids(output: RequestOutput) -> str:
    """Without a tokenizer the answer is its token ids."""
    return "".join(f"{each} " for each in output.new_token_ids)


def _generate_all(
    config: EngineConfig,
    backend: Backend,
    entries: Sequence[Entry],
    given: dict[str, Any],
    json_lines: bool,
    out: IO[str],
) -> int:
    """Generate for all prompts together and write the answers in their order."""
    from ..llm import LLM

    with LLM(config, backend) as llm:
        params = [sampling_params(llm.info, {**given, **entry.sampling}) for entry in entries]
        prompts = [prompt_of(entry, llm.tokenizer) for entry in entries]
        outputs = llm.generate(prompts, params, use_tqdm=sys.stderr.isatty())
        has_text = llm.tokenizer is not None
    sources = [entry for entry, each in zip(entries, params, strict=True) for _ in range(each.n)]
    for number, (entry, output) in enumerate(zip(sources, outputs, strict=True)):
        if json_lines:
            print(json.dumps(_as_json(entry, output)), file=out)
        else:
            if len(outputs) > 1:
                print(f"{'' if number == 0 else chr(10)}--- {_title(entry)}", file=out)
            print(output.text if has_text else " ".join(map(str, output.token_ids)), file=out)
    return _status(outputs)


def prompt_of(entry: Entry, tokenizer: Any) -> str | list[int]:
    """The entry as the engine takes it. Messages become ids, for a template writes its own special tokens.

    Raises RequestError when there are messages and no template.
    """
    if entry.messages is None:
        return entry.prompt or ""
    if tokenizer is None:
        raise RequestError("messages need a chat template, but skip_tokenizer_init is set", "messages")
    ids: list[int] = tokenizer.encode(tokenizer.apply_chat_template(entry.messages), add_special_tokens=False)
    return ids


def _title(entry: Entry) -> str:
    content = entry.prompt if entry.messages is None else entry.messages[-1].get("content")
    text = " ".join(str(content).split())
    return text if len(text) <= 70 else text[:67] + "..."


def _as_json(entry: Entry, output: RequestOutput) -> dict[str, Any]:
    asked = {"prompt": entry.prompt} if entry.messages is None else {"messages": entry.messages}
    named = {} if entry.id is None else {"id": entry.id}
    answer: dict[str, Any] = {
        "index": output.index,
        "text": output.text,
        "token_ids": output.token_ids,
        "finish_reason": output.finish_reason,
        "num_prompt_tokens": output.num_prompt_tokens,
        "num_cached_tokens": output.num_cached_tokens,
    }
    if output.logprobs is not None:
        answer["logprobs"] = [asdict(each) for each in output.logprobs]
    if output.prompt_logprobs is not None:
        answer["prompt_token_ids"] = output.prompt_token_ids
        answer["prompt_logprobs"] = [asdict(each) for each in output.prompt_logprobs]
    if output.error is not None:
        answer["error"] = output.error
    return {**named, **asked, **answer}


def _status(outputs: Iterable[RequestOutput]) -> int:
    """1 when an answer ended with an error, which is told on stderr."""
    errors = [each.error for each in outputs if each.error is not None]
    for error in errors:
        print(f"radixmesh: error: {error}", file=sys.stderr)
    return 1 if errors else 0
