"""Steps of learning, which every block must be able to take from its initial state."""

import torch
from torch import nn
from torch.nn import functional as F


def learn(block: nn.Module, x: torch.Tensor, target: torch.Tensor, lr: float, steps: int) -> None:
    """Gradient descent on the squared error; asserts that it gets smaller. The last gradients stay."""
    optimizer = torch.optim.SGD(block.parameters(), lr)
    losses = []
    for _ in range(steps):
        loss = F.mse_loss(block(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1e-4, losses
