"""What became slower between two results of any benchmark here, beyond the noise.

    python benchmarks/against.py OLD.json NEW.json

Rows with the same name are compared, by all their figures in seconds or a second. Exit code 1 when one is slower.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.grid import earlier
from benchmarks.record import against


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("old", "new"):
        parser.add_argument(name, type=earlier, metavar=f"{name.upper()}.json")
    args = parser.parse_args()
    old: Path = args.old
    lines = against(old, args.new)
    print("\n".join(lines) or "nothing is slower beyond the noise")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
