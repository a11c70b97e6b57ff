"""Steps planned by hand, without a scheduler."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from radixmesh.engine.batch import SamplingArrays, SamplingVariant, ScheduleBatch
from radixmesh.engine.request import Request, SamplingParams

GREEDY, SAMPLE, FULL = SamplingVariant.GREEDY, SamplingVariant.SAMPLE, SamplingVariant.FULL


@dataclass
class Row:
    """One sequence as the planner sees it: known tokens, pages, and how far it is computed."""

    tokens: list[int]
    pages: list[int]
    slot: int
    seed: int | None = None  # None: greedy
    forbidden: tuple[int, ...] = ()
    allowed: tuple[int, ...] | None = None  # None: anything
    variant: SamplingVariant = GREEDY
    asked: tuple[int, ...] = ()  # ids whose logprobs are wanted
    computed: int = 0
    in_flight: int = 0
    output: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.tokens) + self.in_flight

    def inputs(self, count: int) -> list[int]:
        end = self.computed + count
        known = self.tokens[self.computed : end]
        return known + [-1 - self.slot] * (count - len(known))

    def sampling(self, num_top: int) -> Request:
        params = SamplingParams(temperature=0.0 if self.seed is None else 1.0, logprobs=num_top)
        return Request(f"slot-{self.slot}", np.array(self.tokens, np.int32), params)


Part = tuple[Row, int]  # a row and how many tokens of it are computed in the step


def plan(step: int, parts: Sequence[Part], page_size: int) -> tuple[ScheduleBatch, list[Row]]:
    """The batch that computes `parts`, decode rows first, and the rows that sample."""
    rows = [row for row, _ in parts]
    counts = np.array([count for _, count in parts], np.int32)
    starts = np.array([row.computed for row in rows], np.int32)
    ends = starts + counts
    tables = [row.pages[: -(-int(end) // page_size)] for row, end in zip(rows, ends, strict=True)]
    positions = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
    kv_slots = [
        np.array(table)[place // page_size] * page_size + place % page_size
        for table, place in zip(tables, positions, strict=True)
    ]
    wanted = [index for index, row in enumerate(rows) if ends[index] == row.length]
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    sampled = [rows[index] for index in wanted]
    batch = ScheduleBatch(
        step=step,
        rows=tuple(row.sampling(0) for row in rows),
        sampled=tuple(row.sampling(0) for row in sampled),
        variant=max((row.variant for row in sampled), default=GREEDY),
        num_decode_rows=sum(row.computed >= len(row.tokens) - 1 and count == 1 for row, count in parts),
        token_ids=i32([token for row, count in parts for token in row.inputs(count)]),
        positions=np.concatenate(positions).astype(np.int32),
        kv_slots=np.concatenate(kv_slots).astype(np.int32),
        cu_q_lens=offsets,
        kv_lens=ends,
        page_indices=i32([page for table in tables for page in table]),
        page_offsets=i32([0, *np.cumsum([len(table) for table in tables])]),
        logits_positions=i32([offsets[index + 1] - 1 for index in wanted]),
        logits_rows=i32(wanted),
        constrained=i32([index for index, row in enumerate(sampled) if row.allowed is not None]),
        sampling=sampling_arrays(sampled, i32([ends[index] for index in wanted])),
    )
    return batch, sampled


def sampling_arrays(rows: Sequence[Row], indices: np.ndarray) -> SamplingArrays:
    count = len(rows)
    ones, zeros = np.ones(count, np.float32), np.zeros(count, np.float32)
    full = max((row.variant for row in rows), default=GREEDY) == FULL
    biased = [(index, token) for index, row in enumerate(rows) for token in row.forbidden if full]
    asked = np.zeros((count, max((len(row.asked) for row in rows), default=0)), np.int32)
    for ids, row in zip(asked, rows, strict=True):
        ids[: len(row.asked)] = row.asked
    return SamplingArrays(
        slots=i32([row.slot for row in rows]),
        temperature=np.array([0.0 if row.seed is None else 1.0 for row in rows], np.float32),
        top_k=np.zeros(count, np.int32),
        top_p=ones,
        min_p=zeros,
        seeds=np.array([row.seed or 0 for row in rows], np.uint32),
        indices=indices,
        frequency_penalty=zeros,
        presence_penalty=zeros,
        repetition_penalty=ones,
        prompt_lens=i32([len(row.tokens) - len(row.output) for row in rows]),
        bias_rows=i32([index for index, _ in biased]),
        bias_ids=i32([token for _, token in biased]),
        bias_values=np.full(len(biased), -np.inf, np.float32),
        asked_ids=asked if asked.size else np.zeros((0, 0), np.int32),
    )


def with_scores(batch: ScheduleBatch, row: int, tokens: Sequence[int], spare_slot: int) -> ScheduleBatch:
    """`batch`, with the logits of every position of one row wanted whose next token is among `tokens`, those
    of the row; and the logprobs of two ids a wanted position."""
    start, end = batch.cu_q_lens[row : row + 2]
    places = [at for at in range(start, end) if batch.positions[at] + 1 < len(tokens)]
    given = i32([tokens[batch.positions[at] + 1] for at in places])
    order = np.argsort([*batch.logits_positions, *places])

    def join(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        return np.concatenate([old, new.astype(old.dtype)])[order]

    old, added = batch.sampling, {"slots": spare_slot, "top_p": 1, "repetition_penalty": 1}
    sampling = {
        name: join(getattr(old, name), np.full(len(places), added.get(name, 0)))
        for name in ("slots", "temperature", "top_k", "top_p", "min_p", "seeds", "frequency_penalty",
                     "presence_penalty", "repetition_penalty", "prompt_lens")
    }  # fmt: skip
    return replace(
        batch,
        sampled=(*batch.sampled, *[batch.rows[row]] * len(places)),
        variant=FULL,
        logits_positions=i32([*batch.logits_positions, *places])[order],
        logits_rows=i32([*batch.logits_rows, *[row] * len(places)])[order],
        sampling=replace(
            old,
            indices=batch.positions[i32([*batch.logits_positions, *places])[order]] + 1,
            given_ids=join(np.full(len(old.slots), -1, np.int32), given),
            asked_ids=np.arange(2 * len(order), dtype=np.int32).reshape(-1, 2),
            **sampling,
        ),
    )


def i32(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int32)
