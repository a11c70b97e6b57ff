"""All tool formats, by SGLang's names for them, and which one a chat template teaches."""

from .deepseek import DEEPSEEK
from .format import ToolFormat
from .gpt_oss import GPT_OSS
from .hermes import HERMES
from .llama3 import LLAMA3
from .mistral import MISTRAL
from .pythonic import PYTHONIC
from .qwen3_coder import QWEN3_CODER

TOOL_FORMATS: dict[str, ToolFormat] = {
    "hermes": HERMES,
    "qwen": HERMES,
    "qwen25": HERMES,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "pythonic": PYTHONIC,
    "qwen3_coder": QWEN3_CODER,
    "deepseekv3": DEEPSEEK,
    "deepseekv31": DEEPSEEK,
    "gpt-oss": GPT_OSS,
}

# Where a template shows signs of two, the first of these is meant.
_BY_TEMPLATE = (GPT_OSS, QWEN3_CODER, HERMES, MISTRAL, DEEPSEEK, PYTHONIC, LLAMA3)


def tool_format_of(template: str) -> tuple[ToolFormat, str] | None:
    """The format that `template` teaches, and the signs of it."""
    fits = (each for each in _BY_TEMPLATE if all(sign in template for sign in each.signs))
    return next(((each, " and ".join(each.signs)) for each in fits), None)
