"""Reasoning formats: examples by hand, and the same from every cut."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixmesh.engine.text.output_parser import OutputParser, join
from radixmesh.engine.text.parser import Arguments, CallEnd, CallStart, Event, Reasoning, Source, Steps, Text
from radixmesh.engine.text.reasoning.registry import REASONING_FORMATS, reasoning_format_of
from radixmesh.engine.text.tools.registry import TOOL_FORMATS


def parse(
    name: str, *pieces: str, prompt: str = "", tools: str | None = None, stream_reasoning: bool = True
) -> list[Event]:
    def read(source: Source) -> Steps[None]:
        return REASONING_FORMATS[name].read(source, prompt)

    def calls(source: Source) -> Steps[None]:
        return TOOL_FORMATS[tools or ""].read(source, {"now": {}})

    parser = OutputParser(read, calls if tools else None, stream_reasoning)
    return join([each for piece in pieces for each in parser.add(piece)] + parser.end())


NOW: list[Event] = [CallStart("now"), Arguments("{}"), CallEnd()]
BOTH: list[Event] = [Reasoning("Let me see."), Text("42 </think>")]

# format, end of the prompt, tool format, text, events
EXAMPLES: list[tuple[str, str, str | None, str, list[Event]]] = [
    ("qwen3", "", None, "<think>\nLet me see.\n</think>\n\n42 </think>", BOTH),
    ("qwen3", "<think>\n", None, "Let me see.</think>42 </think>", BOTH),
    ("qwen3", "<think>", None, "<think>Let me see.</think>42 </think>", BOTH),
    ("qwen3", "<think>\n\n</think>\n\n", None, "42", [Text("42")]),
    ("qwen3", "", None, "\n42 <think>no</think>\n", [Text("\n42 <think>no</think>\n")]),
    ("qwen3", "", None, "<think>never ends </thin", [Reasoning("never ends </thin")]),
    ("qwen3", "", None, "<think></think>", []),
    ("qwen3", "", None, "<thin", [Text("<thin")]),
    ("qwen3", "", None, "<think>a < b, </b>, \n\n</think>x", [Reasoning("a < b, </b>,"), Text("x")]),
    ("deepseek-r1", "", None, "Let me see.\n</think>\n\n42 </think>", BOTH),
    ("deepseek-r1", "<think>\n", None, "\nLet me see.\n</think>42 </think>", BOTH),
    ("deepseek-r1", "", None, "<think>\nLet me see.\n</think>\n\n42 </think>", BOTH),
    ("deepseek-r1", "</think>", None, "42", [Text("42")]),
    (
        "qwen3",
        "",
        "hermes",
        "<think>I call <tool_call>.\n</think>\n\nNow:\n"
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        [Reasoning("I call <tool_call>."), Text("Now:"), *NOW],
    ),
    (
        "qwen3",
        "",
        "hermes",
        '<think>x</think>\n\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n',
        [Reasoning("x"), *NOW],
    ),
    (
        "gpt-oss",
        "",
        None,
        "<|channel|>analysis<|message|>Simple.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>2 + 2 = 4. ",
        [Reasoning("Simple."), Text("2 + 2 = 4. ")],
    ),
    ("gpt-oss", "", None, "<|channel|>final<|message|>4<|return|>", [Text("4")]),
    (
        "gpt-oss",
        "",
        None,
        "<|channel|>analysis<|message|>a\n<|start|>assistant<|channel|>final<|message|>b",
        [Reasoning("a"), Text("b")],
    ),
    ("gpt-oss", "", None, "no <|channel|> here {<|message|>", [Text("no <|channel|> here {<|message|>")]),
    (
        "gpt-oss",
        "",
        "gpt-oss",
        "<|channel|>analysis<|message|>Need now.<|end|><|start|>assistant<|channel|>commentary<|message|>"
        "I look.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>",
        [Reasoning("Need now."), Text("I look."), *NOW],
    ),
    (
        "gpt-oss",
        "",
        None,
        "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>",
        [Text("<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>")],
    ),
]


@pytest.mark.parametrize(("name", "prompt", "tools", "text", "expected"), EXAMPLES)
def test_examples(name: str, prompt: str, tools: str | None, text: str, expected: list[Event]) -> None:
    assert parse(name, text, prompt=prompt, tools=tools) == expected
    assert parse(name, *text, prompt=prompt, tools=tools) == expected
    assert parse(name, *text, prompt=prompt, tools=tools, stream_reasoning=False) == expected


def test_reasoning_comes_at_once_or_at_its_end() -> None:
    text = ["<think>\n", "one", " two", "</think>", "\n\n", "three"]
    for streamed, expected in (
        (True, [[], [Reasoning("one")], [Reasoning(" two")], [], [], [Text("three")]]),
        (False, [[], [], [], [], [], [Reasoning("one two"), Text("three")]]),
    ):
        parser = OutputParser(
            lambda source: REASONING_FORMATS["qwen3"].read(source, ""), None, stream_reasoning=streamed
        )
        assert [parser.add(piece) for piece in text] == expected
        assert parser.end() == []


def test_without_formats_text_is_text() -> None:
    parser = OutputParser(None, None)
    assert parser.add("<think>") == [Text("<think>")] and parser.add("") == [] and parser.end() == []


PIECES = [
    "<think>",
    "</think>",
    "\n",
    " ",
    "x",
    "é🌍",
    "<|start|>assistant",
    "<|channel|>",
    "analysis",
    "final",
]
PIECES += [
    "<|message|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
    "commentary to=functions.now",
    "{}",
    "<|constrain|>",
]
PIECES += ["<tool_call>", '{"name": "now", "arguments": ', "}", "</tool_call>", "<th", "ink>", "</thi", "<|"]


@pytest.mark.parametrize("name", sorted(REASONING_FORMATS))
@settings(deadline=None, max_examples=80)
@given(
    text=st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
    prompt=st.sampled_from(["", "<think>\n", "</think>"]),
    draw=st.randoms(use_true_random=False),
)
def test_any_cut_of_any_text(name: str, text: str, prompt: str, draw: random.Random) -> None:
    tools = "gpt-oss" if name == "gpt-oss" else "hermes"
    expected = parse(name, text, prompt=prompt, tools=tools)
    cuts = sorted(draw.randint(0, len(text)) for _ in range(5))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(name, *pieces, prompt=prompt, tools=tools) == expected
    assert parse(name, *text, prompt=prompt, tools=tools) == expected
    one_piece = parse(name, *pieces, prompt=prompt, tools=tools, stream_reasoning=False)
    assert one_piece == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{%- if enable_thinking %}<think>\\n\\n</think>", "qwen3"),
        ("{{'<｜Assistant｜><think>\\n'}} split('</think>')", "deepseek-r1"),
        ("<|start|>assistant<|channel|>analysis<|message|>", "gpt-oss"),
        ("<|im_start|>", None),
    ],
)
def test_the_format_that_a_template_shows(template: str, expected: str | None) -> None:
    found = reasoning_format_of(template)
    assert (found[0].name if found else None) == expected
