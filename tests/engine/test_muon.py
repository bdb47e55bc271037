"""Muon at every ZeRO stage: the steps of a bare loop, on any ranks, and a state that is saved, cut and read again."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from scaletrain.config.schema import Optim
from scaletrain.data.order import Order
from scaletrain.engine import checkpoint
from scaletrain.engine.checkpoint import Identity
from scaletrain.engine.engine import Engine
from scaletrain.engine.state import RunState
from scaletrain.engine.state_files import StateFiles
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.optim.schedule import lr_at
from tests.engine.tiny import VOCAB, TinyTask
from tests.engine.training import TOTAL_STEPS, engine_dict, largest_difference, train
from tests.ranks import run_ranks

OPTIM = Optim(name="muon", lr=2e-3, warmup_steps=5, grad_clip=0.5, weight_decay=0.3)
STAGES = (0, 1, 2, 3)


class Layered(nn.Module):
    """Two layers whose matrices, wide and tall, no two ranks can share out without cutting one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 16)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 27), nn.GELU(), nn.Linear(27, 16)) for _ in range(2))
        self.head = nn.Linear(16, VOCAB)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


class LayeredTask(TinyTask):
    def build_model(self) -> nn.Module:
        return Layered()
def each(root: str):
    return {(p,s,a): train(s,p,LayeredTask(),optim=OPTIM,accumulation=a) for p in ("fp32","bf16") for s in STAGES for a in (1,2)}

def plain():
    from contextlib import nullcontext
    task = LayeredTask(); rows = task.rows("train"); order = Order(np.array([len(rows)]), seed=1)
    model = task.build_model(); task.initialise(model, lambda p: nullcontext(True))
    names = dict(model.named_parameters())
    mats = [p for n,p in names.items() if n.startswith("layers") and p.ndim==2]
    dec = [names["head.weight"]]
    rest = [p for p in names.values() if not any(p is q for q in mats+dec)]
    adam = torch.optim.AdamW([{"params":dec,"weight_decay":0.3},{"params":rest,"weight_decay":0.0}], betas=OPTIM.betas, eps=OPTIM.eps)
    buf = {id(p): torch.zeros_like(p) for p in mats}
    losses=[]
    for step in range(20):
        batch = rows.fetch(order.ids(step*8,8))
        loss = task.loss_sums(model,batch)["loss"]/task.weight(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), OPTIM.grad_clip)
        lr = lr_at(step, OPTIM, TOTAL_STEPS)
        for g in adam.param_groups: g["lr"]=lr
        with torch.no_grad():
            for p in mats:
                b = buf[id(p)]; b.mul_(0.95).add_(0.05*p.grad); u = 0.05*p.grad+0.95*b
                x = u/u.norm()
                for _ in range(5):
                    a = x@x.T
                    x = 3.4445*x + (-4.7750*a + 2.0315*a@a)@x
                p.mul_(1-lr*0.3).sub_(lr*0.2*math.sqrt(max(p.shape))*x); p.grad=None
        adam.step(); adam.zero_grad(); losses.append(loss.item())
    return losses

if __name__ == "__main__":
    ref = plain(); print(ref)
    for r in (1,2):
        out = run_ranks(each, r, "")[0]
        for k,v in out.items(): print(r,k,largest_difference(v,ref))
