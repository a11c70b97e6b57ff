"""Constrained outputs against free ones: same prompts, same tokens, same machine, same run.

    python benchmarks/structured.py [--libraries llguidance ...] [--requests 1 8] [--rounds 3] [--json FILE]

    masks    on the fake runner, with the model's vocabulary: what a grammar costs the host a token, alone
    model    on the model: tokens per second free, constrained, and with forced runs in one chunk

Kinds are a JSON schema, a regular expression and an EBNF grammar, each with every library that can do it. All
decode greedily. A free request has as many tokens as the constrained one of the same prompt had, so that
both compute the same number of tokens. Times are medians over rounds in which the contenders take turns.

    ratio    tokens per second, constrained over free, with every token sampled (no jump-forward)
    mask     milliseconds of the host that a step's masks took
    hidden   the share of it that made no step longer: steps last as long as free ones, but for the rest
    jump     the same with forced runs in one chunk, over free; and the share of steps that it saved
"""

import argparse
import json
import statistics
import time
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from radixmesh.backends.fake.runner import FakeRunner
from radixmesh.backends.registry import backend_for
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.errors import GrammarError
from radixmesh.engine.grammar.constrain import constrain
from radixmesh.engine.grammar.grammar import Grammar, GrammarSpec
from radixmesh.engine.grammar.service import GrammarService
from radixmesh.engine.request import Request, SamplingParams
from radixmesh.engine.runner import ModelInfo, ModelRunner, RunnerCapacity
from radixmesh.engine.startup import calm_garbage_collection
from radixmesh.engine.stats import EngineStats
from radixmesh.engine.text.tokenizer import Tokenizer, tokenizer_of

PROMPTS = (
    "Invent a person who repairs clocks, as JSON.",
    "Describe the city of Lisbon as a record.",
    "Write an order for two coffees and a sandwich.",
    "Tell me about a book that you like, in short.",
    "Who wins the game, and by how much?",
    "List the planets by size.",
    "Make a plan for a day in the mountains.",
    "Give me the weather in Oslo for three days.",
)
NAME = {"type": "string", "pattern": "^[a-zA-Z][a-zA-Z ]{2,29}$"}
SCHEMA = {  # of what all libraries know
    "type": "object",
    "properties": {
        "name": NAME,
        "kind": {"enum": ["person", "place", "thing"]},
        "year_of_origin": {"type": "string", "pattern": "^[0-9]{4}$"},
        "characteristics": {"type": "array", "items": NAME, "minItems": 2, "maxItems": 3},
        "measurements": {
            "type": "object",
            "properties": {"size": {"enum": ["small", "large"]}, "is_estimated": {"type": "boolean"}},
            "required": ["size", "is_estimated"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "kind", "year_of_origin", "characteristics", "measurements"],
    "additionalProperties": False,
}  # fmt: skip
REGEX = (
    r"Name: [A-Z][a-z]{2,12} [A-Z][a-z]{2,12}\nDate: 20[0-9]{2}-[01][0-9]-[0-3][0-9]\n"
    r"(Note: [a-z ,]{10,60}\.\n){2,3}"
)
EBNF = r"""
root ::= "(" item (", " item){4,9} ")"
item ::= name " = " value
name ::= [a-z]{2,8}
value ::= [1-9] [0-9]{0,3} | "\"" [a-z ]{3,20} "\"" | "(" name (" " name){1,3} ")"
"""
SPECS = {
    "schema": GrammarSpec("json_schema", json.dumps(SCHEMA)),
    "regex": GrammarSpec("regex", REGEX),
    "ebnf": GrammarSpec("ebnf", EBNF),
}
MAX_TOKENS = 120


@dataclass(frozen=True)
class Outcome:
    """One run of all prompts."""

    seconds: float
    tokens: tuple[tuple[int, ...], ...]  # of each prompt
    stats: EngineStats

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return sum(map(len, self.tokens)) / self.seconds


@dataclass(frozen=True)
class Row:
    """What one library does with one kind on the model."""

    requests: int
    library: str
    kind: str
    tokens: int
    free: float  # tokens a second, as the next two
    constrained: float
    jumping: float
    mask_ms: float  # a step
    hidden: float
    steps: int
    steps_saved: int
    valid: int  # outputs that ended before MAX_TOKENS


@dataclass(frozen=True)
class Bench:
    """A runner and prompts for it, which every run gets anew."""

    config: EngineConfig
    info: ModelInfo
    runner: ModelRunner
    prompts: Sequence[Sequence[int]]

    def run(
        self, grammar: Grammar | None, lengths: Sequence[int] | None = None, jump: bool = False
    ) -> Outcome:
        """All prompts at once, each up to its length, without the end of a text if they are free."""
        config = replace(self.config, disable_jump_forward=not jump)
        engine = Engine(config, self.info, self.runner)
        for index, prompt in enumerate(self.prompts):
            count = MAX_TOKENS if lengths is None else lengths[index]
            params = SamplingParams(temperature=0, max_new_tokens=count, ignore_eos=grammar is None)
            request = Request(
                str(index), np.asarray(prompt, np.int32), params, eos_token_ids=self.info.eos_token_ids
            )
            if grammar is not None:
                constrain(request, grammar)
            engine.add_request(request)
        tokens: list[list[int]] = [[] for _ in self.prompts]
        started = time.perf_counter()
        while engine.has_work:
            for output in engine.step():
                assert output.error is None, output.error
                tokens[int(output.request_id)] += output.token_ids
        return Outcome(time.perf_counter() - started, tuple(map(tuple, tokens)), engine.stats())


def main() -> None:
    options = parse()
    calm_garbage_collection()
    config = EngineConfig(
        model_path=options.model_path,
        backend=options.backend,
        disable_radix_cache=True,
        constrained_json_disable_any_whitespace=options.compact_json,
    )
    backend = backend_for(config)
    info = backend.describe(config)
    tokenizer = tokenizer_of(config, info)
    assert tokenizer is not None
    grammars = compile_all(options.libraries, options.kinds, config, info, tokenizer)
    asked = [PROMPTS[index % len(PROMPTS)] for index in range(max(options.requests))]
    prompts = [
        tokenizer.encode(f"<|im_start|>user\n{each}<|im_end|>\n<|im_start|>assistant\n") for each in asked
    ]
    results: dict[str, object] = {}
    if "masks" in options.parts:
        results["masks"] = measure_masks(grammars, config, info, prompts)
    if "model" in options.parts:
        runner = backend.create_runner(config, info)
        runner.warmup()
        rows: list[Row] = []
        for count in options.requests:
            bench = Bench(config, info, runner, prompts[:count])
            rows += measure_model(bench, grammars, options.rounds)
        results["model"] = [asdict(row) for row in rows]
        runner.close()
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


def parse() -> argparse.Namespace:
    known = [
        name for name in typing.get_args(EngineConfig.__annotations__["grammar_backend"]) if name != "auto"
    ]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model-path", default="smollm2-135m-instruct", help="an embedded model or a folder")
    parser.add_argument("--backend", default="auto", choices=["auto", "jax", "torch"])
    parser.add_argument("--libraries", nargs="+", default=known, choices=known)
    parser.add_argument("--kinds", nargs="+", default=[*SPECS], choices=[*SPECS])
    parser.add_argument("--parts", nargs="+", default=["masks", "model"], choices=["masks", "model"])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8], help="prompts, all at once")
    parser.add_argument("--compact-json", action="store_true", help="allow no white space within JSON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="file for the figures")
    return parser.parse_args()


def compile_all(
    libraries: Sequence[str],
    kinds: Sequence[str],
    config: EngineConfig,
    info: ModelInfo,
    tokenizer: Tokenizer,
) -> dict[tuple[str, str], Grammar]:
    """Grammars by library and kind; what a library refuses is said and left out."""
    grammars = {}
    for library in libraries:
        service = GrammarService(replace(config, grammar_backend=library), info, lambda: tokenizer)
        for kind in kinds:
            started = time.perf_counter()
            try:
                grammars[library, kind] = service.wait(service.compile(SPECS[kind]))
            except GrammarError as error:
                print(f"{library} {kind}: {error}")
                continue
            print(f"{library} {kind}: ready after {1e3 * (time.perf_counter() - started):.0f} ms", flush=True)
        service.close()
    return grammars


def measure_masks(
    grammars: dict[tuple[str, str], Grammar], config: EngineConfig, info: ModelInfo,
    prompts: Sequence[Sequence[int]],
) -> list[dict[str, object]]:  # fmt: skip
    """The fake runner takes the first token that is allowed, from where a hash says."""
    capacity = RunnerCapacity(4096, 16, len(prompts), 512, 8192)
    rows = []
    print(f"\n{'':22} tokens    mask us/token")
    for (library, kind), grammar in grammars.items():
        runner = FakeRunner(capacity, info.vocab_size)
        outcome = Bench(config, info, runner, prompts).run(grammar)
        stats = outcome.stats
        each = 1e6 * stats.mask_seconds / stats.constrained_tokens
        rows.append({"library": library, "kind": kind, "tokens": stats.constrained_tokens, "mask_us": each})
        print(f"{library:14} {kind:7} {stats.constrained_tokens:6} {each:16.1f}", flush=True)
    return rows


def measure_model(bench: Bench, grammars: dict[tuple[str, str], Grammar], rounds: int) -> list[Row]:
    titles = "tokens  free tok/s  constrained ratio   mask ms hidden   jump ratio steps  saved ended"
    print(f"\nat once: {len(bench.prompts):<13} {titles}")
    rows = []
    for (library, kind), grammar in grammars.items():
        first = bench.run(grammar)
        lengths = [len(each) for each in first.tokens]
        taken: dict[str, list[Outcome]] = {"free": [], "constrained": [], "jumping": []}
        for _ in range(rounds):
            taken["free"].append(bench.run(None, lengths))
            taken["constrained"].append(bench.run(grammar))
            taken["jumping"].append(bench.run(grammar, jump=True))
            assert taken["constrained"][-1].tokens == taken["jumping"][-1].tokens == first.tokens
        row = _row(len(lengths), library, kind, taken)
        rows.append(row)
        print(
            f"{library:14} {kind:7} {row.tokens:6} {row.free:11.1f} {row.constrained:12.1f}"
            f" {row.constrained / row.free:5.2f} {row.mask_ms:9.2f} {row.hidden:6.0%} {row.jumping:6.1f}"
            f" {row.jumping / row.free:5.2f} {row.steps:5} {row.steps_saved:6} {row.valid:3}/{len(lengths)}",
            flush=True,
        )
    return rows


def _row(requests: int, library: str, kind: str, taken: dict[str, list[Outcome]]) -> Row:
    free, constrained, jumping = (
        statistics.median(each.rate for each in taken[name]) for name in ("free", "constrained", "jumping")
    )
    last, jumped = taken["constrained"][-1], taken["jumping"][-1]
    tokens = sum(map(len, last.tokens))
    masks = statistics.median(each.stats.mask_seconds for each in taken["constrained"])
    longer = max(0.0, tokens / constrained - tokens / free)
    return Row(
        requests=requests,
        library=library,
        kind=kind,
        tokens=tokens,
        free=free,
        constrained=constrained,
        jumping=jumping,
        mask_ms=1e3 * masks / last.stats.steps,
        hidden=max(0.0, 1 - longer / masks),
        steps=last.stats.steps,
        steps_saved=last.stats.steps - jumped.stats.steps,
        valid=sum(len(each) < MAX_TOKENS for each in last.tokens),
    )


if __name__ == "__main__":
    main()
