"""torchrun, quiet where its ranks have said all: `python -m scaletrain.runtime.torchrun`, with torchrun's arguments.

torchrun ends with a traceback and a table of its ranks whatever they ended with. A fault of the input (2) and a stop on
request (75) are told by a rank in one line, which would stand above all that. Another death leaves the table.
"""

import logging
import os
import sys
from collections.abc import Sequence

from scaletrain.errors import EXIT_STOPPED, EXIT_USER

_LOGGERS = ("multiprocessing.api", "agent.server.api")  # they tell of ends what the table tells, or a rank


def main(arguments: Sequence[str]) -> int:
    """The exit code: the ranks' own where they ended with 2 or 75."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's own default, but for eight lines that tell it
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in _LOGGERS:
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    try:
        run.main(list(arguments))
    except ChildFailedError as error:
        code = exit_code([failure.exitcode for failure in error.failures.values()])
        if code is None:
            print(error, file=sys.stderr)
        return 1 if code is None else code
    return 0


def exit_code(codes: Sequence[int]) -> int | None:
    """What ranks that ended with `codes` tell alike; None where one died. Beside a fault that one has told the others
    may be ended by the launcher."""
    if EXIT_USER in codes:
        return EXIT_USER
    return EXIT_STOPPED if codes and set(codes) == {EXIT_STOPPED} else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
