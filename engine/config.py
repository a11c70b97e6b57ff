"""Every option of the engine: one frozen dataclass; the command line is generated from it.

`None` or "auto" means that the engine chooses; each such choice is made in one place
(`backends/resolve.py`) and recorded as a `Choice`, which start-up prints.
"""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from .errors import ConfigError

Pooling = Literal["none", "last", "mean"]
DEFAULT_MODEL = "smollm2-135m-instruct"


class Choice(NamedTuple):
    """One automatic decision and why it was made: "page_size=16 because ..."."""

    name: str
    value: object
    reason: str


def option(default: Any, help: str, *aliases: str, secret: bool = False) -> Any:
    """A dataclass field that becomes a command line flag; `help` is what the flag tells, `aliases` are
    other flags for it. What is `secret` is left out where options are shown."""
    metadata = {"help": help, "aliases": aliases, "secret": secret}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Options of the engine, by SGLang's flag names where the meaning is the same.

    Raises ConfigError, naming the option, for a value that cannot be honoured.
    """

    model_path: str = option(
        DEFAULT_MODEL, "Hugging Face repo id, local folder, .gguf file, or an embedded model's name"
    )
    tokenizer_path: str | None = option(None, "folder or repo id of the tokenizer; default: the model's own")
    served_model_name: str | None = option(None, "name that the API shows; default: the model path")
    revision: str | None = option(None, "branch, tag or commit of the Hugging Face repo")
    load_format: Literal["auto", "safetensors", "gguf", "orbax", "dummy"] = option(
        "auto", "where weights come from; dummy draws random ones from config.json alone"
    )
    skip_tokenizer_init: bool = option(False, "take and return token ids only; load no tokenizer")
    trust_remote_code: bool = option(
        False, "run Python code that comes with the model's tokenizer; such a model is refused else"
    )
    chat_template: str | None = option(None, "file with a Jinja chat template; default: the model's own")
    sampling_defaults: Literal["model", "openai"] = option(
        "model", "defaults of unset sampling parameters: the model's generation_config.json, or OpenAI's"
    )
    backend: Literal["auto", "jax", "torch", "fake"] = option("auto", "what runs the model")
    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", "dtype of weights and activations")
    kv_cache_dtype: Literal["auto", "float32", "bfloat16"] = option("auto", "dtype of the KV pool")
    context_length: int | None = option(None, "longest prompt plus output, in tokens; default: the model's")
    mem_fraction_static: float | None = option(
        None, "share of the free memory that weights and KV pool may take together"
    )
    max_total_tokens: int | None = option(None, "tokens in the KV pool; default: as memory allows")
    max_running_requests: int | None = option(None, "rows in one step")
    max_queued_requests: int = option(4096, "requests that may wait; more are refused with 429")
    max_queue_wait: float | None = option(
        None, "seconds that a request may wait to be started; others are refused with 429; default: no bound"
    )
    chunked_prefill_size: int | None = option(None, "token budget of a step: decode rows and prefill chunks")
    page_size: int | None = option(None, "tokens in a page of the KV pool")
    embedding_pooling: Pooling = option(
        "none", "embeddings: of a prompt's last hidden state, or of the mean of all; none: there are none"
    )
    schedule_policy: Literal["fcfs", "lpm", "dfs-weight", "priority", "random"] = option(
        "fcfs", "order in which waiting requests are admitted"
    )
    radix_eviction_policy: Literal["lru", "lfu"] = option("lru", "which cached prefix goes first")
    disable_radix_cache: bool = option(False, "share no prefixes between requests")
    disable_overlap_schedule: bool = option(False, "wait for each step before scheduling the next")
    disable_jump_forward: bool = option(
        False, "sample every token of a constrained output, those too that its grammar dictates"
    )
    strict_kernels: bool = option(False, "fail where a GPU kernel does not compile; else PyTorch runs it")
    tp_size: int = option(1, "tensor parallel devices: each layer is split over so many")
    dp_size: int = option(1, "data parallel groups; rows, tokens, queue and pool are those of each")
    nnodes: int = option(
        1,
        "processes that the devices belong to, one for each host; serve knows those of a TPU slice",
    )
    node_rank: int = option(0, "number of this process; 0 serves, the others follow it")
    dist_init_addr: str | None = option(
        None, "HOST:PORT of process 0 for the others, which also uses the next port"
    )
    grammar_backend: Literal["auto", "llguidance", "xgrammar", "outlines"] = option(
        "auto", "library that constrains outputs to a JSON schema, regex or grammar"
    )
    grammar_timeout: float = option(10.0, "seconds that a grammar may take to compile")
    max_grammar_bytes: int = option(256 * 1024, "longest text of a schema, regex or grammar")
    max_grammar_depth: int = option(100, "brackets within brackets in a schema, regex or grammar")
    constrained_json_disable_any_whitespace: bool = option(
        False, "allow no white space between the parts of constrained JSON, which saves tokens"
    )
    random_seed: int | None = option(None, "seed for requests that bring none; default: a new one each start")
    compilation_cache_dir: str | None = option(
        None, "folder of the persistent compilation cache; default: ~/.cache/radixmesh/compiled"
    )
    disable_compilation_cache: bool = option(False, "compile afresh at every start")

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            _check_type(each.name, getattr(self, each.name), each.type)
        for name in (
            "context_length", "max_total_tokens", "max_running_requests", "max_queued_requests",
            "chunked_prefill_size", "page_size", "tp_size", "dp_size", "nnodes", "max_grammar_bytes",
            "max_grammar_depth",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; accepted is an integer of at least 1")
        if self.mem_fraction_static is not None and not 0 < self.mem_fraction_static < 1:
            raise ConfigError(
                f"mem_fraction_static is {self.mem_fraction_static}; accepted is a number between 0 and 1"
            )
        if not 0 < self.grammar_timeout < math.inf:
            raise ConfigError(f"grammar_timeout is {self.grammar_timeout}; accepted is a number above 0")
        if self.max_queue_wait is not None and not self.max_queue_wait > 0:
            raise ConfigError(f"max_queue_wait is {self.max_queue_wait}; accepted is a number above 0")
        _check_hosts(self)

    @classmethod
    def from_options(cls, **options: Any) -> "EngineConfig":
        """Make a config from keyword options; an unknown name raises ConfigError with near names."""
        known = [each.name for each in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                import difflib

                near = difflib.get_close_matches(name, known, n=3) or known
                raise ConfigError(f"{name} is not an option of the engine; near are {', '.join(near)}")
        return cls(**options)


def _check_hosts(config: EngineConfig) -> None:
    """Raise ConfigError unless the options of several hosts fit each other."""
    nnodes, rank, address = config.nnodes, config.node_rank, config.dist_init_addr
    if not 0 <= rank < nnodes:
        raise ConfigError(f"node_rank is {rank}; accepted is 0 to {nnodes - 1}, as nnodes is {nnodes}")
    if (address is None) != (nnodes == 1):
        raise ConfigError(
            f"nnodes is {nnodes} and dist_init_addr is {address!r}; accepted are both, or one process and no"
            " address"
        )
    host, _, port = (address or "localhost:1").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65535:
        raise ConfigError(f"dist_init_addr is {address!r}; accepted is HOST:PORT of process 0")
    if (config.tp_size * config.dp_size) % nnodes:
        raise ConfigError(
            f"nnodes is {nnodes}; accepted is a divisor of tp_size x dp_size ="
            f" {config.tp_size * config.dp_size}: every process has as many devices"
        )


def _check_type(name: str, value: Any, annotation: Any) -> None:
    """Raise ConfigError unless `value` fits: int, float, bool, str, a Literal, or such or None."""
    allowed = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    for kind in allowed:
        if typing.get_origin(kind) is Literal:
            if value in typing.get_args(kind):
                return
            names = ", ".join(str(each) for each in typing.get_args(kind))
            raise ConfigError(f"{name} is {value!r}; accepted are {names}")
        if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return
    names = " or ".join("None" if kind is types.NoneType else kind.__name__ for kind in allowed)
    raise ConfigError(f"{name} is {value!r}; accepted is {names}")
