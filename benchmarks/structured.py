"""Constrained outputs against free ones: same prompts, same tokens, same machine, same run.

    python benchmarks/structured.py [--libraries llguidance ...] [--requests 1 8] [--rounds 3] [--json FILE]

    masks    on the fake runner, with the model's vocabulary: what a grammar costs the host a token, alone
    model    on the model: tokens per second free, constrained, and with forced runs in one chunk
    arrival  on a server's engine: a stream's longest pause as the first grammar comes, or a free request

Kinds are a JSON schema, a regular expression and an EBNF grammar, each with every library that can do it. All
decode greedily. A free request has as many tokens as the constrained one of the same prompt had, so that
both compute the same number of tokens. Contenders take turns; rates and ratios are medians over rounds.

    ratio    tokens per second, constrained over free, with every token sampled (no jump-forward)
    forward  milliseconds until the device had the logits of a step, from when it could begin
    mask     milliseconds of the host that the step's masks took
    hidden   the share of them that passed before the device had its logits
    waits    milliseconds that the device, its logits done, waited for masks
    jump     the ratio with forced runs in one chunk; and how many steps it saved of how many
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
import typing
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from radixmesh.backends.fake.runner import FakeRunner
from radixmesh.backends.registry import backend_for
from radixmesh.engine.async_llm import AsyncLLM
from radixmesh.engine.batch import U32, ScheduleBatch, StepTokens
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.errors import GrammarError
from radixmesh.engine.grammar.constrain import constrain
from radixmesh.engine.grammar.grammar import Grammar, GrammarSpec
from radixmesh.engine.grammar.service import GrammarService
from radixmesh.engine.request import Request, SamplingParams
from radixmesh.engine.runner import ModelInfo, ModelRunner, PendingTokens, RunnerCapacity
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
PARTS = ("masks", "model", "arrival")
MAX_TOKENS = 120
TITLES = (
    "tokens  free tok/s  constrained ratio  forward ms  mask hidden waits   jump ratio steps  saved ended"
)


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
    ratio: float  # constrained over free
    jump_ratio: float
    halves: "Halves"
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
        self,
        grammar: Grammar | None,
        lengths: Sequence[int] | None = None,
        jump: bool = False,
        watch: "Watch | None" = None,
    ) -> Outcome:
        """All prompts at once, each up to its length, without the end of a text if they are free."""
        config = replace(self.config, disable_jump_forward=not jump)
        engine = Engine(config, self.info, watch or self.runner)
        for index, prompt in enumerate(self.prompts):
            count = MAX_TOKENS if lengths is None else lengths[index]
            params = SamplingParams(temperature=0, max_new_tokens=count, ignore_eos=grammar is None)
            request = Request(
                str(index), np.asarray(prompt, np.int32), params, eos_token_ids=self.info.eos_token_ids
            )
            if grammar is not None:
                constrain(request, grammar)
            engine.add_request(request)
        if watch is not None:
            watch.masks = lambda: engine.schedulers[0].counters.mask_seconds
        tokens: list[list[int]] = [[] for _ in self.prompts]
        started = time.perf_counter()
        while engine.has_work:
            for output in engine.step():
                assert output.error is None, output.error
                tokens[int(output.request_id)] += output.token_ids
        return Outcome(time.perf_counter() - started, tuple(map(tuple, tokens)), engine.stats())


@dataclass(frozen=True)
class Halves:
    """What became of steps whose sampling waits for masks; milliseconds are means of a step."""

    forward_ms: float
    mask_ms: float
    hidden: float  # share of the mask time
    waits_ms: float


class Watch:
    """A runner that looks at its steps' first halves: when each could begin, when its logits were there, and
    when its masks were."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner, self.capacity, self.choices = runner, runner.capacity, runner.choices
        self._thread = ThreadPoolExecutor(1)
        self._idle = 0.0  # since when the device had nothing to do, as far as results tell
        self._steps: list[tuple[float, Future[float], float, float]] = []
        self.masks: Callable[[], float]  # seconds that masks took till now

    def __getattr__(self, name: str) -> typing.Any:
        return getattr(self._runner, name)

    def forward(self, batches: Sequence[ScheduleBatch | None]) -> "WatchedPending":
        halves = any(batch is not None and len(batch.constrained) for batch in batches)
        begun = time.perf_counter()
        pending = self._runner.forward(batches)
        done = self._thread.submit(_time_of, _logits_of(self._runner)) if halves else None
        return WatchedPending(self, pending, begun, done)

    def halves(self) -> Halves:
        """Of all steps till now."""
        forward = masks = hidden = waits = 0.0
        for begun, future, told, took in self._steps:
            done = future.result()
            forward += done - begun
            masks += took
            hidden += min(max(done - (told - took), 0.0), took)
            waits += max(told - done, 0.0)
        a_step = 1e3 / len(self._steps)
        return Halves(forward * a_step, masks * a_step, hidden / masks, waits * a_step)


class WatchedPending:
    """A step of `Watch`."""

    def __init__(
        self, watch: Watch, pending: PendingTokens, begun: float, done: Future[float] | None
    ) -> None:
        self._watch, self._pending, self._begun, self._done = watch, pending, begun, done
        self._before = watch.masks()

    def constrain(self, masks: Sequence[U32 | None]) -> None:
        told, watch = time.perf_counter(), self._watch
        assert self._done is not None
        begun = max(self._begun, watch._idle)
        watch._steps.append((begun, self._done, told, watch.masks() - self._before))
        self._pending.constrain(masks)

    def result(self) -> Sequence[StepTokens]:
        tokens = self._pending.result()
        self._watch._idle = time.perf_counter()
        return tokens


def _logits_of(runner: ModelRunner) -> Callable[[], object]:
    """What blocks until the first half that was just launched is done, while other threads run."""
    if (logits := getattr(runner, "logits", None)) is not None:  # of JAX
        return logits.block_until_ready  # type: ignore[no-any-return]
    if "torch" in sys.modules and (torch := sys.modules["torch"]).cuda.is_available():
        event = torch.cuda.Event(blocking=True)
        event.record()
        return event.synchronize  # type: ignore[no-any-return]
    return lambda: None  # PyTorch on a CPU returns when it is done


def _time_of(wait: Callable[[], object]) -> float:
    wait()
    return time.perf_counter()


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
    compiled = {"masks", "model"} & {*options.parts}
    grammars = compile_all(options.libraries if compiled else (), options.kinds, config, info, tokenizer)
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
    if "arrival" in options.parts:
        results["arrival"] = measure_arrivals(options.libraries, config)
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
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=PARTS)
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
    print(f"\nat once: {len(bench.prompts):<13} {TITLES}")
    rows = []
    for (library, kind), grammar in grammars.items():
        watch = Watch(bench.runner)
        switch = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)  # or the clock would be read up to 5 ms late
        first = bench.run(grammar, watch=watch)
        sys.setswitchinterval(switch)
        lengths = [len(each) for each in first.tokens]
        taken: dict[str, list[Outcome]] = {"free": [], "constrained": [], "jumping": []}
        for _ in range(rounds):
            taken["free"].append(bench.run(None, lengths))
            taken["constrained"].append(bench.run(grammar))
            taken["jumping"].append(bench.run(grammar, jump=True))
            assert taken["constrained"][-1].tokens == taken["jumping"][-1].tokens == first.tokens
        row = _row(len(lengths), library, kind, taken, watch.halves())
        rows.append(row)
        print(
            f"{library:14} {kind:7} {row.tokens:6} {row.free:11.1f} {row.constrained:12.1f} {row.ratio:5.2f}"
            f" {row.halves.forward_ms:11.2f} {row.halves.mask_ms:5.2f} {row.halves.hidden:6.0%}"
            f" {row.halves.waits_ms:5.2f} {row.jumping:6.1f} {row.jump_ratio:5.2f} {row.steps:5}"
            f" {row.steps_saved:6} {row.valid:3}/{len(lengths)}",
            flush=True,
        )
    return rows


def _row(requests: int, library: str, kind: str, taken: dict[str, list[Outcome]], halves: Halves) -> Row:
    rates = {name: np.array([each.rate for each in outcomes]) for name, outcomes in taken.items()}
    free, constrained, jumping = (statistics.median(rates[n]) for n in ("free", "constrained", "jumping"))
    last, jumped = taken["constrained"][-1], taken["jumping"][-1]
    return Row(
        requests=requests,
        library=library,
        kind=kind,
        tokens=sum(map(len, last.tokens)),
        free=free,
        constrained=constrained,
        jumping=jumping,
        ratio=statistics.median(rates["constrained"] / rates["free"]),
        jump_ratio=statistics.median(rates["jumping"] / rates["free"]),
        halves=halves,
        steps=last.stats.steps,
        steps_saved=last.stats.steps - jumped.stats.steps,
        valid=sum(len(each) < MAX_TOKENS for each in last.tokens),
    )


def measure_arrivals(libraries: Sequence[str], config: EngineConfig) -> list[dict[str, object]]:
    """A free stream on a serving engine of each library, met by the first grammar of its life."""
    print(
        f"\nms between a stream's tokens {'median':>13}  longest  as a free request comes  as a grammar comes"
    )
    rows: list[dict[str, object]] = []
    for library in libraries:
        alone, by_free, by_grammar = asyncio.run(_meet(replace(config, grammar_backend=library)))
        usual = statistics.median(alone)
        row = {"median_ms": usual, "longest_ms": max(alone), "free_ms": by_free, "grammar_ms": by_grammar}
        rows.append({"library": library, **row})
        print(f"{library:30} {usual:10.1f} {max(alone):8.1f} {by_free:24.1f} {by_grammar:19.1f}", flush=True)
    return rows


async def _meet(config: EngineConfig) -> tuple[list[float], float, float]:
    """Milliseconds between tokens of a stream alone, and the longest while a newcomer has no token yet: a
    free request, and one with a grammar."""
    long = SamplingParams(temperature=0, max_new_tokens=600, ignore_eos=True)
    short = SamplingParams(temperature=0, max_new_tokens=1)
    times: list[float] = []
    async with AsyncLLM(config, backend_for(config)) as llm:

        async def stream() -> None:
            async for _ in llm.generate(PROMPTS[0], long):
                times.append(time.perf_counter())

        async def meet(params: SamplingParams) -> float:
            """Until the stream's next token after the newcomer's."""
            first = len(times) - 1
            async for _ in llm.generate(PROMPTS[1], params):
                pass
            await until(len(times) + 2)
            return float(1e3 * np.diff(times[first:]).max())

        async def until(count: int) -> None:
            while len(times) < count:
                await asyncio.sleep(0.001)

        streaming = asyncio.create_task(stream())
        await until(120)
        alone = (1e3 * np.diff(times[20:])).tolist()
        by_free = await meet(short)
        by_grammar = await meet(replace(short, grammar=SPECS["regex"]))
        streaming.cancel()
    return alone, by_free, by_grammar


if __name__ == "__main__":
    main()
