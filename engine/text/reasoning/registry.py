"""All reasoning formats, by SGLang's names for them, and which one a chat template shows."""

from .format import ReasoningFormat
from .gpt_oss import GPT_OSS_REASONING
from .think import DEEPSEEK_R1, QWEN3

REASONING_FORMATS = {each.name: each for each in (DEEPSEEK_R1, QWEN3, GPT_OSS_REASONING)}

# All signs of one must be in a template; the first that fits is meant.
_BY_TEMPLATE = (
    (GPT_OSS_REASONING, ("<|channel|>",)),
    (DEEPSEEK_R1, ("</think>", "<｜Assistant｜>")),
    (QWEN3, ("</think>",)),
)


def reasoning_format_of(template: str) -> tuple[ReasoningFormat, str] | None:
    """The format that `template` shows, and the signs of it."""
    fits = ((each, signs) for each, signs in _BY_TEMPLATE if all(sign in template for sign in signs))
    return next(((each, " and ".join(signs)) for each, signs in fits), None)
