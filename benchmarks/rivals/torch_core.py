"""nanochat's loop over the examples of CORE in torch: the competitor.

As nanochat/core_eval.py does (commit 92d63d4): one example at a time, all its rows from their
beginning, padded to the longest, with the logits, the losses and the likeliest token of every
position. Its network sees ten times the context, as nanochat's rotary tables reach so far.
"""

from collections.abc import Mapping

import numpy.typing as npt
import torch
from torch.nn import functional

from mlxchat.evaluate.answers import padded
from mlxchat.evaluate.core_prompts import CoreExample
from mlxchat.model.config import GPTConfig
from rivals.torch_classic import GPT
from rivals.torch_parts import best_device, dtype_on

LONGER = 10  # times the context


class Judge:
    """A model that says which examples it gets right.

    Args:
        config: the shape of a classic network.
        weights: its parameters by name, in float32.
    """

    def __init__(self, config: GPTConfig, weights: Mapping[str, npt.NDArray]) -> None:
        self.device = best_device()
        longer = config.model_copy(update={"sequence_len": LONGER * config.sequence_len})
        self.model = GPT(longer)
        self.model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
        self.model.to(self.device, dtype_on(self.device)).eval()
        self.vocab_size = config.vocab_size

    @torch.no_grad()
    def is_right(self, example: CoreExample, padding: int) -> bool:
        """Whether an example is right, from the logits of all positions."""
        rows = example.rows
        ids = torch.tensor(padded([row.ids for row in rows], padding)).long().to(self.device)
        logits = self.model(ids)[..., : self.vocab_size]  # (B, T, V)
        targets = torch.roll(ids, -1, dims=1)
        losses = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none"
        ).view_as(ids)
        likeliest = logits.argmax(dim=-1)
        if example.gold is None:
            [row] = rows
            predicted = likeliest[0, row.start - 1 : row.end - 1]
            return bool(torch.all(predicted == ids[0, row.start : row.end]).item())
        means = [losses[n, r.start - 1 : r.end - 1].mean().item() for n, r in enumerate(rows)]
        return means.index(min(means)) == example.gold
