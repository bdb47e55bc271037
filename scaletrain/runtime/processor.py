"""What Linux tells of this machine's processor; nothing elsewhere. No torch."""

from pathlib import Path


def facts() -> dict[str, str]:
    """/proc/cpuinfo, of the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.partition("\n\n")[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def flags() -> frozenset[str]:
    """Which instructions it has: x86's flags, ARM's features."""
    told = facts()
    return frozenset(told.get("flags", told.get("Features", "")).split())
