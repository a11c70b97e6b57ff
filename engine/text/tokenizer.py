"""`Tokenizer`: text to token ids and back. transformers loads only when a tokenizer is loaded."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import EngineConfig
from ..errors import ModelError, RequestError
from ..runner import ModelInfo
from .chat_template import ChatTemplate

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

LONG_PROMPT = 4096  # characters or ids; longer ones belong into a thread where others wait


class Tokenizer:
    """A Hugging Face fast tokenizer. Encoding and decoding may be called from several threads.

    `decode` is the tokenizer's own decoder and nothing more: no clean-up of spaces, which would change
    what the model wrote.
    """

    def __init__(self, fast: "PreTrainedTokenizerFast", chat_template: str | None = None) -> None:
        """`chat_template` replaces the tokenizer's own."""
        self.fast = fast
        self._backend: Backend = fast.backend_tokenizer
        self._template = ChatTemplate(fast, chat_template)
        self.vocab_size: int = len(fast)  # added tokens counted
        self.eos_token_ids = frozenset([fast.eos_token_id] if isinstance(fast.eos_token_id, int) else [])
        added = self._backend.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self.special_texts = frozenset(token.content for token in added.values() if token.special)
        self._added_ids = frozenset(added)

    @cached_property
    def longest_token(self) -> int:
        """Characters in the longest token: no text is shorter in tokens than its length over this."""
        return max(map(len, self._backend.get_vocab(with_added_tokens=True)))

    @cached_property
    def decoder(self) -> Mapping[str, Any]:
        """The decoder's description, as tokenizer.json has it; empty when there is none."""
        decoder = self._backend.decoder
        return json.loads(decoder.__getstate__()) if decoder is not None else {}

    def encode(self, text: str, add_special_tokens: bool = True, max_tokens: int | None = None) -> list[int]:
        """Token ids of `text`.

        A text that must have more than `max_tokens` is refused before any work. Raises RequestError
        (field "prompt") for that and for text that is not valid Unicode.
        """
        if max_tokens is not None and len(text) > max_tokens * self.longest_token:
            least = -(-len(text) // self.longest_token)
            raise RequestError(
                f"the prompt has {len(text)} characters, at least {least} tokens; accepted are at most"
                f" {max_tokens} tokens",
                "prompt",
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the prompt is not valid Unicode: there is a lone surrogate at character {error.start}",
                "prompt",
            ) from None
        # a batch of one, for it lets other threads run meanwhile; 200,000 tokens take a second
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Bytes that are no UTF-8 become U+FFFD; unknown ids are left out."""
        if len(ids) > LONG_PROMPT:  # as in `encode`
            (text,) = self._backend.decode_batch([list(ids)], skip_special_tokens=skip_special_tokens)
        else:
            text = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return str(text)

    def token(self, index: int) -> str | None:
        """The token as the vocabulary spells it; None for an id that is not in it."""
        token: str | None = self._backend.id_to_token(index)
        return token

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it; None for one that it does not have."""
        index: int | None = self._backend.token_to_id(token)
        return index

    @property
    def begin_ids(self) -> list[int]:
        """What `encode` puts before a text when it adds special tokens: the BOS token's id, or nothing."""
        bos = self.fast.bos_token_id
        return [bos] if isinstance(bos, int) and self.encode("")[:1] == [bos] else []

    def token_bytes(self, index: int) -> bytes:
        """What a token stands for, alone; not always whole characters. Empty for an unknown id."""
        token = self.token(index)
        if token is None:
            return b""
        kind = decoder_kind(self.decoder)
        if kind == "byte_level":
            return byte_level_bytes(token)
        if index in self._added_ids:
            return token.encode()
        value = byte_value(token) if kind == "sentencepiece" else None
        return bytes([value]) if value is not None else token.replace("▁", " ").encode()

    def token_text(self, index: int) -> str:
        """`token_bytes` as text, U+FFFD for what is no whole character."""
        return self.token_bytes(index).decode(errors="replace")

    @property
    def chat_template(self) -> str:
        """The Jinja text of the chat template; "" if there is none."""
        return self._template.text

    def template_uses(self, variable: str) -> bool:
        """Whether the chat template knows `variable`."""
        return self._template.uses(variable)

    def template_takes(self, variable: str) -> bool:
        """Whether `variable` is one that the chat template can be given, not a field of messages."""
        return self._template.takes(variable)

    @property
    def has_chat_template(self) -> bool:
        """Whether chat messages can be turned into a prompt."""
        return self._template.known

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt for `messages`. It has its special tokens: encode it with add_special_tokens=False.

        `tools` are OpenAI's definitions; arguments of calls in `messages` are mappings. Further keywords
        are variables of the template. Raises RequestError (field "messages") when there is no template or
        it refuses the messages.
        """
        return self._template.render(messages, add_generation_prompt, tools, kwargs)


def decoder_kind(decoder: Mapping[str, Any]) -> str:
    """How tokens become text: "byte_level", "sentencepiece" (with byte fallback) or "other"."""
    steps = decoder.get("decoders", [decoder]) if decoder else []
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return "byte_level"
    replace = steps[0] if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] else None
    if replace is None or replace["pattern"] != {"String": "▁"} or replace["content"] != " ":
        return "other"
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return "sentencepiece" if steps[3:] in ([], [strip]) else "other"


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable Latin-1 stands for itself, the rest moves above 255."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(moved)}


_BYTES = _byte_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a byte-level token; one with characters outside the alphabet stands for itself."""
    try:
        return bytes([_BYTES[char] for char in token])
    except KeyError:
        return token.encode()


def byte_value(token: str) -> int | None:
    """The byte of a byte-fallback token such as <0xE2>; None for any other."""
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return None
    try:
        return int(token[3:5], 16)
    except ValueError:
        return None


def tokenizer_of(config: EngineConfig, info: ModelInfo) -> Tokenizer | None:
    """The tokenizer that `config` asks for, by default the model's own; None with skip_tokenizer_init."""
    if config.skip_tokenizer_init:
        return None
    path = config.tokenizer_path or info.path
    return load_tokenizer(path, config.chat_template, config.revision, config.trust_remote_code)


_ACCEPTED = (
    "accepted are a folder or repo with a tokenizer.json and a .gguf file (tokenizer_path names one,"
    " skip_tokenizer_init needs none)"
)


def load_tokenizer(
    path: str,
    chat_template_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Tokenizer:
    """Load the tokenizer of a folder, a Hugging Face repo id or a .gguf file.

    `chat_template_file` holds a Jinja template that replaces the model's own. Code that comes with a
    model is run only with `trust_remote_code`. Raises ModelError if there is no tokenizer or it is not a
    fast one.
    """
    template = _read_template(chat_template_file) if chat_template_file is not None else None
    # transformers tells users without torch that only tokenizers will work, which are all we want of it
    logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.msg)
    if path.endswith(".gguf"):
        from .gguf_tokenizer import load_gguf_tokenizer

        return Tokenizer(load_gguf_tokenizer(path), template)
    try:
        fast = _load_generic(path) or _load_auto(path, revision, trust_remote_code)
    except _UntrustedCodeError:
        raise ModelError(
            f"the tokenizer of {path} is Python code that comes with it; accepted are tokenizers without any,"
            " or trust_remote_code (--trust-remote-code), which runs it with all that this process may do"
        ) from None
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"no tokenizer could be loaded from {path}: {reason}; {_ACCEPTED}") from error
    if not getattr(fast, "is_fast", False):
        raise ModelError(
            f"the tokenizer of {path} is a {type(fast).__name__}; accepted are fast tokenizers, which come"
            " with a tokenizer.json"
        )
    backend = fast.backend_tokenizer
    if backend.get_vocab_size(with_added_tokens=False) <= len(backend.get_added_tokens_decoder()):
        # what transformers makes up where a folder has no tokenizer: a few special tokens, no text
        raise ModelError(f"{path} has no tokenizer; {_ACCEPTED}")
    return Tokenizer(fast, template)


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"chat_template is {path!r}, which cannot be read: {error}") from error


def _load_generic(path: str) -> "PreTrainedTokenizerFast | None":
    """A folder whose tokenizer has no class of its own, without AutoTokenizer: that imports torch."""
    folder = Path(path)
    if not (folder / "tokenizer.json").exists() or not (folder / "tokenizer_config.json").exists():
        return None
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if config.get("tokenizer_class") not in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return None
    from transformers import PreTrainedTokenizerFast

    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(path)
    return fast


class _UntrustedCodeError(Exception):
    """There is code to run, and leave was not given."""


def _load_auto(path: str, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise _UntrustedCodeError from error
        raise
