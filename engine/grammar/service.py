"""`GrammarService`: compiles grammars in threads of its own, each specification once."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from ..config import EngineConfig
from ..errors import GrammarError, ModelError
from ..runner import ModelInfo
from ..text.tokenizer import Tokenizer
from .calls import read_calls_grammar
from .check import check_size, check_text
from .grammar import FREE, Grammar, GrammarSpec, Thinking
from .marks import Words
from .registry import Library, backend_of, load_library
from .thinking import AnyText, ThinkingGrammar, ThinkingMarks, without_budget
from .vocabulary import Vocabulary, vocabulary_of

logger = logging.getLogger(__name__)

MAX_THREADS = 2  # so that one grammar that takes long does not hold up the next
MAX_CACHED = 256  # grammars
MAX_CACHED_BYTES = 8 << 20  # of their texts together


class Compilation:
    """A grammar on its way. `future` brings it, or GrammarError."""

    def __init__(self, spec: GrammarSpec, timeout: float) -> None:
        self.spec = spec
        self.future: Future[Grammar] = Future()
        self.started: float | None = None  # time.monotonic(); waiting for a thread does not count
        self._timeout = timeout

    def poll(self) -> Grammar | None:
        """The grammar; None while it is being compiled. Raises GrammarError, also when it takes too long."""
        if self.future.done():
            return self.future.result()
        if self.started is not None and time.monotonic() - self.started > self._timeout:
            raise refusal(self.spec, f"it takes longer than {self._timeout:g} s, by grammar_timeout")
        return None


class GrammarService:
    """Compiles grammars. Tokenizer and library are loaded by `load`, or when the first grammar comes: then
    no other thread runs for as long as the vocabulary takes, for libraries hold the interpreter's lock.

    Used by one thread. `load_tokenizer` and `on_done`, which hears of each compilation's end, are called
    by others.
    """

    def __init__(
        self,
        config: EngineConfig,
        info: ModelInfo,
        load_tokenizer: Callable[[], Tokenizer | None],
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        """Raises ConfigError if the library is not installed."""
        self._config, self._info = config, info
        self._load_tokenizer, self._on_done = load_tokenizer, on_done
        self._backend = backend_of(config)
        self._threads = ThreadPoolExecutor(MAX_THREADS, "grammar")
        self._cache: OrderedDict[GrammarSpec, Compilation] = OrderedDict()
        self._loading = threading.Lock()
        self._library: Library | None = None
        self._vocabulary: Vocabulary | None = None
        self._words: Words | None = None
        self._marks: dict[Thinking, ThinkingMarks] = {}

    def load(self) -> Future[None]:
        """Start to load tokenizer and library. The future never fails: every grammar's refusal will."""
        return self._threads.submit(self._try_load)

    def compile(self, spec: GrammarSpec) -> Compilation:
        """Start to compile, or find what was compiled before. Raises GrammarError for what needs no trial."""
        if spec.thinking is not None:
            spec = replace(spec, thinking=without_budget(spec.thinking))
        compilation = self._cache.pop(spec, None)
        if compilation is None or (compilation.future.done() and compilation.future.exception()):
            try:
                check_size(spec, self._config.max_grammar_bytes)
            except GrammarError as error:
                raise refusal(spec, str(error)) from None
            compilation = Compilation(spec, self._config.grammar_timeout)
            self._threads.submit(self._run, compilation)
        self._cache[spec] = compilation
        self._evict()
        return compilation

    def wait(self, compilation: Compilation) -> Grammar:
        """Block until the grammar is there. Raises GrammarError."""
        while (grammar := compilation.poll()) is None:
            try:
                compilation.future.exception(timeout=0.1)
            except TimeoutError:
                continue
        return grammar

    def close(self) -> None:
        """Start no compilation any more, and end helper processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._library is not None:
            self._library.close()

    def _evict(self) -> None:
        size = sum(len(spec.text) for spec in self._cache)
        while len(self._cache) > MAX_CACHED or (size > MAX_CACHED_BYTES and len(self._cache) > 1):
            spec, _ = self._cache.popitem(last=False)
            size -= len(spec.text)

    def _run(self, compilation: Compilation) -> None:
        """In a thread: bring the compilation to its end, whatever happens."""
        try:
            library = self._loaded()
            compilation.started = time.monotonic()
            compilation.future.set_result(self._compile(library, compilation.spec))
        except (GrammarError, ModelError) as error:
            compilation.future.set_exception(refusal(compilation.spec, str(error)))
        except Exception as error:
            logger.exception("a grammar could not be compiled")
            text = f"the library failed: {type(error).__name__}: {error}"
            compilation.future.set_exception(refusal(compilation.spec, text))
        finally:
            self._on_done()

    def _compile(self, library: Library, spec: GrammarSpec) -> Grammar:
        if spec.thinking is not None:
            answer = self._compile(library, replace(spec, thinking=None))
            return ThinkingGrammar(self._marks_of(spec.thinking), answer, spec.kind in FREE)
        if spec.kind == "text":
            return AnyText()
        if spec.kind == "calls":
            return read_calls_grammar(
                spec.text, self._known_words(), lambda each: self._compile(library, each)
            )
        if spec.kind not in library.kinds:
            raise GrammarError(
                f"grammar_backend {self._backend} cannot do {spec.kind}; accepted are"
                f" {', '.join(sorted(library.kinds))}"
            )
        check_text(spec, self._config.max_grammar_depth)
        return library.compile(spec)

    def _try_load(self) -> None:
        try:
            self._loaded()
        except Exception as error:  # it is tried again, and told, when the first grammar comes
            logger.info("there will be no grammars: %s", error)

    def _loaded(self) -> Library:
        with self._loading:
            if self._library is None:
                tokenizer = self._load_tokenizer()
                if tokenizer is None:
                    raise GrammarError("a grammar needs a tokenizer, but skip_tokenizer_init is set")
                if not self._info.eos_token_ids:
                    raise GrammarError("the model has no token that ends a text, which a grammar needs")
                self._vocabulary = vocabulary_of(tokenizer, self._info)
                self._library = load_library(self._config, self._vocabulary)
            return self._library

    def _known_words(self) -> Words:
        with self._loading:
            if self._words is None:
                assert self._vocabulary is not None
                self._words = Words(self._vocabulary)
            return self._words

    def _marks_of(self, thinking: Thinking) -> ThinkingMarks:
        words = self._known_words()
        with self._loading:
            if thinking not in self._marks:
                self._marks[thinking] = ThinkingMarks(thinking, words)
            return self._marks[thinking]


def refusal(spec: GrammarSpec, reason: str) -> GrammarError:
    """The error that a user sees."""
    return GrammarError(f"{spec.kind} is refused: {' '.join(reason.split()):.600}", spec.kind)
