"""What a doctor says: how bad it is, what is wrong, where, and how to mend it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["fail", "warn", "note"]
_ORDER: dict[Severity, int] = {"fail": 0, "warn": 1, "note": 2}
_MOST_NAMED = 8  # nodes in a line


@dataclass(frozen=True)
class Finding:
    """One thing about one node; `node` is empty where it concerns them all, `place` where no device or path is meant.

    fail: a run here would not start, would fail or would train wrong. warn: it would be slow or is at risk.
    """

    severity: Severity
    check: str
    what: str
    remedy: str = ""
    node: str = ""
    place: str = ""

    @property
    def text(self) -> str:
        """What and how to mend it, without the node."""
        place = f"{self.place}: " if self.place else ""
        return f"{place}{self.what}{f': {self.remedy}' if self.remedy else ''}"


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, otherwise in their order."""
    return sorted(findings, key=lambda finding: _ORDER[finding.severity])


def lines(findings: Iterable[Finding]) -> list[str]:
    """A line each, the worst first; what is the same on several nodes is told once."""
    together: dict[tuple[Severity, str], list[str]] = {}
    for finding in by_severity(findings):
        together.setdefault((finding.severity, finding.text), []).append(finding.node)
    return [
        f"{severity:<7} {f'{named(nodes)}: ' if any(nodes) else ''}{text}"
        for (severity, text), nodes in together.items()
    ]


def named(nodes: Iterable[str]) -> str:
    """Names in a row, cut where there are many."""
    names = list(nodes)
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def bad_nodes(findings: Iterable[Finding], nodes: Sequence[str]) -> list[str]:
    """Those of `nodes` that a run has to do without. What fails alike on all is mended on no node by leaving it out."""
    failing = [finding for finding in findings if finding.severity == "fail" and finding.node]
    texts: dict[str, set[str]] = {}
    for finding in failing:
        texts.setdefault(finding.text, set()).add(finding.node)
    bad = {f.node for f in failing if len(nodes) < 2 or len(texts[f.text]) < len(nodes)}
    return [node for node in nodes if node in bad]
