"""What a plan asks and tells: how a model would lie on a TPU slice, and how fast its steps can be.

Plain values only, so that a plan can be printed, kept as JSON, or worked on from Python. Sizes are in
bytes of one device, times in seconds; times are estimates.
"""

from dataclasses import dataclass

from .config import Choice, option
from .errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of a plan. Those that `serve` has too mean the same.

    Raises ConfigError, naming the option, for a value that cannot be honoured.
    """

    model_path: str | None = option(
        None,
        "a known model's name, a config.json or its folder, a .gguf file, or a Hugging Face repo id;"
        " no default: it must be given",
    )
    topology: str | None = option(None, "TPU slice, as v6e:2x4; no default: it must be given")
    mesh: str | None = option(None, "layout of the devices, as data=1,tensor=8; default: all that make sense")
    tp_size: int | None = option(
        None, "tensor parallel devices, the tensor= of --mesh; default: all that make sense"
    )
    dp_size: int | None = option(
        None, "data parallel groups, the data= of --mesh; default: all that make sense"
    )
    context_length: int | None = option(
        None,
        "tokens of a request, by which capacity and time are told; default: 8192, or the model's own",
        "--context",
    )
    dtype: str = option("auto", "dtype of weights and activations")
    kv_cache_dtype: str = option("auto", "dtype of the KV pool", "--kv-dtype")
    max_running_requests: int | None = option(None, "rows in one step")
    chunked_prefill_size: int | None = option(None, "token budget of a step")
    page_size: int | None = option(None, "tokens in a page of the KV pool")
    mem_fraction_static: float | None = option(None, "share of a device's memory for weights and KV pool")
    rows: tuple[int, ...] = option(
        (), "a number of rows to tell the decode step of; give it several times; default: 1, 8, 64, 256"
    )
    compile: bool = option(True, "compile the steps with the TPU compiler; without, arithmetic alone")

    def __post_init__(self) -> None:
        for name in ("model_path", "topology"):
            if not getattr(self, name):
                raise ConfigError(
                    f"{name} is not given; a plan needs a model and a TPU slice such as v6e:2x4"
                )
        for name in ("tp_size", "dp_size", "context_length", "rows"):
            value = getattr(self, name)
            if value is not None and min(value if isinstance(value, tuple) else (value,), default=1) < 1:
                raise ConfigError(f"{name} is {value}; accepted is an integer of at least 1")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Transfers between devices in one step, of one kind and size."""

    kind: str  # "all-reduce", ...
    devices: int  # that take part in one
    bytes: int  # each
    count: int
    always: bool = True  # False: only in steps that sample, or that ask for logprobs or penalties


@dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """What the TPU compiler made of a step."""

    argument_bytes: int
    temp_bytes: int
    code_bytes: int
    pool_aliased: bool  # the KV pool is updated in place
    hbm_bytes: float  # moved by one run, with the kernels' own estimates
    transfers: tuple[Transfer, ...]
    compile_seconds: float
    seconds: float  # the least time for these bytes and transfers, and the multiplications of the plan
    bound: str  # what takes most of it, as in `StepPlan`


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One step: `rows` requests that get a token each after `context` others, or a prompt of `tokens`
    in every data parallel group. The least time is that of the slowest resource and the transfers."""

    kind: str  # "decode" or "prefill"
    rows: int  # requests, all groups together
    tokens: int  # of the step, in one group
    context: int  # tokens before, of each request
    hbm_bytes: float
    flops: float
    transfers: tuple[Transfer, ...]
    memory_seconds: float
    compute_seconds: float
    interconnect_seconds: float
    seconds: float
    slow_seconds: float  # with bandwidth and matrix units used as well as good engines do
    bound: str  # what takes most of it: "memory", "compute" or "interconnect"
    compiled: CompiledStep | None = None

    @property
    def tokens_a_second(self) -> float:
        """Most tokens a second that such steps give: new ones, or of prompts."""
        return (self.rows if self.kind == "decode" else self.rows * self.tokens) / self.seconds


@dataclass(frozen=True, kw_only=True)
class LayoutPlan:
    """One way to lay the model over the devices. If `refusal` is not None it does not fit, and why."""

    data: int
    tensor: int
    weight_bytes: int
    pool_bytes: int
    token_bytes: int  # of the pool, on one device
    pool_tokens: int  # of all groups together
    requests: dict[int, int]  # context length -> how many such requests the pool holds
    steps: tuple[StepPlan, ...] = ()
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A model on a slice: the layouts that fit, the fastest decode first, and those that do not."""

    model: str
    topology: str
    chip: str
    devices: int
    hbm_bytes: int  # that a program may use on one device
    bandwidth: float  # bytes a second
    peak_flops: float
    context_length: int
    choices: tuple[Choice, ...]
    layouts: tuple[LayoutPlan, ...]
    refused: tuple[LayoutPlan, ...]
