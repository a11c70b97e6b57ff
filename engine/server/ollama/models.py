"""What Ollama's clients are told of the served model."""

import hashlib
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...gguf_header import read_gguf_header
from ..state import Server

API_VERSION = "0.12.11"  # the Ollama whose API this is: clients ask for what a version can do
NEVER = "9999-12-31T23:59:59Z"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the model's files say; empty where they do not."""

    format: str
    family: str
    quantization: str
    parameters: int  # 0: not known
    size: int  # bytes
    modified_at: str


def facts_of(path: str) -> ModelFacts:
    """Look at a .gguf file, or a folder with a config.json."""
    place = Path(path)
    changed = datetime.fromtimestamp(place.stat().st_mtime, UTC) if place.exists() else datetime.now(UTC)
    modified_at = timestamp(changed)
    if path.endswith(".gguf"):
        from gguf.constants import LlamaFileType  # slow, and only clients that ask need it

        header = read_gguf_header(path)
        family = str(header.metadata.get("general.architecture", ""))
        parameters = sum(math.prod(each.shape) for each in header.tensors.values())
        kind = header.metadata.get("general.file_type")
        quantization = "" if kind is None else LlamaFileType(kind).name.removeprefix("MOSTLY_")
        return ModelFacts("gguf", family, quantization, parameters, place.stat().st_size, modified_at)
    config = place / "config.json"
    family = str(json.loads(config.read_text()).get("model_type", "")) if config.is_file() else ""
    size = sum(each.stat().st_size for each in place.glob("**/*") if each.is_file())
    return ModelFacts("safetensors", family, "", 0, size, modified_at)


def timestamp(moment: datetime | None = None) -> str:
    """A moment, by default now, as Ollama writes it."""
    return (moment or datetime.now(UTC)).isoformat().replace("+00:00", "Z")


def card(server: Server, facts: ModelFacts) -> dict[str, Any]:
    """The model as /api/tags and /api/ps list it."""
    name = server.llm.info.name
    return {
        "name": name,
        "model": name,
        "modified_at": facts.modified_at,
        "size": facts.size,
        # Clients want one to tell models apart; weights are not read for it.
        "digest": hashlib.sha256(f"{name}\0{server.llm.info.path}".encode()).hexdigest(),
        "details": details(facts),
    }


def running_card(server: Server, facts: ModelFacts) -> dict[str, Any]:
    """The model as /api/ps lists it."""
    return {
        **card(server, facts),
        "expires_at": NEVER,
        "size_vram": facts.size,
        "context_length": server.llm.info.context_length,
    }


def details(facts: ModelFacts) -> dict[str, Any]:
    """The `details` of a model."""
    count = facts.parameters
    shown = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.2f}M" if count else ""
    return {
        "parent_model": "",
        "format": facts.format,
        "family": facts.family,
        "families": [facts.family] if facts.family else [],
        "parameter_size": shown,
        "quantization_level": facts.quantization,
    }


def show(server: Server, facts: ModelFacts) -> dict[str, Any]:
    """The answer of /api/show."""
    llm, formats = server.llm, server.formats
    tokenizer = llm.tokenizer
    template = tokenizer.chat_template if tokenizer else ""
    tools = formats.tools is not None and tokenizer is not None and tokenizer.template_uses("tools")
    capabilities = ["completion"] + ["tools"] * tools + ["thinking"] * (formats.reasoning is not None)
    model_info: dict[str, Any] = {"general.architecture": facts.family}
    if facts.parameters:
        model_info["general.parameter_count"] = facts.parameters
    model_info[f"{facts.family or 'general'}.context_length"] = llm.info.context_length
    return {
        "modelfile": f"FROM {llm.config.model_path}\n",
        "parameters": "\n".join(f"{name} {value}" for name, value in llm.info.default_sampling.items()),
        "template": template,
        "details": details(facts),
        "model_info": model_info,
        "capabilities": capabilities,
        "modified_at": facts.modified_at,
    }
