"""The tokenizer that a GGUF file carries, rebuilt as a Hugging Face fast tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..gguf_header import read_gguf_header

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {"llama-bpe": _LLAMA3, "qwen2": _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")}
_DIGITS_FIRST = ("smollm",)
_PLAIN = ("gpt-2", "default")


def load_gguf_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """Build the tokenizer of a GGUF file. Raises ModelError for a kind that is not understood."""
    from transformers import PreTrainedTokenizerFast

    header = read_gguf_header(path)
    fields = {
        key.removeprefix("tokenizer."): value
        for key, value in header.metadata.items()
        if key.startswith("tokenizer.")
    }
    kind = fields.get("ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"tokenizer.ggml.model is {kind!r} in {path}; accepted are gpt2 and llama")
    tokenizer = _byte_level(fields) if kind == "gpt2" else _sentencepiece(fields)
    _add_special_tokens(tokenizer, fields)
    _add_beginning(tokenizer, fields, default=kind == "llama")
    tokens = fields["ggml.tokens"]
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {
        f"{ours}_token": tokens[int(fields[key])]
        for ours, theirs in names.items()
        if (key := f"ggml.{theirs}_token_id") in fields
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=fields.get("chat_template"),
        clean_up_tokenization_spaces=False,
        **special,
    )


def _byte_level(fields: dict[str, Any]) -> "Tokenizer":
    """GPT-2's byte-level BPE with the split that `tokenizer.ggml.pre` names."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: index for index, token in enumerate(fields["ggml.tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in fields["ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, ignore_merges=fields.get("ggml.pre") == "llama-bpe")
    )
    pre = fields.get("ggml.pre", "default")
    if pre in _SPLITS:
        split: list[Any] = [
            pre_tokenizers.Split(Regex(_SPLITS[pre]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    elif pre in _DIGITS_FIRST:
        split = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    elif pre in _PLAIN:
        split = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        known = ", ".join((*_SPLITS, *_DIGITS_FIRST, *_PLAIN))
        raise ModelError(f"tokenizer.ggml.pre is {pre!r}; accepted are {known}")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(fields: dict[str, Any]) -> "Tokenizer":
    """SentencePiece BPE with byte fallback: merges follow from the order of the vocabulary's scores."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokens, scores = fields["ggml.tokens"], fields["ggml.scores"]
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = tokens[int(fields.get("ggml.unknown_token_id", 0))]
    merges = _merges_from_scores(vocab, scores)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = bool(fields.get("ggml.add_space_prefix", True))
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    if not prefix:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    undo: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if prefix else undo)
    return tokenizer


def _merges_from_scores(vocab: dict[str, int], scores: Any) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, the best scored piece first."""
    ranked = []
    for piece, index in vocab.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                ranked.append((-float(scores[index]), vocab[left], vocab[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _add_special_tokens(tokenizer: "Tokenizer", fields: dict[str, Any]) -> None:
    from tokenizers import AddedToken

    tokens, kinds = fields["ggml.tokens"], fields.get("ggml.token_type")
    if kinds is None:
        return
    control = [tokens[i] for i in (kinds == _CONTROL).nonzero()[0]]
    control += [tokens[i] for i in (kinds == _UNKNOWN).nonzero()[0]]
    own = [tokens[i] for i in (kinds == _USER_DEFINED).nonzero()[0]]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in own])


def _add_beginning(tokenizer: "Tokenizer", fields: dict[str, Any], default: bool) -> None:
    """Put the beginning-of-text token in front where the file asks for it."""
    from tokenizers import processors

    if not fields.get("ggml.add_bos_token", default) or "ggml.bos_token_id" not in fields:
        return
    index = int(fields["ggml.bos_token_id"])
    token = fields["ggml.tokens"][index]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, index)]
    )
