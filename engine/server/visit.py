"""`Visit`: one HTTP request as the server sees it, from its first line to the last byte of the answer.

Whatever serves the request finds it by `current_visit`, in the tasks that it starts too. Its log line, its
span and its key's allowance are made from it.
"""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from ..outputs import RequestOutput
from .allowance import Allowance
from .keys import Key

_CHARACTERS = 4  # in a token, for a text that is not yet tokens

_NOW: ContextVar["Visit | None"] = ContextVar("visit", default=None)


@dataclass(slots=True)
class _Prompt:
    """What is known of one prompt."""

    charged: int = 0  # tokens taken from the allowance before the engine told how many there are
    tokens: int = 0
    cached: int = 0
    began: bool = False


@dataclass(slots=True)
class Visit:
    """Counts and times of one HTTP request. Never a prompt, an answer or a key's text."""

    method: str = ""
    route: str = "unknown"  # the pattern, not the path
    status: int = 0  # of the answer; 0: none was begun
    id: str = ""  # of the generation; "": there was none
    key: Key | None = None
    allowance: Allowance | None = None
    parent: dict[str, str] = field(default_factory=dict)  # W3C trace context of the caller
    wall_ns: int = field(default_factory=time.time_ns)
    started: float = field(default_factory=time.perf_counter)
    ended: float | None = None
    first_token: float | None = None  # seconds from the start, as all that follow
    queued: float | None = None  # in the engine, of the prompt whose token came first
    output_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    prompts: dict[int, _Prompt] = field(default_factory=dict)

    @property
    def key_name(self) -> str | None:
        """Whose request it is; None without a key."""
        return self.key.name if self.key else None

    @property
    def prompt_tokens(self) -> int:
        return sum(each.tokens for each in self.prompts.values())

    @property
    def cached_tokens(self) -> int:
        return sum(each.cached for each in self.prompts.values())

    @property
    def total(self) -> float:
        """Seconds from the start to the end, or until now."""
        return (self.ended or time.perf_counter()) - self.started

    def admit(self, id: str, prompts: list[str | list[int]]) -> None:
        """A generation is to start. Raises RateLimitError if its key has no tokens left."""
        self.id = id
        if self.allowance is None:
            return
        self.allowance.check_tokens()
        for index, prompt in enumerate(prompts):
            guess = len(prompt) // _CHARACTERS if isinstance(prompt, str) else len(prompt)
            self.prompts[index] = _Prompt(charged=guess)
            self.allowance.take_tokens(guess)

    def saw(self, index: int, output: RequestOutput) -> None:
        """Take in an output of prompt `index` as it comes from the engine."""
        new = len(output.new_token_ids)
        cost = new
        prompt = self.prompts.setdefault(index, _Prompt())
        if not prompt.began:
            prompt.began = True
            prompt.tokens, prompt.cached = output.num_prompt_tokens, output.num_cached_tokens
            cost += prompt.tokens - prompt.charged
        if new and self.first_token is None:
            self.first_token, self.queued = self.total, output.queue_seconds
        self.output_tokens += new
        if output.finish_reason is not None:
            self.finish_reasons.append(output.finish_reason.value)
        if self.allowance is not None:
            self.allowance.take_tokens(cost)

    def refused(self, index: int) -> None:
        """The engine did not take prompt `index`: it costs nothing."""
        prompt = self.prompts.get(index)
        if prompt is not None and not prompt.began and self.allowance is not None:
            self.allowance.take_tokens(-prompt.charged)
            prompt.charged = 0


def begin_visit(visit: Visit) -> None:
    """Make `visit` the current one of this task and of those that it starts."""
    _NOW.set(visit)


def current_visit() -> Visit:
    """The visit that is being served; a new one outside of any."""
    return _NOW.get() or Visit()
