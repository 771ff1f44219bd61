"""What tests of methods share: a learner of one domain, and a model with more than layers of its own."""

from torch import nn


class Alone:
    stage, seed, domains = 2, 3, (None,)

    def private(self, domain):
        return set()

    foreign = private


class Raw(nn.Module):
    """An attention's projections in a parameter without a layer, an embedding, a convolution, and batch statistics."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.convolution = nn.Conv1d(4, 4, 3)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, tokens):
        embedded = self.embedding(tokens)
        attended, _ = self.attention(embedded, embedded, embedded)
        return self.norm(self.convolution(attended.transpose(1, 2)))
