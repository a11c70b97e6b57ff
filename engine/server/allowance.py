"""What a key may use in a minute: requests and tokens, as buckets that refill evenly."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import RateLimitError


@dataclass(slots=True)
class Bucket:
    """Holds `size` at most and refills by as much in a minute. It may be overdrawn."""

    size: int
    clock: Callable[[], float] = time.monotonic
    _level: float = field(init=False)
    _filled: float = field(init=False)

    def __post_init__(self) -> None:
        self._level, self._filled = float(self.size), self.clock()

    def take(self, amount: float) -> None:
        """Take out `amount`, or with a negative one give it back."""
        self._refill()
        self._level = min(self._level - amount, self.size)

    def wait(self, amount: float) -> float:
        """Seconds until `amount` is there; 0 if it is."""
        self._refill()
        return max(0.0, (amount - self._level) * 60 / self.size)

    def _refill(self) -> None:
        now = self.clock()
        self._level = min(self._level + (now - self._filled) * self.size / 60, self.size)
        self._filled = now


@dataclass(frozen=True, slots=True)
class Allowance:
    """The buckets of one key; None is no limit."""

    owner: str  # as messages name it
    requests: Bucket | None
    tokens: Bucket | None

    def take_request(self) -> None:
        """Count a request. Raises RateLimitError."""
        if self.requests is None:
            return
        if wait := self.requests.wait(1):
            raise RateLimitError(f"{self.owner} has made its {self.requests.size} requests a minute", wait)
        self.requests.take(1)

    def check_tokens(self) -> None:
        """Raise RateLimitError while no token is left."""
        if self.tokens is not None and (wait := self.tokens.wait(1)):
            raise RateLimitError(f"{self.owner} has used its {self.tokens.size} tokens a minute", wait)

    def take_tokens(self, count: float) -> None:
        """Count tokens, prompt and output alike; a negative count gives back."""
        if self.tokens is not None:
            self.tokens.take(count)


@dataclass(slots=True)
class Allowances:
    """The allowance of each key, by its name. Callers without a key share one."""

    requests: int | None  # a minute; None: no limit
    tokens: int | None
    _known: dict[str | None, Allowance] = field(default_factory=dict)

    def of(self, name: str | None) -> Allowance:
        """The allowance of the key of that name."""
        if name not in self._known:
            owner = "the server, for callers without a key," if name is None else f"key {name}"
            buckets = (None if each is None else Bucket(each) for each in (self.requests, self.tokens))
            self._known[name] = Allowance(owner, *buckets)
        return self._known[name]
