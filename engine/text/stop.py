"""`StopStrings`: find stop strings in text that arrives in pieces, and never let one leak."""

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string.

    The first is the one that is complete first, whatever the pieces; of several complete at the same
    character, the longest. What may still become one is held back. Costs the same for each character,
    however long the strings are.
    """

    def __init__(self, strings: Sequence[str], trim: bool = True) -> None:
        """`trim`: the stop string itself is not let through."""
        self._automata = [_Automaton(string) for string in strings]
        self._trim = trim
        self._held = ""
        self.matched: str | None = None

    def add(self, text: str, look: bool = True) -> str:
        """Take more text; return what may be shown now. Nothing comes after a match.

        Strings that are complete within this piece do not count unless `look`.
        """
        if self.matched is not None or not self._automata:
            return "" if self.matched is not None else text
        self._held += text
        start = len(self._held) - len(text)
        for position, char in enumerate(text, start):
            done = [each for each in self._automata if each.step(char)]
            if done and look:
                self.matched = max((each.string for each in done), key=len)
                end = position + 1 - (len(self.matched) if self._trim else 0)
                return self._let_through(end)
        return self._let_through(len(self._held) - max(each.length for each in self._automata))

    def flush(self) -> str:
        """The text that is still held back; no more will come."""
        return "" if self.matched is not None else self._let_through(len(self._held))

    def _let_through(self, end: int) -> str:
        text, self._held = self._held[:end], self._held[end:]
        return text


class _Automaton:
    """Knuth, Morris and Pratt: `length` is that of the longest beginning of `string` that ends the text."""

    def __init__(self, string: str) -> None:
        self.string = string
        self.length = 0
        self._fallback = [
            0
        ]  # [n]: the longest beginning of string[:n + 1] that also ends it, itself excepted
        for char in string[1:]:
            length = self._fallback[-1]
            while length and string[length] != char:
                length = self._fallback[length - 1]
            self._fallback.append(length + (string[length] == char))

    def step(self, char: str) -> bool:
        """Take one more character. True when the string is complete."""
        while self.length and self.string[self.length] != char:
            self.length = self._fallback[self.length - 1]
        self.length += self.string[self.length] == char
        if self.length < len(self.string):
            return False
        self.length = self._fallback[-1]
        return True
