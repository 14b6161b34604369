"""What was injected, how often, and what became of it, for the end of the report."""

from collections import Counter
from collections.abc import Mapping
from signal import Signals

ROWS: list[tuple[str, str, int, int, int]] = []
ANSWERS: dict[str, Counter[str]] = {}
GROWTH: list[tuple[str, int, list[list[float]]]] = []


def note(name: str, hits: Mapping[tuple[int, str], int], too_late: int, ended: int):
    """
    A scenario of signals.

    Args:
        hits (`dict`): how often which signal hit which target.
        too_late (`int`): signals that were sent to a run that had ended, or that ended all the same.
        ended (`int`): runs that came to their end, each of which was compared with an undisturbed one.
    """
    by_signal: Counter[str] = Counter()
    for (number, _), count in hits.items():
        by_signal[Signals(number).name] += count
    what = ", ".join(f"{count} {name}" for name, count in sorted(by_signal.items()))
    ROWS.append((name, what, sum(hits.values()), too_late, ended))


def note_damage(name: str, kinds: Mapping[str, int], survived: int):
    """A scenario of damage: how often which kind of it, and how often the end was that of an undamaged run."""
    what = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    ROWS.append((name, what, sum(kinds.values()), 0, survived))


def note_answers(place: str, answers: Mapping[str, int]):
    """Wrong values of a place: how often which answer was given."""
    ANSWERS.setdefault(place, Counter()).update(answers)


def note_growth(name: str, count: int, rows: list[list[float]]):
    """A scenario of long runs: memory in MB, open files, threads and processes at equal distances."""
    GROWTH.append((name, count, rows))


def growth_as_markdown() -> list[str]:
    parts = len(GROWTH[0][2]) if GROWTH else 0
    shares = " | ".join(f"{part + 1}/{parts}" for part in range(parts))
    lines = [f"| MB after | {shares} | open files | threads | processes |", "| --- |" + " ---: |" * (parts + 3)]
    for name, count, rows in GROWTH:
        memory = " | ".join(f"{row[0]:.1f}" for row in rows)
        others = " | ".join(f"{rows[0][i]:.0f} to {rows[-1][i]:.0f}" for i in (1, 2, 3))
        lines.append(f"| {count} {name} | {memory} | {others} |")
    return lines


def answers_as_markdown() -> list[str]:
    kinds = sorted({kind for answers in ANSWERS.values() for kind in answers}, reverse=True)
    lines = [f"| wrong values | {' | '.join(kinds)} |", "| --- |" + " ---: |" * len(kinds)]
    total = sum(ANSWERS.values(), Counter())
    for place, answers in {**ANSWERS, "together": total}.items():
        lines.append(f"| {place} | {' | '.join(str(answers[kind]) for kind in kinds)} |")
    return lines


def as_markdown() -> list[str]:
    lines = ["| what was disturbed | by | hits | too late | ended, and the same |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {name} | {what} | {hits} | {late} | {ended} |" for name, what, hits, late, ended in ROWS]
    return [*lines, f"| together | | {sum(row[2] for row in ROWS)} | {sum(row[3] for row in ROWS)} | |"]
