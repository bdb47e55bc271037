"""What stands in for torch's compiler until something is compiled. In processes of their own: others load it."""

import subprocess
import sys

import pytest

_LOADED = "'torch._dynamo.eval_frame' in sys.modules"
_BEGIN = """
import inspect, sys
import torch
from scaletrain.runtime.idle_compiler import stand_in_for_compiler
stand_in_for_compiler()
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
weight.sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
kept = torch.compiler.disable(max)
inspect.getmodule(inspect.stack()[0].frame)
x = torch.ones(3, requires_grad=True)
torch.utils.checkpoint.checkpoint(torch.exp, x, use_reentrant=False).sum().backward()
settings = torch._dynamo.config
"""


def told(script: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", _BEGIN + script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_an_optimizer_steps_without_it() -> None:
    assert told(f"print({_LOADED}, kept is max, weight[0].item() < 1)") == ["False", "True", "True"]


@pytest.mark.parametrize(
    "use",
    [
        "torch.compile(weight.exp, backend='eager')()",
        "torch._dynamo.reset()",
        "from torch._dynamo import reset",
        "import torch._inductor.config, torch._dynamo.utils",
    ],
)
def test_whatever_compiles_loads_it(use: str) -> None:
    then = f"""
{use}
real = sys.modules["torch._dynamo"]
print({_LOADED}, torch._dynamo is real, torch._dynamo.config is settings)
torch.compile(lambda x: x + 1, backend="eager", fullgraph=True)(torch.ones(1))
torch._dynamo.graph_break()
print(torch.compiler.disable(lambda x: x)(3))
"""
    assert told(then) == ["True", "True", "True", "3"]


def test_one_that_is_loaded_stays() -> None:
    assert told(
        "import torch._dynamo.config\nreal = torch._dynamo\nstand_in_for_compiler()\nprint(torch._dynamo is real)"
    ) == ["True"]
