"""What a prompt is made of: embeddings that are parameters, or that an encoder computes from parameters."""

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

Encoder = Literal["none", "mlp", "lstm"]


class PromptEmbeddings(nn.Module):
    """A prompt that is its parameters, [length, embedding size].

    Args:
        start: Values to start from; taken over, not copied.
    """

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(start)

    @classmethod
    def sampled(cls, table: nn.Module, length: int) -> "PromptEmbeddings":
        """Start as random rows of a model's own table of tokens."""
        weight = table.weight
        assert isinstance(weight, torch.Tensor)
        rows = torch.randint(weight.shape[0], (length,)).to(weight.device)
        with torch.no_grad():
            return cls(table(rows).clone())  # through the module: some models scale what they read

    @classmethod
    def uniform(cls, length: int, width: int, *, patch_numbers: int) -> "PromptEmbeddings":
        """Start at random, as large as a patch projection starts.

        Args:
            length: Tokens.
            width: Numbers in each.
            patch_numbers: Numbers in a patch of the image: pixels x channels.

        Source: Jia et al. 2022 (arXiv:2203.12119), xavier uniform as in their code.
        """
        bound = math.sqrt(6 / (patch_numbers + width))
        return cls(torch.empty(length, width).uniform_(-bound, bound))

    def forward(self) -> torch.Tensor:
        """Return the prompt."""
        return self.embeddings


class EncodedPrompt(nn.Module):
    """A prompt that an encoder computes from embeddings E, both [length, embedding size].

    `mlp`: three linear maps with ReLU between them, for each position by itself. `lstm`: a bidirectional LSTM of
    two layers over the positions, and two linear maps with ReLU between them.

    Source: Liu et al. 2021 (arXiv:2103.10385), the prompt encoder: h_i = MLP([LSTM(h_0:i) : LSTM(h_i:m)]).
        Sizes, and the encoder without an LSTM, are those of stock peft's `PromptEncoder`.
    """

    def __init__(self, length: int, width: int, *, encoder: Literal["mlp", "lstm"], hidden_size: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(length, width))
        self.lstm: nn.LSTM | None = None
        if encoder == "lstm":
            self.lstm = nn.LSTM(width, hidden_size, num_layers=2, bidirectional=True)
            self.mlp = _perceptron(2 * hidden_size, 2 * hidden_size, width)
        else:
            self.mlp = _perceptron(width, hidden_size, hidden_size, width)

    def forward(self) -> torch.Tensor:
        """Return the prompt; always computed in fp32, so that it is the same wherever it is read."""
        device = self.embeddings.device.type
        hidden: torch.Tensor = self.embeddings
        with torch.autocast(device if torch.amp.is_autocast_available(device) else "cpu", enabled=False):
            if self.lstm is not None:
                hidden, _ = self.lstm(hidden)
            encoded: torch.Tensor = self.mlp(hidden)
        return encoded

    def folded(self) -> PromptEmbeddings:
        """Return the prompt as it is computed now: the encoder is of no use after the training."""
        if self.embeddings.is_meta:  # all that is there to know is the shape
            return PromptEmbeddings(torch.empty_like(self.embeddings))
        with torch.no_grad():
            return PromptEmbeddings(self().clone())


def _perceptron(*sizes: int) -> nn.Sequential:
    maps: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        maps += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*maps[:-1])
