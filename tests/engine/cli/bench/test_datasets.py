"""Workloads: lengths as asked, the same from the same seed, prefixes shared as told."""

import json
from pathlib import Path
from typing import Any

import pytest

from radixmesh.engine.cli.bench.datasets import FIRST_ID, DatasetOptions, draw_conversations
from radixmesh.engine.errors import ConfigError

VOCAB = 5000


def ids(**options: Any) -> list[list[tuple[list[int], int]]]:
    drawn = draw_conversations(DatasetOptions(**options), "ids", VOCAB)
    return [[(list(turn.content), turn.output_len) for turn in each.turns] for each in drawn]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["random", "shared-prefix", "multi-turn"])
def test_a_seed_fixes_the_workload(name: str) -> None:
    sizes = {"num_prompts": 5, "num_groups": 3, "prompts_per_group": 2}
    assert ids(dataset_name=name, **sizes) == ids(dataset_name=name, **sizes)
    assert ids(dataset_name=name, **sizes) != ids(dataset_name=name, **sizes, seed=2)


def test_random_lengths_are_fixed_by_default() -> None:
    drawn = ids(num_prompts=9, random_input_len=33, random_output_len=5)
    assert [[(len(prompt), out) for prompt, out in turns] for turns in drawn] == [[(33, 5)]] * 9
    assert all(FIRST_ID <= each < VOCAB for turns in drawn for each in turns[0][0])


def test_random_lengths_go_down_to_the_ratio() -> None:
    drawn = ids(num_prompts=300, random_input_len=20, random_output_len=10, random_range_ratio=0.5)
    assert {len(turns[0][0]) for turns in drawn} == set(range(10, 21))
    assert {turns[0][1] for turns in drawn} == set(range(5, 11))


def test_groups_share_exactly_their_prefix() -> None:
    drawn = ids(
        dataset_name="shared-prefix", num_groups=4, prompts_per_group=3, prefix_len=16, question_len=6,
        output_len=2,
    )  # fmt: skip
    assert [(len(prompt), out) for [(prompt, out)] in drawn] == [(22, 2)] * 12
    prefixes = [tuple(prompt[:16]) for [(prompt, _)] in drawn]
    assert sorted(prefixes.count(each) for each in set(prefixes)) == [3, 3, 3, 3]
    assert len({tuple(prompt) for [(prompt, _)] in drawn}) == 12
    assert prefixes != sorted(prefixes, key=prefixes.index)  # shuffled


def test_multi_turn() -> None:
    drawn = ids(dataset_name="multi-turn", num_prompts=2, num_turns=3, question_len=4, output_len=7)
    assert [[(len(added), out) for added, out in turns] for turns in drawn] == [[(4, 7)] * 3] * 2


def test_words() -> None:
    [only] = draw_conversations(DatasetOptions(num_prompts=1, random_input_len=12), "words", VOCAB)
    assert isinstance(only.turns[0].content, str)
    assert len(only.turns[0].content.split()) == 12
    assert only.turns[0].content.startswith(" ")


def test_a_small_vocabulary_is_never_exceeded() -> None:
    [only] = draw_conversations(DatasetOptions(num_prompts=1, vocab_size=8), "ids", VOCAB)
    assert set(only.turns[0].content) == {4, 5, 6, 7}


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "hi"}]
    path.write_text(
        "\n".join(
            [json.dumps({"prompt": "one"}), "", json.dumps({"messages": messages, "output_len": 3}), "{}"]
        )
    )
    options = DatasetOptions(dataset_name="jsonl", dataset_path=str(path), num_prompts=2, output_len=9)
    drawn = draw_conversations(options, "ids", VOCAB)
    assert [(each.turns[0].content, each.turns[0].output_len) for each in drawn] == [
        ("one", 9),
        (messages, 3),
    ]
    with pytest.raises(ConfigError, match="line 4"):
        draw_conversations(
            DatasetOptions(dataset_name="jsonl", dataset_path=str(path), num_prompts=3), "ids", VOCAB
        )


@pytest.mark.parametrize(
    "options, named",
    [
        ({"num_prompts": 0}, "num_prompts"),
        ({"random_range_ratio": 0.0}, "random_range_ratio"),
        ({"random_range_ratio": 1.5}, "random_range_ratio"),
        ({"dataset_name": "jsonl"}, "dataset_path"),
        ({"dataset_path": "x"}, "dataset_name"),
        ({"vocab_size": 1}, "vocab_size"),
    ],
)
def test_wrong_sizes_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DatasetOptions(**options)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match="/nowhere/at/all"):
        draw_conversations(DatasetOptions(dataset_name="jsonl", dataset_path="/nowhere/at/all"), "ids", VOCAB)
