"""Lesions: connected parts of a mask, and how many of them were found."""

import numpy as np
from scipy.ndimage import generate_binary_structure, label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from segpipe.evaluation.overlap import Numbers, Pair
from segpipe.params import Evaluate

LESIONS = ("lesion_f1", "lesions_tp", "lesions_fp", "lesions_fn")
STEPS = {6: 1, 18: 2, 26: 3}  # connectivity: along how many axes a neighbour may be one voxel away


def lesion_metrics(pair: Pair, settings: Evaluate) -> Numbers:
    """Lesions found (of the reference), invented (of the prediction) and missed (of the reference), and their F1.

    settings.lesion_match : `any`: a lesion that has a voxel in common with one of the other side is found, so one may
        find several, and several one; a number: the least IoU of a pair. Pairs are then one to one, and as many as
        there can be.
    F1 is 2 found / (2 found + invented + missed); None where neither side has a lesion.
    """
    structure = generate_binary_structure(pair.predicted.ndim, STEPS[settings.lesion_connectivity])
    predicted, n_pred = label(pair.predicted, structure)
    reference, n_ref = label(pair.reference, structure)
    both = pair.predicted & pair.reference
    # two numbers as one, to count equal pairs
    joint, common = np.unique(reference[both].astype(np.int64) * (n_pred + 1) + predicted[both], return_counts=True)
    of_ref, of_pred = np.divmod(joint, n_pred + 1)
    if settings.lesion_match == "any":
        found, invented = len(np.unique(of_ref)), n_pred - len(np.unique(of_pred))
    else:
        sizes_ref, sizes_pred = np.bincount(reference.reshape(-1)), np.bincount(predicted.reshape(-1))
        enough = common >= settings.lesion_match * (sizes_ref[of_ref] + sizes_pred[of_pred] - common)
        edges = coo_array((enough[enough], (of_ref[enough], of_pred[enough])), (n_ref + 1, n_pred + 1)).tocsr()
        found = int(np.count_nonzero(maximum_bipartite_matching(edges) >= 0))
        invented = n_pred - found
    missed = n_ref - found
    any_lesion = 2 * found + invented + missed
    f1 = 2 * found / any_lesion if any_lesion else None
    return dict(zip(LESIONS, (f1, found, invented, missed), strict=True))
