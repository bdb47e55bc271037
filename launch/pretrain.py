"""One rank of a pretraining run, under any launcher: python launch/pretrain.py RECIPE [section.key=value ...]."""

import sys

sys.dont_write_bytecode = False  # without .pyc files each start compiles torch and DeepSpeed anew: ten seconds

from scaletrain.runtime.stop import remember_warning

remember_warning()  # the imports below take seconds

from scaletrain.commands.train import main
from scaletrain.runtime.exit_report import report_exit
from scaletrain.runtime.log import leave

if __name__ == "__main__":
    leave(report_exit(main("pretrain", sys.argv[1:])))
