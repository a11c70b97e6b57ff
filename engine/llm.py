"""`LLM`: offline generation; the engine runs in this process."""

import itertools
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np

from .config import EngineConfig
from .errors import ConfigError, QueueFullError, RequestError
from .grammar.constrain import constrain
from .grammar.service import GrammarService
from .output_collector import OutputState
from .outputs import RequestOutput
from .request import Request, SamplingParams
from .request_builder import Prompt, RequestBuilder, default_params
from .runner import Backend
from .startup import all_choices, describe, start_engine
from .stats import EngineStats
from .text.tokenizer import tokenizer_of

Conversation = Sequence[Mapping[str, Any]]  # messages with a role and a content


class LLM:
    """Generates text for lists of prompts. Not thread-safe.

    `info`, `capacity` and `choices` tell what was loaded; `tokenizer` is None with skip_tokenizer_init.
    """

    def __init__(self, config: EngineConfig, backend: Backend) -> None:
        """Load the model and warm it up. Raises ConfigError, ModelError."""
        if config.max_queue_wait is not None:
            raise ConfigError("max_queue_wait is set; accepted is None: LLM itself waits for its requests")
        self.config = config
        self.info = describe(config, backend)
        self._engine = start_engine(config, backend, self.info)
        self.capacity = self._engine.runner.capacity
        self.choices = all_choices(self.info, self._engine.runner.choices)
        self._grammars = GrammarService(config, self.info, lambda: self.tokenizer)
        try:
            self.tokenizer = tokenizer_of(config, self.info)
        except BaseException:
            self.close()
            raise
        self._builder = RequestBuilder(self.info, self.tokenizer, config.random_seed)
        self._numbers = itertools.count()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Generate for one prompt (a text, or a list of token ids) or for a list of prompts.

        `params` is one for all or one for each; None takes the model's own defaults. The results are in
        the order of the prompts; a prompt with n > 1 has n results in a row, told apart by `index`.

        All prompts are checked before any is run. Raises RequestError, naming the field. Ctrl-C aborts
        all, raises KeyboardInterrupt after the step that runs, and leaves the engine usable.
        """
        return self._run(self._requests(_as_list(prompts), params, True), use_tqdm)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation (a list of messages) or a list of them; otherwise as `generate`.

        `template_options` are handed to the chat template: add_generation_prompt, tools, and variables
        of its own. Raises RequestError (field "messages") if there is no template or it fails.
        """
        if self.tokenizer is None:
            raise RequestError("messages need a chat template, but skip_tokenizer_init is set", "messages")
        alone = not messages or isinstance(messages[0], Mapping)
        conversations: Any = [messages] if alone else messages
        prompts = [self.tokenizer.apply_chat_template(each, **template_options) for each in conversations]
        return self._run(self._requests(prompts, params, False), use_tqdm)

    def flush_cache(self) -> bool:
        """Empty the prefix cache."""
        return self._engine.flush_cache()

    def stats(self) -> EngineStats:
        """Gauges and counters of the engine."""
        return self._engine.stats()

    def close(self) -> None:
        """Release the device. Nothing can be generated after."""
        self._grammars.close()
        self._engine.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _requests(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        add_special_tokens: bool,
    ) -> list[Request]:
        """The requests of all prompts, in order."""
        if params is None:
            params = SamplingParams(**default_params(self.info))  # type: ignore[arg-type]
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise RequestError(
                f"params has {len(each)} entries for {len(prompts)} prompts; accepted are one for all or one"
                " for each",
                "params",
            )
        requests: list[Request] = []
        for prompt, one in zip(prompts, each, strict=True):
            requests += self._builder.build(
                prompt, one, request_id=str(next(self._numbers)), add_special_tokens=add_special_tokens
            )
        return requests

    def _run(self, requests: list[Request], use_tqdm: bool) -> list[RequestOutput]:
        """Step the engine until every request has ended."""
        waiting = deque(requests)
        states = {request.id: OutputState(request, self.tokenizer) for request in requests}
        results: dict[str, RequestOutput] = {}
        self._constrain(requests)
        with _progress(len(requests), use_tqdm) as progress, _deferred_interrupt() as interrupted:
            try:
                while len(results) < len(requests):
                    self._feed(waiting)
                    for output in self._engine.step():
                        state = states.get(output.request_id)
                        if state is None or state.finished:
                            continue
                        result = state.feed(output)
                        progress.add(len(result.new_token_ids), state.finished)
                        if state.finished:
                            results[output.request_id] = result
                        if state.ended_early:
                            self._engine.abort(output.request_id)
                    if interrupted.is_set():
                        raise KeyboardInterrupt
            finally:
                self._settle(states)
        return [results[request.id] for request in requests]

    def _constrain(self, requests: Sequence[Request]) -> None:
        """Give those with a grammar their matcher. Raises GrammarError."""
        pending = [
            (each, self._grammars.compile(each.params.grammar)) for each in requests if each.params.grammar
        ]
        for request, compilation in pending:
            constrain(request, self._grammars.wait(compilation))

    def _feed(self, waiting: deque[Request]) -> None:
        """Hand requests to the engine until its queue is full."""
        while waiting:
            try:
                self._engine.add_request(waiting[0])
            except QueueFullError:
                return
            waiting.popleft()

    def _settle(self, states: Mapping[str, OutputState]) -> None:
        """Abort what has not ended, and leave nothing on the device."""
        for request_id, state in states.items():
            if not state.finished:
                self._engine.abort(request_id)
        while self._engine.has_work:
            self._engine.step()


def _as_list(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """One prompt becomes a list of one; a list of ids is one prompt."""
    if isinstance(prompts, (str, np.ndarray)):
        return [prompts]
    if prompts and isinstance(prompts[0], (int, np.integer)):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


class _Progress:
    """A bar of finished requests with the tokens per second, or nothing."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._tokens = 0

    def add(self, num_tokens: int, finished: bool) -> None:
        self._tokens += num_tokens
        if self._bar is not None and finished:
            seconds = max(self._bar.format_dict["elapsed"], 1e-9)
            self._bar.set_postfix_str(f"{self._tokens / seconds:.1f} tokens/s", refresh=False)
            self._bar.update()


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[_Progress]:
    if not shown:
        yield _Progress(None)
        return
    from tqdm import tqdm

    with tqdm(total=total, desc="Generating", unit="request") as bar:
        yield _Progress(bar)


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Have Ctrl-C set a flag: raised inside a step it would leave the engine half changed.

    A second one is not deferred. Outside the main thread signals are not ours.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def remember(number: int, frame: object) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
