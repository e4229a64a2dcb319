"""How sure an ensemble is of a voxel, and how far its members disagree there.

Members are folds, configurations, or both; one at a time is in memory. The entropy of their mean is what is unsure in
all; the mean of their entropies is what each member is unsure of by itself; the difference, their mutual information,
is what they disagree about (Smith and Gal 2018, arXiv:1803.08533). In shares of the largest entropy there is: log of
the number of classes, or log 2 for a region.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Disagreement:
    """Gathers the probabilities of one member after the other, of a volume or a block of it.

    shape : (Z, Y, X) of the block, or any other; n_heads : outputs of the network
    has_regions : whether the heads are regions, which are sure or not by themselves: of a voxel the most unsure counts
    Holds float32 sums, as many as a member has probabilities and once more for plain classes' entropies, twice as many
    for regions. A member with more weight counts more.
    """

    def __init__(
        self, shape: Sequence[int], n_heads: int, has_regions: bool, device: torch.device | str = "cpu"
    ) -> None:
        self.has_regions, self.weight = has_regions, 0.0
        self.largest = math.log(2 if has_regions else n_heads)
        self._sum = torch.zeros((n_heads, *shape), device=device)
        self._entropies = torch.zeros((n_heads if has_regions else 1, *shape), device=device)

    def add(self, probabilities: Tensor, weight: float = 1.0) -> None:
        """Count one member in. probabilities : (heads, *shape), any floating type, on the device"""
        self.weight += weight
        for index, of_head in enumerate(probabilities):
            one = of_head.float()
            self._sum[index].add_(one, alpha=weight)
            self._entropies[index if self.has_regions else 0].add_(self._entropy(one), alpha=weight)

    def mean(self) -> Tensor:
        """The mean of the members, (heads, *shape) float32."""
        return self._sum / self.weight

    def mutual_information(self) -> Tensor:
        """Of each voxel from 0 (all members say the same) to 1, shape float32."""
        return self._of_each_voxel(self._entropies, -1 / self.weight)

    def predictive_entropy(self) -> Tensor:
        """Entropy of the mean of each voxel from 0 (sure of one class) to 1, shape float32."""
        return self._of_each_voxel(self._entropies, 0.0)

    def _of_each_voxel(self, entropies: Tensor, factor: float) -> Tensor:
        """The entropy of the mean plus `factor` times the summed ones, as a share of the largest entropy."""
        highest = torch.zeros_like(entropies[0])
        if self.has_regions:
            for of_head, of_members in zip(self._sum, entropies, strict=True):
                torch.maximum(highest, self._entropy(of_head / self.weight).add_(of_members, alpha=factor), out=highest)
        else:
            for of_head in self._sum:
                highest += self._entropy(of_head / self.weight)
            highest.add_(entropies[0], alpha=factor)
        return highest.div_(self.largest).clamp_(0, 1)  # rounding leaves equal members a little on either side of 0

    def _entropy(self, of_head: Tensor) -> Tensor:
        """-p log p of a class, which is its part of the entropy; the whole entropy of a region."""
        entropy = torch.special.entr(of_head)
        return entropy + torch.special.entr(1 - of_head) if self.has_regions else entropy
