"""The tokenizer that a GGUF file carries, rebuilt as a Hugging Face fast tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..gguf_header import GgufHeader, read_gguf_header

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # values of tokenizer.ggml.token_type
END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|endoftext|>")
_SPACE = "▁"  # how SentencePiece writes a space

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_QWEN2 = ("qwen2", "deepseek-r1-qwen")
_SMOLLM = ("smollm",)
_GPT2 = ("gpt-2", "default")


def load_gguf_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """Build the tokenizer of a GGUF file, chat template included.

    Raises ModelError when the file has no tokenizer, a damaged one, or one of a kind that is not understood.
    """
    header = read_gguf_header(path)
    fields = _fields(header)
    kind = fields.get("model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"tokenizer.ggml.model is {kind!r} in {path}; accepted are gpt2 and llama")
    try:
        return _build(kind, fields, header.metadata.get("tokenizer.chat_template"))
    except ModelError:
        raise
    except Exception as error:  # lists that do not fit each other: tokenizers raises nothing narrower
        raise ModelError(
            f"the tokenizer in {path} is incomplete or damaged ({type(error).__name__}: {error})"
        ) from error


def _build(kind: str, fields: dict[str, Any], chat_template: str | None) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    tokenizer = _byte_level(fields) if kind == "gpt2" else _sentencepiece(fields)
    _add_whole_tokens(tokenizer, fields)
    _add_ends(tokenizer, fields, begins=kind == "llama" or fields.get("pre") in _LLAMA3)
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {
        f"{ours}_token": fields["tokens"][int(fields[key])]
        for ours, theirs in named.items()
        if (key := f"{theirs}_token_id") in fields
    }
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        **special,
    )


def gguf_end_token_ids(header: GgufHeader) -> set[int]:
    """Tokens that end a text or a turn: those the metadata names, and control tokens known as such.

    Files of chat models often name one of several, and those of base models the end of a text only.
    """
    fields = _fields(header)
    ids = {int(fields[key]) for name in ("eos", "eot", "eom") if (key := f"{name}_token_id") in fields}
    tokens, kinds = fields.get("tokens", []), fields.get("token_type")
    if kinds is not None:
        control = {tokens[index]: int(index) for index in (kinds == _CONTROL).nonzero()[0]}
        ids |= {control[token] for token in END_TOKENS if token in control}
    return ids


def _fields(header: GgufHeader) -> dict[str, Any]:
    prefix = "tokenizer.ggml."
    return {
        key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)
    }


def _byte_level(fields: dict[str, Any]) -> "Tokenizer":
    """GPT-2's byte-level BPE, on pieces of text that `tokenizer.ggml.pre` says how to cut."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = fields.get("pre", "default")
    splits = _splits(pre)
    vocab = {token: index for index, token in enumerate(fields["tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in fields["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in _LLAMA3))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    if pre in _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _splits(pre: str) -> list[Any]:
    from tokenizers import Regex, pre_tokenizers

    if pre in _LLAMA3 or pre in _QWEN2:
        regex = Regex(_LLAMA3_SPLIT if pre in _LLAMA3 else _QWEN2_SPLIT)
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return [pre_tokenizers.Split(regex, "isolated"), bytes_only]
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre in _SMOLLM:
        return [pre_tokenizers.Digits(individual_digits=True), gpt2]
    if pre in _GPT2:
        return [gpt2]
    known = ", ".join((*_LLAMA3, *_QWEN2, *_SMOLLM, *_GPT2))
    raise ModelError(f"tokenizer.ggml.pre is {pre!r}; accepted are {known}")


def _sentencepiece(fields: dict[str, Any]) -> "Tokenizer":
    """SentencePiece BPE with byte fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = [_respelled(token) for token in fields["tokens"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=_merges_from_scores(tokens, fields),
            unk_token=tokens[int(fields.get("unknown_token_id", 0))],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", _SPACE)
    undo: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.get("add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        undo.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(undo)
    return tokenizer


def _respelled(token: str) -> str:
    """Gemma's files write runs of spaces as such, and spaces within other tokens as SentencePiece does."""
    return _SPACE * len(token) if token and not token.strip(" ") else token


def _merges_from_scores(tokens: list[str], fields: dict[str, Any]) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, in the order in which SentencePiece would join them.

    The token of the best score is made first. User-defined tokens, whose scores mean nothing, come
    before: SentencePiece keeps them whole.
    """
    scores = fields["scores"].tolist()
    kinds = fields["token_type"].tolist() if "token_type" in fields else [_NORMAL] * len(tokens)
    ids = {token: index for index, token in enumerate(tokens)}
    found = []
    for index, token in enumerate(tokens):
        if kinds[index] not in (_NORMAL, _USER_DEFINED):
            continue
        rank = (0, index) if kinds[index] == _USER_DEFINED else (1, -scores[index])
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                found.append((rank, ids[left], ids[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _add_whole_tokens(tokenizer: "Tokenizer", fields: dict[str, Any]) -> None:
    """Tokens that are never cut: control tokens are special, user-defined ones plain text."""
    from tokenizers import AddedToken

    kinds = fields.get("token_type")
    if kinds is None:
        return
    known = tokenizer.get_vocab(with_added_tokens=False)
    special, plain = [], []
    for token, kind in zip(fields["tokens"], kinds.tolist(), strict=True):
        if kind in (_CONTROL, _UNKNOWN):
            special.append(AddedToken(token, normalized=False, special=True))
        elif kind == _USER_DEFINED and token in known:  # runs of spaces are respelled, and merged
            plain.append(AddedToken(token, normalized=False, special=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _add_ends(tokenizer: "Tokenizer", fields: dict[str, Any], begins: bool) -> None:
    """Put the begin and end tokens around a text where the file asks for them; `begins` is the default."""
    from tokenizers import processors

    def token_of(name: str, wanted: bool) -> list[tuple[str, int]]:
        if not fields.get(f"add_{name}_token", wanted) or f"{name}_token_id" not in fields:
            return []
        index = int(fields[f"{name}_token_id"])
        return [(fields["tokens"][index], index)]

    first, last = token_of("bos", begins), token_of("eos", False)
    if not first and not last:
        return
    before, after = [token for token, _ in first], [token for token, _ in last]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{t}:1" for t in after)],
        special_tokens=[*first, *last],
    )
