"""`FAKE_BACKEND`: a model without weights, for tests of everything around the model and `--backend fake`.

Its 259 tokens are the 256 bytes (id = byte) and <|endoftext|>, <|im_start|>, <|im_end|>; the chat
template writes messages in ChatML. What it answers is described in `runner.py`. A model path such as
"fake:step_time=0.02,load_time=1" gives it the speed of a real one: seconds for a step and for the start.
"""

from pathlib import Path

from ...engine.config import Choice, EngineConfig
from ...engine.runner import Backend, ModelInfo
from .runner import create_fake_runner

VOCAB_SIZE = 259
IM_END = 258
CONTEXT_LENGTH = 4096
TOKENIZER = Path(__file__).parent / "tokenizer"


def describe_fake(config: EngineConfig) -> ModelInfo:
    """The fake model. Its context may be of any length."""
    reason = "the fake backend has a model of its own and reads no other"
    return ModelInfo(
        name=config.served_model_name or "fake",
        path=str(TOKENIZER),
        vocab_size=VOCAB_SIZE,
        context_length=config.context_length or CONTEXT_LENGTH,
        eos_token_ids=frozenset([IM_END]),
        choices=(Choice("model_path", "fake", reason),),
    )


FAKE_BACKEND = Backend(describe_fake, create_fake_runner)
