"""Stop strings against a brute force over the whole text."""

from hypothesis import example, given
from hypothesis import strategies as st

from radixmesh.engine.text.stop import StopStrings

few = st.text("ab", min_size=1, max_size=5)  # two letters, so that strings overlap and repeat


def brute_force(text: str, stops: list[str], first: int) -> tuple[int, str] | None:
    """(end, string) of the match that ends first, after `first` characters; the longest of several."""
    for end in range(first + 1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return end, max(found, key=len)
    return None


@given(
    pieces=st.lists(st.text("abc", max_size=6), max_size=12),
    stops=st.lists(few, max_size=3),
    silent=st.integers(0, 3),
    trim=st.booleans(),
)
@example(pieces=["a", "a", "b"], stops=["aab"], silent=0, trim=True)
@example(pieces=["aaa", "ab"], stops=["aab"], silent=0, trim=True)
@example(pieces=["abab", "abc"], stops=["abababc", "bab"], silent=1, trim=False)
def test_against_brute_force(pieces: list[str], stops: list[str], silent: int, trim: bool) -> None:
    """The first `silent` pieces are not looked at."""
    text = "".join(pieces)
    blind = len("".join(pieces[:silent]))
    expected = brute_force(text, stops, blind)
    matcher = StopStrings(stops, trim=trim)
    shown = ""
    for number, piece in enumerate(pieces):
        shown += matcher.add(piece, look=number >= silent)
        seen = "".join(pieces[: number + 1])
        if matcher.matched is None:
            assert shown == seen[: len(seen) - held(seen, stops)]
    shown += matcher.flush()
    if expected is None:
        assert matcher.matched is None and shown == text
    else:
        end, stop = expected
        assert matcher.matched == stop
        assert shown == text[: end - len(stop) if trim else end]
    assert matcher.add("more") == ("" if expected else "more"[: 4 - held("more", stops)])


def held(text: str, stops: list[str]) -> int:
    """How much of the end of `text` may still become a stop string."""
    lengths = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return max(lengths, default=0)


def test_partial_stop_text_is_not_shown() -> None:
    matcher = StopStrings(["</tool>"])
    assert [matcher.add(piece) for piece in ("x <", "/to", "ol", "> y")] == ["x ", "", "", ""]
    assert matcher.matched == "</tool>" and matcher.flush() == ""


def test_what_was_held_back_comes_when_it_was_no_stop_string() -> None:
    matcher = StopStrings(["</tool>"])
    assert [matcher.add(piece) for piece in ("x <", "/to", "p>")] == ["x ", "", "</top>"]


def test_no_strings() -> None:
    matcher = StopStrings([])
    assert matcher.add("abc") == "abc" and matcher.flush() == "" and matcher.matched is None


def test_long_strings_cost_no_more() -> None:
    """A hundred thousand characters that all but match: quadratic work would not end in time."""
    matcher = StopStrings(["a" * 4000 + "b"])
    shown = "".join(matcher.add("a" * 100) for _ in range(1000)) + matcher.flush()
    assert shown == "a" * 100_000
