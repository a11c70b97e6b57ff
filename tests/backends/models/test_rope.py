"""Rotary frequencies against transformers' own functions."""

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from radixmesh.backends.models.hf_config import HfConfig, hf_rope
from radixmesh.backends.models.rope import inverse_frequencies
from radixmesh.backends.models.spec import RopeSpec
from radixmesh.engine.errors import ModelError

CASES = [
    dict(rope_type="linear", rope_theta=10000.0, factor=4.0),
    dict(
        rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0, original_max_position_embeddings=32768),
    dict(
        rope_type="yarn", rope_theta=10000.0, factor=40.0, original_max_position_embeddings=4096,
        mscale=1.0, mscale_all_dim=0.707, beta_fast=24, beta_slow=2,
    ),
    dict(
        rope_type="yarn", rope_theta=10000.0, factor=8.0, original_max_position_embeddings=2048,
        attention_factor=1.25,
    ),
]  # fmt: skip


def rope_of(parameters: dict, **rest: object) -> RopeSpec:
    fields = dict(rope_parameters=parameters, max_position_embeddings=131072) | rest
    return hf_rope(HfConfig("config.json", [], fields, fields))


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("parameters", CASES, ids=lambda each: f"{each['rope_type']}-{each['factor']}")
def test_scaled_frequencies_equal_transformers(parameters: dict, head_dim: int) -> None:
    config = LlamaConfig(
        hidden_size=head_dim * 4, num_attention_heads=4, head_dim=head_dim,
        max_position_embeddings=131072, rope_parameters=dict(parameters),
    )  # fmt: skip
    wanted, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")
    rope = rope_of(dict(parameters))
    found = inverse_frequencies(rope, head_dim)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted.numpy(), rtol=2e-6)
    assert rope.attention_factor == pytest.approx(factor)


def test_plain_frequencies() -> None:
    found = inverse_frequencies(RopeSpec(base=100.0), 4)
    np.testing.assert_allclose(found, [1.0, 0.1], rtol=1e-6)  # 100 ** -(0/4), 100 ** -(2/4)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        (dict(rope_type="dynamic", factor=2.0), "'dynamic'"),
        (dict(rope_type="longrope", factor=2.0), "'longrope'"),
        (dict(type="su"), "'su'"),
        (dict(rope_type="linear"), "without a factor"),
        (dict(rope_type="default", partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
        (dict(rope_type="yarn", factor=2.0, truncate=False), "truncate is False"),
    ],
)
def test_what_cannot_be_served_is_refused(parameters: dict, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        rope_of(parameters)
