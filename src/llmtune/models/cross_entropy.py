"""Cross-entropy of a block of logits and its gradient in one go, as a plain function of tensors."""

import torch


def cross_entropy_with_gradient(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of a block of positions, and the gradient of each in the place of its logits.

    Args:
        logits: [N, V]; overwritten.
        targets: int64 [N], each in 0 to V - 1.

    Returns:
        The losses [N] in nats, float32 (float64 for float64 logits), and softmax(logits) - one_hot(targets), [N, V], in
        the logits' type and memory.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    at = targets[:, None]
    largest = wide.amax(1, keepdim=True)
    # From the largest, so that a sure position's small loss isn't a difference of large numbers.
    below = largest - wide.gather(1, at)
    likelihoods = wide.sub_(largest).exp_()
    total = likelihoods.sum(1, keepdim=True)
    losses = total.log() + below
    probabilities = likelihoods.div_(total)
    gradient = probabilities.scatter_(1, at, probabilities.gather(1, at) - 1)
    return losses.squeeze(1), gradient if gradient.dtype == logits.dtype else logits.copy_(gradient)
