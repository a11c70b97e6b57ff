"""A process of its own for compilers that nothing else can stop: it ends itself when one takes too long.

Parent and helper say one line of JSON each in turn. What the helper's library makes of a specification
follows its line as bytes: reading them lets the parent's other threads run, as decoding megabytes would not.
"""

import importlib
import json
import logging
import queue
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Protocol

from ..errors import GrammarError
from .grammar import GrammarSpec
from .vocabulary import Vocabulary

logger = logging.getLogger(__name__)

MAX_BYTES = 4 << 30  # of memory that a helper may ask for


class Compiler(Protocol):
    """What runs in the helper."""

    def compile(self, spec: GrammarSpec) -> bytes:
        """Raises whatever the library does, with its reason."""
        ...


class Helpers:
    """As many helpers as compile at once; the first starts at once. May be used by several threads."""

    def __init__(self, module: str, vocabulary: Vocabulary, compact_json: bool, timeout: float) -> None:
        """`module` is of this folder; its `compiler(tokens, eos_ids, compact_json)` makes a Compiler."""
        tokens = [b"" if i in vocabulary.special_ids else each for i, each in enumerate(vocabulary.tokens)]
        start = [
            module,
            [each.decode("latin-1") for each in tokens],
            sorted(vocabulary.eos_ids),
            compact_json,
        ]
        self._start = json.dumps([*start, timeout]).encode() + b"\n"
        self._timeout = timeout
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._idle.put(self._spawn())

    def compile(self, spec: GrammarSpec) -> bytes:
        """Raises GrammarError with the library's reason, or because it took too long."""
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = self._spawn()
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):  # it is gone, as the answer shows
            process.stdin.write(json.dumps([spec.kind, spec.text]).encode() + b"\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._end(process)
        size, reason = json.loads(line)
        compiled = process.stdout.read(size)
        if len(compiled) < size:
            raise self._end(process)
        self._idle.put(process)
        if reason is not None:
            raise GrammarError(reason)
        return compiled

    def close(self) -> None:
        """End the helpers that do nothing. One that compiles ends itself."""
        with suppress(queue.Empty):
            while True:
                self._end(self._idle.get_nowait())

    def _spawn(self) -> "subprocess.Popen[bytes]":
        code = f"import sys; sys.path[:] = {sys.path!r}\nfrom {__name__} import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(self._start)
        return process

    def _end(self, process: "subprocess.Popen[bytes]") -> GrammarError:
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        status = process.wait()
        if status == -signal.SIGALRM:
            return GrammarError(f"it takes longer than {self._timeout:g} s, by grammar_timeout")
        return GrammarError(f"it is too much for the library, whose process ended with status {status}")


def main() -> None:
    """The helper: a compiler for the vocabulary in the first line, then a specification in each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    module, tokens, eos_ids, compact_json, timeout = json.loads(sys.stdin.buffer.readline())
    words = [token.encode("latin-1") for token in tokens]
    compiler = importlib.import_module(f".{module}", __package__).compiler(words, eos_ids, compact_json)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_REAL, timeout)  # the default action ends the process
        compiled, reason = _answer(compiler, GrammarSpec(*json.loads(line)))
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.buffer.write(json.dumps([len(compiled), reason]).encode() + b"\n" + compiled)
        sys.stdout.buffer.flush()


def _answer(compiler: Compiler, spec: GrammarSpec) -> tuple[bytes, str | None]:
    """What the library made of it, or its reason to make nothing."""
    try:
        return compiler.compile(spec), None
    except Exception as error:
        return b"", str(error)
