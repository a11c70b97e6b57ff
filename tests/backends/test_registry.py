"""What a backend is not asked to do: one sentence before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest

from radixmesh.backends.convert import convert
from radixmesh.backends.registry import backend_for
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ConfigError
from tests.tiny_models import save_tiny_model

TWO_HOSTS: dict[str, Any] = dict(nnodes=2, dist_init_addr="127.0.0.1:29500", tp_size=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "fake"}, "nnodes is 2; accepted for backend=fake is 1"),
        ({"backend": "torch"}, "nnodes is 2; accepted for backend=torch is 1"),
        ({"node_rank": 1}, "node_rank is 1; accepted is 0"),
    ],
)
def test_several_hosts_are_for_jax_and_led_by_process_0(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    save_tiny_model("llama", tmp_path / "hf")
    config = EngineConfig(model_path=str(tmp_path / "hf"), **TWO_HOSTS, **options)
    with pytest.raises(ConfigError, match=said):
        backend = backend_for(config)
        backend.create_runner(config, backend.describe(config))


def test_torch_reads_no_orbax_checkpoint(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "hf")
    convert(EngineConfig(model_path=str(tmp_path / "hf")), tmp_path / "new")
    config = EngineConfig(model_path=str(tmp_path / "new"), backend="torch")
    backend = backend_for(config)
    with pytest.raises(ConfigError, match="backend is torch; .*/new/weights.orbax is an Orbax checkpoint"):
        backend.create_runner(config, backend.describe(config))
