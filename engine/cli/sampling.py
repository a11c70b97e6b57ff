"""Sampling flags: one for each field of `SamplingParams`, over the model's own defaults."""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..grammar.given import spec_of
from ..grammar.grammar import GrammarKind, GrammarSpec
from ..request import SamplingParams
from ..request_builder import default_params
from ..runner import ModelInfo
from .options import add_options, flag_of

_MODEL = "default: the model's, else"
_HELPS = {
    "max_new_tokens": "most tokens to generate",
    "min_new_tokens": "fewest tokens to generate before the text may end",
    "temperature": f"randomness; 0 takes the likeliest token ({_MODEL} 1.0)",
    "top_k": f"sample from so many likeliest tokens, -1 from all ({_MODEL} -1)",
    "top_p": f"sample from the likeliest tokens that together have this probability ({_MODEL} 1.0)",
    "min_p": f"leave out tokens below this share of the likeliest one's probability ({_MODEL} 0.0)",
    "frequency_penalty": "taken off a token's logit for each time it was generated",
    "presence_penalty": "taken off a token's logit once it was generated",
    "repetition_penalty": f"divides the logits of tokens in prompt and output; 1 is off ({_MODEL} 1.0)",
    "logit_bias": "added to logits: an object of token id to bias",
    "sampling_seed": "fixes the text that a prompt gives (default: drawn)",
    "stop": "string that ends the text; may be given several times",
    "stop_token_ids": "token id that ends the text; may be given several times",
    "ignore_eos": "go on after the end-of-text token",
    "skip_special_tokens": "leave special tokens out of the text",
    "no_stop_trim": "keep the stop string in the text",
    "n": "texts for each prompt",
    "logprobs": "log probabilities: 0 of the chosen token, k of the k likeliest too (default: none)",
    "prompt_logprobs": "log probabilities of the prompt's own tokens, as logprobs (default: none)",
    "prompt_logprob_start": "with --prompt-logprobs: the token after which they begin",
    "logprob_token_ids": "token id whose log probability is told too; may be given several times",
}

_GRAMMARS: tuple[tuple[GrammarKind, str, str], ...] = (
    ("json_schema", "FILE|TEXT", "JSON schema that the text has to fulfil"),
    ("regex", "TEXT", "regular expression that the whole text has to match"),
    ("ebnf", "FILE|TEXT", "grammar in EBNF (GBNF) that the text has to follow"),
)


def add_sampling_options(
    parser: argparse.ArgumentParser, helps: Mapping[str, str] | None = None, exclude: tuple[str, ...] = ()
) -> None:
    """Add a flag for each field of `SamplingParams` but those in `exclude`; `helps` replaces texts."""
    add_options(parser, SamplingParams, {**_HELPS, **(helps or {})}, (*exclude, "embed"))
    group = parser.add_mutually_exclusive_group()
    for kind, metavar, text in _GRAMMARS:
        group.add_argument(
            flag_of(kind),
            dest="grammar",
            type=partial(_read_grammar, kind, metavar.startswith("FILE")),
            metavar=metavar,
            help=text,
            default=argparse.SUPPRESS,
        )
    group.add_argument(
        "--json-object",
        dest="grammar",
        action="store_const",
        const=GrammarSpec("json_object"),
        help="the text has to be a JSON object",
        default=argparse.SUPPRESS,
    )


def _read_grammar(kind: GrammarKind, may_be_file: bool, given: str) -> GrammarSpec:
    """The grammar of a flag: the text that was given, or that of the file it names."""
    looks_like_path = len(given) < 4096 and "\n" not in given
    if may_be_file and looks_like_path and Path(given).is_file():
        try:
            given = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise argparse.ArgumentTypeError(f"{given!r} cannot be read: {error}") from None
    return spec_of(kind, given)


def sampling_params(info: ModelInfo, given: Mapping[str, Any]) -> SamplingParams:
    """The parameters that were given, over the model's own.

    Raises RequestError, naming the field, for a value that cannot be honoured.
    """
    return SamplingParams(**{**default_params(info), **given})
