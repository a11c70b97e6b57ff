"""The families that can be served, by the names that config.json and GGUF files give them."""

from ....engine.errors import ModelError
from ..params import ParamSpec
from ..spec import ModelSpec
from .common import Family
from .gemma import GEMMA3
from .llama import LLAMA
from .qwen import QWEN2, QWEN3

FAMILIES = (LLAMA, QWEN2, QWEN3, GEMMA3)


def family_of_hf(architectures: list[str]) -> Family:
    """The family of config.json's `architectures`; ModelError when none of them is served."""
    for family in FAMILIES:
        if set(architectures) & set(family.hf):
            return family
    known = ", ".join(name for family in FAMILIES for name in family.hf)
    raise ModelError(f"architectures is {architectures} in config.json; accepted are {known}")


def family_of_gguf(architecture: str) -> Family:
    """The family of a GGUF file's `general.architecture`; ModelError when it is not served."""
    for family in FAMILIES:
        if architecture in family.gguf:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.gguf)
    raise ModelError(f"general.architecture is {architecture!r} in the GGUF file; accepted are {known}")


def param_table(spec: ModelSpec) -> tuple[ParamSpec, ...]:
    """Every parameter of the model that `spec` describes."""
    return next(family for family in FAMILIES if family.name == spec.family).params(spec)
