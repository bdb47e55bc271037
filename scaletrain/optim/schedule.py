"""The learning rate at a step: a pure function, so that a resumed run needs no scheduler state."""

import math

from scaletrain.config.schema import Optim


def warmup_steps(optim: Optim, total_steps: int) -> int:
    """Steps of linear warm-up: as given, or 1% of the run but at least 10, and never longer than the run."""
    wanted = optim.warmup_steps if optim.warmup_steps is not None else max(10, total_steps // 100)
    return min(wanted, total_steps)


def lr_at(step: int, optim: Optim, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (0 is the first) in a run of `total_steps`.

    Linear warm-up to `lr` (step 0 takes lr / warmup, so that no step is lost), then the schedule down to
    lr * min_lr_ratio: cosine (Loshchilov and Hutter 2017), linear, wsd (constant, then linear over the last
    decay_ratio of the run: Hu et al. 2024), constant, inverse_sqrt (Vaswani et al. 2017: lr * sqrt(warmup / step)).
    """
    warmup = warmup_steps(optim, total_steps)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    floor = optim.lr * optim.min_lr_ratio
    span = max(1, total_steps - warmup)
    done = min(1.0, (step - warmup) / span)
    match optim.schedule:
        case "cosine":
            return floor + (optim.lr - floor) * 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return optim.lr + (floor - optim.lr) * done
        case "wsd":
            decay = max(1, min(span, round(total_steps * optim.decay_ratio)))
            into = max(0, step - (total_steps - decay))
            return optim.lr + (floor - optim.lr) * min(1.0, into / decay)
        case "constant":
            return optim.lr
        case "inverse_sqrt":
            return max(floor, optim.lr * math.sqrt(max(1, warmup) / (step + 1)))
