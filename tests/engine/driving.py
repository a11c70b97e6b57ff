"""An engine over the fake runner, and a loop that drives it and checks its books after every step."""

from dataclasses import dataclass, field

import numpy as np

from radixmesh.backends.fake.runner import FakeRunner
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.outputs import TokenOutput
from radixmesh.engine.request import Request, SamplingParams
from radixmesh.engine.runner import ModelInfo, RunnerCapacity

VOCAB = 997
EOS = 3


def make_engine(
    *,
    pages=64,
    page_size=4,
    rows=16,
    chunk=32,
    context=200,
    indices=None,
    eos_every=0,
    sharing=True,
    **options,
):
    capacity = RunnerCapacity(
        num_pages=pages,
        page_size=page_size,
        max_running_requests=rows,
        max_step_tokens=chunk,
        max_page_indices=indices or 4 * pages,
        reads_shared_pages_once=sharing,
    )
    info = ModelInfo("fake", "", VOCAB, context, frozenset({EOS}))
    runner = FakeRunner(capacity, VOCAB, eos_token_id=EOS, eos_every=eos_every)
    return Engine(EngineConfig(**options), info, runner, strict=True)


def make_request(name, prompt, max_new=8, *, priority=0, extra_key="", parent=None, seed=0, eos=(), **params):
    return Request(
        id=str(name),
        prompt_ids=np.array(prompt, np.int32),
        params=SamplingParams(**{"max_new_tokens": max_new, "temperature": 0.0, **params}),
        seed=seed,
        eos_token_ids=frozenset(eos),
        priority=priority,
        extra_key=extra_key,
        parent_id=parent,
    )


@dataclass
class Run:
    """Drives an engine; after every step the books must balance."""

    engine: Engine
    tokens: dict[str, list[int]] = field(default_factory=dict)
    last: dict[str, TokenOutput] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    deep: bool = True

    def step(self):
        outputs = self.engine.step()
        for output in outputs:
            assert output.request_id not in self.finished, "output after the last"
            self.tokens.setdefault(output.request_id, []).extend(output.token_ids)
            self.last[output.request_id] = output
            if output.finish_reason is not None:
                self.finished.append(output.request_id)
        self.check()
        return outputs

    def check(self):
        scheduler = self.engine.schedulers[0]
        assert scheduler.find_lost_pages() is None
        if self.deep:
            scheduler.cache.check_integrity()
            running = [*scheduler.prefilling.values(), *scheduler.decoding.values()]
            own = [page for each in running for page in each.pages[each.num_tree_pages :]]
            assert len(own) == len(set(own))
            assert all(each.page_ids.tolist() == each.pages for each in running)

    def all(self, limit=20_000):
        for _ in range(limit):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, "still busy: somebody starves"
        stats = self.engine.stats()
        assert stats.free_pages + stats.cached_pages == stats.num_pages
        assert stats.integrity_violations == stats.step_failures == 0
        return self
