"""One rank of a pretraining run: deepspeed | torchrun | python launch/pretrain.py RECIPE [section.key=value ...]."""

import sys

sys.dont_write_bytecode = False  # without .pyc files each start compiles torch and DeepSpeed anew: ten seconds

from scaletrain.commands.pretrain import main
from scaletrain.runtime.exit_report import report_exit
from scaletrain.runtime.log import leave

if __name__ == "__main__":
    leave(report_exit(main(sys.argv[1:])))
