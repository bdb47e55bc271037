"""Tags of a sentence that depend on each other: a linear-chain conditional random field (Lafferty et al. 2001).

The score of a path is start[first tag] + emissions of its tags + transitions[tag, next tag] + end[last tag]; its
probability is exp(score) over the sum of exp(score) of all paths.

B: sentences. T: words. C: tags. A mask is true at the words, which come first; emissions and tags at other places are
not read. A sentence without words has the empty path, with probability 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaletrain.model.init import Gather, whole_parameter

INITIAL_RANGE = 0.1  # as pytorch-crf and AllenNLP begin


class Forbidden(NamedTuple):
    """Steps that no decoded path takes; true: forbidden."""

    first: Tensor
    """(C,): tags that begin no sentence."""
    following: Tensor
    """(C, C): [tag, next tag]."""


def forbidden_in_bio(tags: Sequence[str]) -> Forbidden:
    """I-X stands after B-X and I-X only."""
    following = torch.tensor([[b.startswith("I-") and a not in (b, "B-" + b[2:]) for b in tags] for a in tags])
    return Forbidden(torch.tensor([tag.startswith("I-") for tag in tags]), following)


class CRF(nn.Module):
    """Its parameters have no values before `reset`. It computes in float32 whatever the emissions are, or in float64.

    A model calls the module (`forward`) and not its methods: under ZeRO-3 the parameters are there in `forward` only.
    """

    def __init__(self, num_tags: int) -> None:
        super().__init__()
        self.start_C = nn.Parameter(torch.empty(num_tags))
        self.end_C = nn.Parameter(torch.empty(num_tags))
        self.transitions_CC = nn.Parameter(torch.empty(num_tags, num_tags))  # [tag, next tag]

    @torch.no_grad()
    def reset(self, generator: torch.Generator, gather: Gather = whole_parameter) -> None:
        """Draws initial values from a generator of the CPU. All ranks call it, with equal generators."""
        for parameter in self.parameters():
            with gather(parameter) as writes:
                drawn = torch.empty(parameter.shape).uniform_(-INITIAL_RANGE, INITIAL_RANGE, generator=generator)
                if writes:
                    parameter.copy_(drawn)

    def forward(
        self, emissions_BTC: Tensor, mask_BT: Tensor, tags_BT: Tensor | None = None, forbidden: Forbidden | None = None
    ) -> Tensor | list[list[int]]:
        """With tags `negative_log_likelihood`, without them `decode`."""
        if tags_BT is None:
            return self.decode(emissions_BTC, mask_BT, forbidden)
        return self.negative_log_likelihood(emissions_BTC, tags_BT, mask_BT)

    def negative_log_likelihood(self, emissions_BTC: Tensor, tags_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """(B,): -log of the probability of each sentence's tags, in nats; differentiable."""
        emissions_BTC, mask_BT = _prepare(emissions_BTC, mask_BT)
        score_B = self._path_score(emissions_BTC, tags_BT, mask_BT)
        return torch.where(mask_BT.any(1), self._log_partition(emissions_BTC, mask_BT) - score_B, 0.0)

    def probability(self, emissions_BTC: Tensor, tags_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """(B,): the probability of each sentence's tags: how sure the model is of a decoded path."""
        return torch.exp(-self.negative_log_likelihood(emissions_BTC, tags_BT, mask_BT))

    @torch.no_grad()
    def marginals(self, emissions_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, C): the probability that a word has a tag, over all paths; 0 where there is no word."""
        num_words = mask_BT.shape[1]
        emissions_BTC, mask_BT = _prepare(emissions_BTC, mask_BT)
        _, end_C, transitions_CC = self._weights(emissions_BTC)
        before = self._prefix_scores(emissions_BTC, mask_BT)
        after = [end_C.expand_as(before[0])]  # at [b, c]: log sum over what may follow tag c
        for t in range(emissions_BTC.shape[1] - 1, 0, -1):
            follows_BC = after[0] + emissions_BTC[:, t]
            steps_BC = torch.logsumexp(transitions_CC + follows_BC[:, None, :], dim=2)
            after.insert(0, torch.where(mask_BT[:, t, None], steps_BC, after[0]))
        joint_BTC = torch.stack(before, 1) + torch.stack(after, 1)
        return (joint_BTC.softmax(-1) * mask_BT[..., None])[:, :num_words]

    @torch.no_grad()
    def decode(self, emissions_BTC: Tensor, mask_BT: Tensor, forbidden: Forbidden | None = None) -> list[list[int]]:
        """The likeliest path of each sentence (Viterbi) among those that take no forbidden step."""
        emissions_BTC, mask_BT = _prepare(emissions_BTC, mask_BT)
        start_C, end_C, transitions_CC = self._weights(emissions_BTC)
        if forbidden is not None:
            start_C = start_C.masked_fill(forbidden.first.to(start_C.device), -torch.inf)
            transitions_CC = transitions_CC.masked_fill(forbidden.following.to(start_C.device), -torch.inf)
        best_BC = start_C + emissions_BTC[:, 0]
        stay_BC = torch.arange(len(start_C), device=start_C.device).expand_as(best_BC)
        previous: list[Tensor] = []  # at [b, c]: the tag before tag c on the best path to it
        for t in range(1, emissions_BTC.shape[1]):
            step_BC, from_BC = (best_BC[:, :, None] + transitions_CC).max(dim=1)
            here_B1 = mask_BT[:, t, None]
            best_BC = torch.where(here_B1, step_BC + emissions_BTC[:, t], best_BC)
            previous.append(torch.where(here_B1, from_BC, stay_BC))
        path = [(best_BC + end_C).argmax(1)]
        for from_BC in reversed(previous):
            path.append(from_BC.gather(1, path[-1][:, None])[:, 0])
        tags_BT, lengths_B = torch.stack(path[::-1], 1).tolist(), mask_BT.sum(1).tolist()
        return [tags[:length] for tags, length in zip(tags_BT, lengths_B, strict=True)]

    def _weights(self, emissions_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = emissions_BTC.dtype
        return self.start_C.to(dtype), self.end_C.to(dtype), self.transitions_CC.to(dtype)

    def _path_score(self, emissions_BTC: Tensor, tags_BT: Tensor, mask_BT: Tensor) -> Tensor:
        start_C, end_C, transitions_CC = self._weights(emissions_BTC)
        tags_BT = F.pad(tags_BT, (0, mask_BT.shape[1] - tags_BT.shape[1])).masked_fill(~mask_BT, 0)
        emitted_BT = emissions_BTC.gather(2, tags_BT[..., None])[..., 0]
        steps_BT = transitions_CC[tags_BT[:, :-1], tags_BT[:, 1:]].masked_fill(~mask_BT[:, 1:], 0.0)
        last_B1 = (mask_BT.sum(1, keepdim=True) - 1).clamp(min=0)
        ends_B = end_C[tags_BT.gather(1, last_B1)[:, 0]]
        return start_C[tags_BT[:, 0]] + emitted_BT.sum(1) + steps_BT.sum(1) + ends_B

    def _log_partition(self, emissions_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        _, end_C, _ = self._weights(emissions_BTC)
        return torch.logsumexp(self._prefix_scores(emissions_BTC, mask_BT)[-1] + end_C, dim=1)

    def _prefix_scores(self, emissions_BTC: Tensor, mask_BT: Tensor) -> list[Tensor]:
        """For each word (B, C): log of the sum of exp(score) over the paths up to it that end in a tag."""
        start_C, _, transitions_CC = self._weights(emissions_BTC)
        sums = [start_C + emissions_BTC[:, 0]]
        for t in range(1, emissions_BTC.shape[1]):
            steps_BC = torch.logsumexp(sums[-1][:, :, None] + transitions_CC, dim=1) + emissions_BTC[:, t]
            sums.append(torch.where(mask_BT[:, t, None], steps_BC, sums[-1]))
        return sums


def _prepare(emissions_BTC: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Emissions in at least float32 and 0 where there is no word (0 x nan would reach the gradients), and at least one
    place, so that a batch without any word still gives every parameter a gradient, of 0.
    """
    missing = 1 if mask_BT.shape[1] == 0 else 0
    mask_BT = F.pad(mask_BT.bool(), (0, missing))
    emissions_BTC = F.pad(emissions_BTC, (0, 0, 0, missing))
    dtype = torch.promote_types(emissions_BTC.dtype, torch.float32)
    return emissions_BTC.to(dtype).masked_fill(~mask_BT[..., None], 0.0), mask_BT
