"""The narrow waist between engine and device: what a backend must offer, and nothing more."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .batch import U32, ScheduleBatch, StepTokens
from .config import Choice, EngineConfig


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the host must know of a model: cheap to find, before any weight is read."""

    name: str  # what /v1/models calls it
    path: str  # where the files are: a folder, or a .gguf file
    vocab_size: int
    context_length: int  # tokens, prompt and output together
    eos_token_ids: frozenset[int]
    default_sampling: dict[str, float | int] = field(
        default_factory=dict
    )  # the model's own, unless sampling_defaults=openai
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class RunnerCapacity:
    """Hard limits of a runner; a scheduler never plans a step beyond them. All but the last two are those of
    one data parallel group, which has pages and slots of its own."""

    num_pages: int  # usable pages, numbered from 0
    page_size: int  # tokens
    max_running_requests: int  # rows in a step, and token slots
    max_step_tokens: int  # T
    max_page_indices: int  # P: page table entries of all rows together; at least num_pages
    num_groups: int = 1
    reads_shared_pages_once: bool = False  # whether decode rows that share pages are worth looking for


class PendingTokens(Protocol):
    """A step that the device may still be working on."""

    def constrain(self, masks: Sequence[U32 | None]) -> None:
        """Bound what the step's constrained rows may sample, and launch the rest of it.

        `masks` has uint32 [C, ceil(vocab / 32)] for each group with constrained rows, None for one without:
        bit `i % 32` of word `i // 32` allows token i, and at least one is allowed. Logprobs are of the
        model's own distribution all the same.
        """
        ...

    def result(self) -> Sequence[StepTokens]:
        """Block until the step is done, then return the tokens of each group's batch; none for no batch."""
        ...


class ModelRunner(Protocol):
    """Runs planned steps on a device. Calls come from one thread, in order.

    Steps take effect in the order of `forward` calls: a page written by one step can be read by the
    next, and a token slot filled by one step can be referred to by the next.
    """

    @property
    def capacity(self) -> RunnerCapacity: ...

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Automatic choices that the runner made, for the start-up report."""
        ...

    def warmup(self) -> None:
        """Compile everything that `forward` can need. Shows progress on stderr."""
        ...

    def forward(self, batches: Sequence[ScheduleBatch | None]) -> PendingTokens:
        """Launch a step and return without waiting for it.

        `batches` has one for each group of `capacity.num_groups`, None where a group has nothing to do; not
        all of them are None.

        A step with `constrained` rows gets as far as the logits, while the host finds out what may come
        next; then `constrain` must be called: once, before `result` and before the next `forward`.
        """
        ...

    def check(self) -> None:
        """Raise EngineDeadError if no step can succeed any more, as when the process of another rank has
        ended. Cheap: an idle engine asks twice a second."""
        ...

    def close(self) -> None:
        """Release the device. The runner is not used after."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """How an engine gets its model and its device. Both are functions of modules, which another process
    finds by name."""

    describe: Callable[[EngineConfig], ModelInfo]
    create_runner: Callable[[EngineConfig, ModelInfo], ModelRunner]
