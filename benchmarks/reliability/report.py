"""What a trial saw, line by line, each beside what had to hold."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """A table. A line without a bound only tells."""

    title: str
    lines: list[tuple[str, str, str, bool]] = field(default_factory=list)

    def tell(self, what: str, seen: object) -> None:
        """Add what was seen."""
        self.lines.append((what, _text(seen), "", True))

    def check(self, what: str, seen: object, bound: str, holds: bool) -> None:
        """Add what was seen and whether it kept its bound."""
        self.lines.append((what, _text(seen), bound, holds))

    @property
    def holds(self) -> bool:
        return all(line[-1] for line in self.lines)

    def __str__(self) -> str:
        rows = [
            (what, seen, bound, "" if not bound else "yes" if holds else "NO")
            for what, seen, bound, holds in self.lines
        ]
        rows.insert(0, ("what", "seen", "bound", "holds"))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        texts = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        return "\n".join([f"# {self.title}", *(text.rstrip() for text in texts)])


def _text(seen: object) -> str:
    return f"{seen:.4g}" if isinstance(seen, float) else str(seen)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
