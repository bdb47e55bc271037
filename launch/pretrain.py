"""One rank of a pretraining run, under any launcher: python launch/pretrain.py RECIPE [section.key=value ...]."""

import sys

sys.dont_write_bytecode = False  # without .pyc files each start compiles torch and DeepSpeed anew: ten seconds

try:
    from scaletrain.runtime.stop import remember_warning
except ModuleNotFoundError as error:
    print(f"error: {sys.executable} has no {error.name}: first run `source .venv/bin/activate`", file=sys.stderr)
    sys.exit(2)
remember_warning()  # the imports below take seconds

from scaletrain.commands.train import main
from scaletrain.runtime.exit_report import report_exit
from scaletrain.runtime.log import leave

if __name__ == "__main__":
    leave(report_exit(main("pretrain", sys.argv[1:])))
