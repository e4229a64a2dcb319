"""A loss that wrong labels mislead less, for annotations of mixed quality."""

from torch import Tensor
from torch.nn.functional import log_softmax

Q = 0.7  # towards 0 it is the cross-entropy, at 1 it is 1 - p


def generalised_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean of (1 - p^Q) / Q, p being the probability of the labelled class (Zhang and Sabuncu 2018).

    logits : (B, classes, ...) float; label : (B, ...) int64
    """
    log_p = log_softmax(logits.float(), 1).gather(1, label[:, None])
    return ((1 - (Q * log_p).exp()) / Q).mean()
