"""`FakeRunner`: a runner whose tokens can be computed by hand.

Its "KV" is the token id itself, stored where `kv_slots` says. The next token is a hash of what the page table
leads to, so any wrong page, offset, position, slot or stale entry gives a wrong token. With tokens t_0 .. t_k
of a row up to the wanted position k:

    h = sum((t_i + 1) * (i + 1)) + 31 * t_k + 7 * k       (+ 7919 * seed + 104729 * (k + 1) unless greedy)

    token = eos_token_id                 if eos_every and h // vocab_size % eos_every == 0
            h % vocab_size               otherwise
            the next id upwards, while the id has a bias of -100 or less or is masked

The hidden state of t_k has four numbers: its sum in h modulo 7, 11, 13 and 1009.

`oracle.py` computes the same from lists. Penalties and other biases are checked by real runners only.

The fake also holds the engine to the protocol: limits, unique KV slots, no read of a page that another
row writes in the same step, masks exactly when and where they are due. A breach raises ProtocolError.
"""

import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...engine.batch import F32, U32, SamplingVariant, ScheduleBatch, StepTokens
from ...engine.config import Choice, EngineConfig, Pooling
from ...engine.errors import ConfigError
from ...engine.request import MAX_TOP_LOGPROBS
from ...engine.runner import ModelInfo, RunnerCapacity

HIDDEN = (7, 11, 13, 1009)
STALE = -(10**6)  # what a page holds before anything was written to it

I64 = NDArray[np.int64]


class ProtocolError(AssertionError):
    """The scheduler planned a step that no runner has to accept."""


class FakeRunner:
    """Evaluates steps lazily, in order, when a result is asked for: before that no host can know a token.

    `step_time` seconds are how long the pretended device takes for a step.
    """

    def __init__(
        self,
        capacity: RunnerCapacity,
        vocab_size: int,
        *,
        eos_token_id: int = 0,
        eos_every: int = 0,
        step_time: float = 0.0,
        pooling: Pooling = "none",
    ) -> None:
        self._capacity = capacity
        self.vocab_size = vocab_size
        self._eos_token_id, self._eos_every = eos_token_id, eos_every
        self._step_time, self._pooling = step_time, pooling
        self._device_free_at = 0.0
        self._kv = np.full((capacity.num_pages, capacity.page_size), STALE, np.int64)
        self._slots = np.full(capacity.max_running_requests + 1, STALE, np.int64)
        self._queue: deque[FakePending] = deque()
        self.num_evaluated = 0  # steps whose tokens exist

    @property
    def capacity(self) -> RunnerCapacity:
        return self._capacity

    @property
    def choices(self) -> tuple[Choice, ...]:
        return ()

    def warmup(self) -> None:
        """Nothing to compile."""

    def check(self) -> None:
        """Nothing can be lost."""

    def close(self) -> None:
        """Nothing to release."""

    def forward(self, batches: Sequence[ScheduleBatch | None]) -> "FakePending":
        """Launch a step. Raises ProtocolError if it breaks the rules of `ScheduleBatch`."""
        (batch,) = batches
        if batch is None:
            raise ProtocolError("a step has no batch")
        _require(not self._queue or self._queue[-1].launched, "the step before waits for its masks")
        check_batch(batch, self._capacity)
        self._device_free_at = max(self._device_free_at, time.monotonic()) + self._step_time
        pending = FakePending(self, batch, self._device_free_at)
        self._queue.append(pending)
        return pending

    def evaluate_until(self, pending: "FakePending") -> None:
        """Compute queued steps in order, up to and with `pending`."""
        while pending.tokens is None:
            step = self._queue.popleft()
            step.tokens = self._evaluate(step.batch, step.masks)
            self.num_evaluated += 1

    def _evaluate(self, batch: ScheduleBatch, masks: U32 | None) -> StepTokens:
        inputs = batch.token_ids.astype(np.int64)
        referred = inputs < 0
        inputs[referred] = self._slots[-1 - inputs[referred]]
        self._kv.reshape(-1)[batch.kv_slots] = inputs
        last = inputs[batch.logits_positions]
        wanted = batch.positions[batch.logits_positions].astype(np.int64)
        hashes = self._sums(batch, wanted) + 31 * last + 7 * wanted
        greedy = batch.sampling.temperature == 0
        salt = 7919 * batch.sampling.seeds.astype(np.int64) + 104729 * batch.sampling.indices
        likeliest = self._likeliest(np.where(greedy, hashes, hashes + salt))
        tokens, given = self._choose(likeliest, batch, masks), batch.sampling.given_ids
        if len(given):
            tokens = np.where(given >= 0, given, tokens)
        self._slots[batch.sampling.slots] = tokens
        sampled = _step_tokens(tokens, likeliest, self.vocab_size, batch)
        if not len(batch.pooled):
            return sampled
        _require(self._pooling != "none", "an embedding, which this runner does not make")
        return replace(sampled, pooled=self._pool(batch))

    def _pool(self, batch: ScheduleBatch) -> F32:
        """[S, len(HIDDEN)] of each row the hidden state of its last token, or the sum of its tokens'."""
        pooled = []
        for row, (start, end) in enumerate(
            zip(batch.kv_lens - np.diff(batch.cu_q_lens), batch.kv_lens, strict=True)
        ):
            pages = batch.page_indices[batch.page_offsets[row] : batch.page_offsets[row + 1]]
            terms = (self._kv[pages].reshape(-1)[:end] + 1) * np.arange(1, end + 1)
            hidden = terms.cumsum()[start:, None] % np.array(HIDDEN)
            pooled.append(hidden[-1] if self._pooling == "last" else hidden.sum(axis=0))
        return np.array(pooled, np.float32)

    def _sums(self, batch: ScheduleBatch, wanted: I64) -> I64:
        """[L] sum((t_i + 1) * (i + 1)) over the positions i up to `wanted` [L], through the page table."""
        if not len(wanted):
            return np.zeros(0, np.int64)
        size = self._capacity.page_size
        counts = wanted // size + 1
        ends = np.cumsum(counts)
        index_in_row = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
        pages = batch.page_indices[np.repeat(batch.page_offsets[batch.logits_rows], counts) + index_in_row]
        positions = index_in_row[:, None] * size + np.arange(size)  # [pages, page_size]
        terms = (self._kv[pages] + 1) * (positions + 1)
        terms[positions > np.repeat(wanted, counts)[:, None]] = 0
        return np.add.reduceat(terms.sum(axis=1), ends - counts)

    def _likeliest(self, hashes: I64) -> I64:
        tokens = hashes % self.vocab_size
        if self._eos_every:
            tokens[hashes // self.vocab_size % self._eos_every == 0] = self._eos_token_id
        return tokens

    def _choose(self, likeliest: I64, batch: ScheduleBatch, masks: U32 | None) -> I64:
        tokens, sampling = likeliest.copy(), batch.sampling
        forbidden = sampling.bias_values <= -100
        allowed = dict(zip(batch.constrained.tolist(), () if masks is None else masks, strict=False))
        for row in {*allowed, *sampling.bias_rows[forbidden].tolist()}:
            words = allowed.get(row, np.full(-(-self.vocab_size // 32), 0xFFFFFFFF, np.uint32))
            may_come = np.unpackbits(words.view(np.uint8), bitorder="little")[: self.vocab_size]
            may_come[sampling.bias_ids[forbidden & (sampling.bias_rows == row)]] = 0
            ids = np.flatnonzero(may_come)
            tokens[row] = ids[np.searchsorted(ids, tokens[row]) % len(ids)]
        return tokens


class FakePending:
    """A step of the fake runner."""

    def __init__(self, runner: FakeRunner, batch: ScheduleBatch, ready_at: float) -> None:
        self.batch = batch
        self.masks: U32 | None = None
        self.tokens: StepTokens | None = None
        self._runner = runner
        self._ready_at = ready_at

    @property
    def launched(self) -> bool:
        """Whether all of the step is."""
        return self.masks is not None or not len(self.batch.constrained)

    def constrain(self, masks: Sequence[U32 | None]) -> None:
        """Launch the rest of the step. Raises ProtocolError unless these are the masks that are due."""
        _require(not self.launched, "masks that no row waits for")
        (given,) = masks
        words = -(-self._runner.vocab_size // 32)
        _require(given is not None and given.dtype == np.uint32, "masks")
        assert given is not None
        _require(given.shape == (len(self.batch.constrained), words) and given.any(1).all(), "masks")
        self.masks = given

    def result(self) -> Sequence[StepTokens]:
        """Sleep until the pretended device is done, then compute the tokens."""
        _require(self.launched, "the step waits for its masks")
        wait = self._ready_at - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        self._runner.evaluate_until(self)
        assert self.tokens is not None
        return (self.tokens,)


def create_fake_runner(config: EngineConfig, info: ModelInfo) -> FakeRunner:
    """A fake runner sized by the options, for `--backend fake`. Raises ConfigError for several devices, and
    for a pace that cannot be read."""
    for name, value in (("tp_size", config.tp_size), ("dp_size", config.dp_size)):
        if value != 1:
            raise ConfigError(f"{name} is {value}; the fake backend has no devices, accepted is 1")
    page_size = config.page_size or 16
    num_pages = max(1, (config.max_total_tokens or 65536) // page_size)
    capacity = RunnerCapacity(
        num_pages=num_pages,
        page_size=page_size,
        max_running_requests=config.max_running_requests or 64,
        max_step_tokens=config.chunked_prefill_size or 512,
        max_page_indices=2 * num_pages,
    )
    eos = min(info.eos_token_ids, default=0)
    pace = read_pace(config.model_path)
    time.sleep(pace["load_time"])
    return FakeRunner(
        capacity,
        info.vocab_size,
        eos_token_id=eos,
        step_time=pace["step_time"],
        pooling=config.embedding_pooling,
    )


def read_pace(model_path: str) -> dict[str, float]:
    """Seconds by name from "fake:step_time=0.02,load_time=1"; 0 for what is not there, and for other paths.

    Raises ConfigError.
    """
    pace = {"step_time": 0.0, "load_time": 0.0}
    kind, _, text = model_path.partition(":")
    for part in text.split(",") if kind == "fake" and text else ():
        name, _, value = part.partition("=")
        if name not in pace or not re.fullmatch(r"\d+(\.\d+)?", value):
            raise ConfigError(
                f"model_path is {model_path!r}; accepted is fake:step_time=SECONDS,load_time=SECONDS"
            )
        pace[name] = float(value)
    return pace


def _step_tokens(tokens: I64, likeliest: I64, vocab_size: int, batch: ScheduleBatch) -> StepTokens:
    """The pretended logprobs fall by 1 from id to id, from the likeliest upwards."""
    if batch.variant != SamplingVariant.FULL:
        return StepTokens(tokens.astype(np.int32))
    ranks = np.arange(MAX_TOP_LOGPROBS)
    top_ids = ((likeliest[:, None] + ranks) % vocab_size).astype(np.int32)
    top_logprobs = np.broadcast_to(-0.5 - ranks, top_ids.shape).astype(np.float32)
    logprobs = (-0.5 - (tokens - likeliest) % vocab_size).astype(np.float32)
    asked, asked_logprobs = batch.sampling.asked_ids, None
    if asked.size:
        asked_logprobs = (-0.5 - (asked - likeliest[:, None]) % vocab_size).astype(np.float32)
    return StepTokens(tokens.astype(np.int32), logprobs, top_ids, top_logprobs, asked_logprobs)


def check_batch(batch: ScheduleBatch, capacity: RunnerCapacity) -> None:
    """Raise ProtocolError unless the batch keeps every rule that runners rely on."""
    size = capacity.page_size
    rows, q_lens = len(batch.rows), np.diff(batch.cu_q_lens)
    starts = batch.kv_lens - q_lens
    _require(0 < rows <= capacity.max_running_requests, "number of rows")
    _require(0 < batch.num_tokens <= capacity.max_step_tokens, "number of tokens")
    _require(len(batch.page_indices) <= capacity.max_page_indices, "number of page table entries")
    _require(batch.cu_q_lens[-1] == batch.num_tokens and (q_lens > 0).all(), "cu_q_lens")
    _require((q_lens[: batch.num_decode_rows] == 1).all(), "decode rows come first, with one token each")
    _require((np.diff(batch.page_offsets) == -(-batch.kv_lens // size)).all(), "pages do not fit kv_lens")
    _require(batch.page_offsets[-1] == len(batch.page_indices), "page_offsets")
    _require(((0 <= batch.page_indices) & (batch.page_indices < capacity.num_pages)).all(), "page ids")

    row_of = np.repeat(np.arange(rows), q_lens)
    expected = np.arange(batch.num_tokens) - batch.cu_q_lens[row_of] + starts[row_of]
    _require((batch.positions == expected).all(), "positions")
    page = batch.page_indices[batch.page_offsets[row_of] + batch.positions // size]
    _require((batch.kv_slots == page * size + batch.positions % size).all(), "kv_slots")
    _require(len(np.unique(batch.kv_slots)) == batch.num_tokens, "two tokens share a KV slot")
    _require((-1 - batch.token_ids < capacity.max_running_requests).all(), "slot references")

    written = np.zeros(capacity.num_pages * size, np.bool_)
    written[batch.kv_slots] = True
    index_in_row = np.arange(len(batch.page_indices)) - np.repeat(
        batch.page_offsets[:-1], -(-batch.kv_lens // size)
    )
    positions = index_in_row[:, None] * size + np.arange(size)
    before = positions < np.repeat(starts, -(-batch.kv_lens // size))[:, None]
    clash = written[batch.page_indices[:, None] * size + np.arange(size)] & before
    _require(not clash.any(), "a row reads what another row writes in the same step")

    wanted, sampling = batch.logits_positions, batch.sampling
    _require((row_of[wanted] == batch.logits_rows).all(), "logits_rows")
    _require(len(wanted) == len(batch.sampled), "sampled")
    constrained = batch.constrained
    _require((np.diff(constrained) > 0).all() and (constrained < len(wanted)).all(), "constrained")
    _require((sampling.indices == batch.positions[wanted] + 1).all(), "sampling indices")
    _require(len(wanted) <= capacity.max_running_requests, "number of wanted positions")
    _require((np.diff(wanted) > 0).all(), "wanted positions do not ascend")
    given = sampling.given_ids
    _require(len(given) in (0, len(wanted)), "given_ids")
    slots = sampling.slots[given < 0] if len(given) else sampling.slots
    _require(len(np.unique(slots)) == len(slots), "two samples share a slot")
    _require(not len(slots) or slots.max() < capacity.max_running_requests, "slots")
    others = sampling.slots[given >= 0] if len(given) else slots[:0]
    _require((others == capacity.max_running_requests).all(), "a given token goes into a slot")
    _require(not sampling.asked_ids.size or len(sampling.asked_ids) == len(wanted), "asked_ids")
    _check_groups(batch, size)


def _check_groups(batch: ScheduleBatch, page_size: int) -> None:
    """Rows of a group have these pages alike, full and none of this step's, and nobody is in two groups."""
    _require(len(batch.group_rows) == len(batch.shared_pages), "group_rows and shared_pages")
    _require(len(batch.group_rows) in (0, batch.num_decode_rows), "group_rows")
    pages_of_rows, grouped = np.zeros_like(batch.shared_pages), 0
    for first in np.flatnonzero(batch.group_rows).tolist():
        rows, pages = int(batch.group_rows[first]), int(batch.shared_pages[first])
        _require(rows > 1 and pages > 0 and first >= grouped, "groups")
        grouped = first + rows
        _require(grouped <= batch.num_decode_rows, "group_rows")
        _require((batch.kv_lens[first:grouped] > pages * page_size).all(), "a group shares a last page")
        tables = batch.page_offsets[first:grouped, None] + np.arange(pages)
        _require((np.ptp(batch.page_indices[tables], axis=0) == 0).all(), "a group's pages")
        pages_of_rows[first:grouped] = pages
    _require((pages_of_rows == batch.shared_pages).all(), "shared_pages")


def _require(good: bool | np.bool_, message: str) -> None:
    if not good:
        raise ProtocolError(f"the step breaks a rule: {message}")
