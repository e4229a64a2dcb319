"""From a checkpoint to segmentations and softmax on the original grid."""
