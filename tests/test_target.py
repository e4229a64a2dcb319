"""What a label map says of each output, and the counts behind the Dice of validation patches, against numpy's."""

import numpy as np
import pytest
import torch
from tiny import labels_of, wave

from segpipe.training import target

LABELS = {
    "plain": labels_of({"background": 0, "one": 1, "two": 2, "three": 3}),
    "plain, not in order": labels_of({"two": 2, "three": 3, "background": 0, "one": 1}),
    "ignore": labels_of({"background": 0, "one": 1, "two": 2, "three": 3, "ignore": 4}),
    "regions": labels_of({"background": 0, "whole": [1, 2, 3], "active": 3, "core": [2, 3]}, [1, 3, 2]),
    "regions and ignore": labels_of(
        {"background": 0, "whole": [1, 2, 3], "active": 3, "core": [2, 3], "ignore": 4}, [1, 3, 2]
    ),
}


def drawn(labels, n_axes=3):
    """Logits and a label of all values, -1 never."""
    shape = (3, *(7, 6, 5)[:n_axes])
    label = np.random.default_rng(0).integers(0, len(labels.file_values), shape)
    return 2 * wave(3, len(labels.heads), *shape[1:], seed=0.41), torch.from_numpy(label)


def known_of(labels):
    return torch.tensor([[True, *[True, False, True]], [True, *[False, False, False]], [True] * 4])[
        :, -len(labels.heads) :
    ]


@pytest.mark.parametrize("partly", [False, True])
@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize("name", LABELS)
def test_overlaps_are_numpys(name, n_axes, partly):
    labels = LABELS[name]
    logits, label = drawn(labels, n_axes)
    known = known_of(labels) if partly else None
    counts = target.overlaps(logits, label, labels, known)
    assert counts.dtype == torch.int64
    expected = []
    for class_, values in labels.foreground.items():
        head = list(labels.heads).index(class_)
        scores = logits.numpy()
        predicted = scores[:, head] > 0 if labels.has_regions else scores.argmax(1) == head
        reference = np.isin(label.numpy(), values)
        counted = np.ones(label.shape, bool) if labels.ignore is None else label.numpy() != labels.ignore
        if partly:
            counted = counted & known[:, head].numpy().reshape(-1, *(1,) * n_axes)
        predicted, reference = predicted & counted, reference & counted
        expected.append([(predicted & reference).sum(), predicted.sum() + reference.sum()])
    assert counts.T.tolist() == [[int(n) for n in pair] for pair in expected]
    assert counts.all() or partly


@pytest.mark.parametrize("name", LABELS)
def test_the_aim_of_each_output_is_its_classes_voxels(name):
    labels = LABELS[name]
    _, label = drawn(labels)
    aim = target.of(label, labels, None)
    assert aim.reference.shape == (3, len(labels.heads), 7 * 6 * 5)
    for head, values in enumerate(labels.heads.values()):
        assert torch.equal(aim.reference[:, head] > 0, torch.from_numpy(np.isin(label.flatten(1), values)))
    assert aim.known is None
    if labels.ignore is None:
        assert aim.inside is None
    else:
        assert torch.equal(aim.inside > 0, label.flatten(1) != labels.ignore)
        assert not aim.reference.sum(1)[aim.inside == 0].any()
