"""The oracle: transformers in float32 on the same weights."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint


def load_oracle(folder: Path) -> Any:
    """A model saved by transformers, in float32 on the CPU."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def load_gguf_oracle(path: Path) -> Any:
    """A GGUF file's model as transformers understands it, dequantized to float32.

    (`from_pretrained(gguf_file=...)` does the same, and asks for one more package.)
    """
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.eval()


def oracle_logits(model: Any, token_ids: list[int]) -> NDArray[np.float32]:
    """Logits after each token: float32 [tokens, vocab]."""
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].numpy()
