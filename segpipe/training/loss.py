"""What the network is trained to make small: a term over regions and one over voxels, at several resolutions.

By default nnU-Net's soft Dice and cross-entropy with deep supervision (nnunetv2/training/loss). Only operations that
have a deterministic gradient on CUDA: classes are picked by a one-hot product, never by nll_loss, gather or an index.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid, max_pool2d, max_pool3d

from segpipe import plugins
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.params.train import Loss
from segpipe.training import target
from segpipe.training.check import class_weight_problems
from segpipe.training.target import Target

SMOOTH = 1e-5
SMALLEST_MISS = 1e-12  # (1 - p)^gamma has an infinite slope at p = 1 where gamma < 1


class SegmentationLoss:
    """`train.loss` of params.yaml: a scalar from the outputs of a network and a label.

    Each term is a mean over samples, so that the mean over the micro-batches of an accumulated step is that of the
    large batch. The one exception, a Dice over all samples of the batch, takes the sums of the other micro-batches.

    batch_dice : one region index per class over the whole batch instead of one per sample
    on : where the outputs will be, with which its own numbers have to be: what a step moves is compiled twice
    joint : whether the loss of a micro-batch depends on the others, so that `elsewhere` must be given

    Raises SegpipeError where class_weights names classes that do not exist, or leaves none to learn.
    """

    def __init__(self, settings: Loss, labels: Labels, batch_dice: bool, on: torch.device | None = None) -> None:
        self.settings, self.labels, self.batch_dice = settings, labels, batch_dice
        self.custom = None if settings.custom is None else plugins.load(settings.custom, "train.loss.custom")
        self.class_weights = _class_weights(settings.class_weights, labels, on)
        # here, not where it is used: the lock of a property that is cached then ends a compiled graph (Python 3.11)
        self.first_region = len(labels.heads) - len(labels.foreground)
        self.joint = batch_dice and settings.region_weight > 0 and self.custom is None

    def n_outputs(self, n_stages: int) -> int:
        """How many outputs of the decoder enter the loss, of a network of `n_stages` resolutions.

        Unless `deep_supervision` says so, all but the coarsest, to which nnU-Net gives the weight 0. Where the decoder
        has one stage only, that one counts (nnU-Net divides 0 by 0 there).

        Raises SegpipeError where there are more weights than outputs.
        """
        weights = self.settings.deep_supervision
        if weights is None:
            return max(n_stages - 2, 1)
        if len(weights) > n_stages - 1:
            raise SegpipeError(
                problem(
                    "more weights than the network has outputs",
                    where="params.yaml: train.loss.deep_supervision",
                    found=f"{len(weights)} weights: {weights}",
                    expected=f"at most {n_stages - 1}, one for each stage of the decoder, the finest first",
                    cure="remove the last ones",
                )
            )
        return len(weights)

    def weights(self, n_outputs: int) -> list[float]:
        """Of the outputs, the finest first; halved per resolution where the settings say nothing. The sum is 1."""
        weights = self.settings.deep_supervision or [0.5**i for i in range(n_outputs)]
        return [weight / sum(weights) for weight in weights]

    def __call__(
        self,
        outputs: Sequence[Tensor],
        label: Tensor,
        elsewhere: Sequence[Tensor] | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Weighted sum over the resolutions, a float32 scalar.

        outputs : logits (B, heads, ...) of any floating type, the finest first
        label : (B, ...) int64, at full resolution; where it is the ignore label nothing counts
        known : (B, heads) bool, the classes that a sample's case has annotations of. Of plain classes the others
            belong to the background, whose probability takes theirs in (Shi 2021, arXiv:2007.03868, marginal loss);
            regions that are not known are left out.
        elsewhere : sum of the `sums` of all other micro-batches of the same optimiser step, needed where `joint`. The
            loss is then that of all of them together, so the mean over micro-batches is as well. Its gradient goes
            through this micro-batch alone, times the number k of micro-batches: the mean of k such gradients, which
            is what (loss / k).backward() for each of them adds up to, is the gradient of the large batch.
        """
        others = [None] * len(outputs) if elsewhere is None else elsewhere
        terms = [
            weight * self._at_one_resolution(logits, downsampled(label, logits.shape[2:]), other, known)
            for weight, logits, other in zip(self.weights(len(outputs)), outputs, others, strict=True)
            if weight > 0
        ]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def sums(self, outputs: Sequence[Tensor], label: Tensor, known: Tensor | None = None) -> list[Tensor]:
        """For `elsewhere`: of each output the region sums of the micro-batch, and its number of samples.

        (4, foreground classes) float32: overlap, probability mass, reference voxels, samples. They may be added.
        """
        sums = []
        for logits in outputs:
            aim = target.of(downsampled(label, logits.shape[2:]), self.labels, known)
            region = self._region_sums(self._log_probabilities(logits, aim)[0], aim).sum(1)
            sums.append(torch.cat([region, torch.full_like(region[:1], len(logits))]))
        return sums

    def _at_one_resolution(self, logits: Tensor, label: Tensor, others: Tensor | None, known: Tensor | None) -> Tensor:
        """A float32 scalar. logits : (B, heads, ...); label : (B, ...); others : (4, foreground classes) or None"""
        if self.custom is not None:
            return _scalar(self.custom(logits.float(), label))
        aim = target.of(label, self.labels, known)
        log_p, log_not_p = self._log_probabilities(logits, aim)
        loss = log_p.new_zeros(())
        if self.settings.region_weight > 0:
            loss = loss + self.settings.region_weight * self._region(log_p, aim, others)
        if self.settings.voxel_weight > 0:
            entropy = _entropy(log_p, log_not_p, aim)
            loss = loss + self.settings.voxel_weight * self._voxel(entropy, label, aim)
        return loss

    def _log_probabilities(self, logits: Tensor, aim: Target) -> tuple[Tensor, Tensor | None]:
        """Of being in each class, and of regions also of being outside; both (B, heads, voxels) float32."""
        scores = logits.float().flatten(2)
        if self.labels.has_regions:
            return logsigmoid(scores), logsigmoid(-scores)
        log_p = log_softmax(scores, 1)
        if aim.known is None:
            return log_p, None
        in_background = aim.known[:, 1:, None] == 0
        merged = torch.cat([log_p[:, :1], log_p[:, 1:].masked_fill(~in_background, -math.inf)], 1).logsumexp(1, True)
        return torch.cat([merged, log_p[:, 1:]], 1), None

    def _region_sums(self, log_p: Tensor, aim: Target) -> Tensor:
        """(3, B, foreground classes): overlap, probability mass and reference voxels, of what is annotated."""
        first = self.first_region
        probability, reference = log_p[:, first:].exp(), aim.reference[:, first:]
        if aim.inside is not None:
            probability, reference = probability * aim.inside[:, None], reference * aim.inside[:, None]
        sums = torch.stack([(probability * reference).sum(2), probability.sum(2), reference.sum(2)])
        return sums if aim.known is None else sums * aim.known[:, first:]

    def _region(self, log_p: Tensor, aim: Target, others: Tensor | None) -> Tensor:
        """Minus the mean Tversky index of the foreground classes (Salehi 2017, arXiv:1706.05721), or minus the Dice.

        With the smoothing of nnunetv2/training/loss/dice.py: (2 overlap + s) / (mass + reference + s), which is the
        index where false positives and false negatives weigh 1/2 each.
        """
        sums = self._region_sums(log_p, aim)
        if self.batch_dice:
            sums = sums.sum(1)
            if others is not None:
                sums = _together(sums, len(log_p), others)
        tversky = self.settings.region == "tversky"
        alpha, beta = (self.settings.tversky_alpha, self.settings.tversky_beta) if tversky else (0.5, 0.5)
        overlap, mass, voxels = sums
        # overlap + alpha * (mass - overlap) + beta * (voxels - overlap), twice
        size = (2 - 2 * alpha - 2 * beta) * overlap + 2 * alpha * mass + 2 * beta * voxels
        index = (2 * overlap + SMOOTH) / (size + SMOOTH)
        if self.class_weights is None and aim.known is None:
            return -index.mean()
        weights = torch.ones_like(index)
        if self.class_weights is not None:
            weights = weights * self.class_weights[-index.shape[-1] :]
        if aim.known is not None and not self.batch_dice:
            weights = weights * aim.known[:, -index.shape[-1] :]
        return -((index * weights).sum(-1) / weights.sum(-1).clamp_min(SMOOTH)).mean()

    def _voxel(self, entropy: Tensor, label: Tensor, aim: Target) -> Tensor:
        """Mean over all annotated voxels of the weighted cost, sample by sample; their number divides, not the sum of
        the weights.

        entropy : (B, 1 or regions, voxels), plain cross-entropy, by which topk chooses before any weight
        label : (B, ...)
        """
        cost = focal(entropy, self.settings.focal_gamma) if self.settings.voxel == "focal" else entropy
        if self.class_weights is not None:
            cost = cost * self._weights_of(label)
        cost = cost.mean(1) if self.labels.has_regions else cost.squeeze(1)
        if self.settings.voxel == "topk":
            cost = cost * hardest(entropy.mean(1), self.settings.topk_percent, aim.inside)
        if self.settings.boundary_weight > 0:
            near = near_border(label, self.settings.boundary_width, self.labels.ignore).flatten(1)
            cost = cost * (1 + self.settings.boundary_weight * near)
        if aim.inside is None:
            return cost.mean()
        return (cost.sum(1) / aim.inside.sum(1).clamp_min(1)).mean()

    def _weights_of(self, label: Tensor) -> Tensor:
        """The weight of each voxel's class (B, 1, voxels), or of each region (1, regions, 1)."""
        assert self.class_weights is not None
        if self.labels.has_regions:
            return self.class_weights.view(1, -1, 1)
        return self.class_weights[label.flatten(1).clamp_max(len(self.class_weights) - 1)][:, None]


def downsampled(label: Tensor, shape: Sequence[int]) -> Tensor:
    """The label at a coarser resolution: the voxel at the middle of each block ("nearest-exact")."""
    for axis, n in enumerate(shape, start=1):
        step = label.shape[axis] // n
        label = label[(slice(None),) * axis + (slice(step // 2, None, step),)]
    return label


def focal(entropy: Tensor, gamma: float) -> Tensor:
    """Cross-entropy times (1 - p)^gamma (Lin 2017, arXiv:1708.02002), where p is exp(-entropy)."""
    return (-torch.expm1(-entropy)).clamp_min(SMALLEST_MISS) ** gamma * entropy


@torch.no_grad()
def hardest(entropy: Tensor, percent: float, inside: Tensor | None = None) -> Tensor:
    """Weights that turn the mean of a sample into the mean of its hardest voxels, k of n: n / k for them, else 0.

    nnunetv2/training/loss/robust_ce_loss.py, but per sample, not over the batch. The voxels that tie for the last
    places share them, so neither value nor gradient depends on an order.

    entropy : (B, voxels); so is the result
    inside : (B, voxels), 1 for the n voxels that are annotated; the entropy of the others is 0, so they are not chosen
    """
    if inside is None:
        n: Tensor | int = entropy.shape[1]
        k: Tensor | int = max(int(entropy.shape[1] * percent / 100), 1)
        least = entropy.topk(int(k), sorted=False).values.amin(1, keepdim=True)
    else:  # as many as the sample has: read off the sorted row, which waits for no device
        n = inside.sum(1, keepdim=True)
        k = (n * percent / 100).floor().clamp_min(1)
        descending = entropy.sort(1, descending=True).values
        least = (descending * (torch.arange(1, descending.shape[1] + 1, device=entropy.device) == k)).sum(1, True)
    above, tied = entropy > least, entropy == least
    share = (k - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)
    return (above + share * tied) * (n / k)


def near_border(label: Tensor, width: int, ignore: int | None = None) -> Tensor:
    """Voxels with another label at most `width` voxels away along each axis. (B, ...) integers to (B, ...) bool

    ignore : a value that is no other label, because nobody knows what is there
    """
    pool = max_pool3d if label.ndim == 4 else max_pool2d
    values = label.float()
    ends = torch.stack([values, -values], 1)  # the highest label and minus the lowest
    if ignore is not None:
        ends = ends.masked_fill((label == ignore)[:, None], -math.inf)
    for axis in range(label.ndim - 1):  # a maximum over a box, one axis after the other
        width_here = [width if other == axis else 0 for other in range(label.ndim - 1)]
        ends = pool(ends, [2 * w + 1 for w in width_here], 1, width_here)
    return ends.sum(1) > 0


def _entropy(log_p: Tensor, log_not_p: Tensor | None, aim: Target) -> Tensor:
    """Cross-entropy of each voxel, (B, 1, voxels), or of each voxel and region; 0 where nobody annotated."""
    if log_not_p is None:
        entropy = -(log_p * aim.reference).sum(1, keepdim=True)
    else:
        entropy = -(log_p * aim.reference + log_not_p * (1 - aim.reference))
        if aim.known is not None:
            entropy = entropy * aim.known[..., None]
    return entropy if aim.inside is None else entropy * aim.inside[:, None]


def _together(own: Tensor, n_samples: int, others: Tensor) -> Tensor:
    """Region sums of all micro-batches, with the gradient of our own times the number of micro-batches.

    own : (3, foreground classes); others : (4, foreground classes), the last row counts samples
    """
    n_batches = 1 + others[3] / n_samples
    return others[:3] + own.detach() + n_batches * (own - own.detach())


def _scalar(value: object) -> Tensor:
    if isinstance(value, Tensor) and value.ndim == 0:
        return value
    raise SegpipeError(
        problem(
            "the loss is not a number",
            where="params.yaml: train.loss.custom",
            found=f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__,
            expected="a tensor of shape (), from logits (B, classes, ...) and a label (B, ...)",
            cure="reduce it, with .mean() say; docs/extending.md has an example",
        )
    )


def _class_weights(named: Mapping[str, float] | None, labels: Labels, on: torch.device | None) -> Tensor | None:
    """(classes,) float32 in the order of the values; None where all are 1."""
    if named is None:
        return None
    raise_all("params.yaml does not fit the dataset", class_weight_problems(named, labels))
    return torch.tensor([named.get(name, 1.0) for name in labels.heads], device=on)
