"""nnU-Net's side of metrics_agreement.py: python metrics_nnunet.py PREDICTED REFERENCES DATASET.JSON SUMMARY.JSON."""

import json
import sys
from pathlib import Path

from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.label_handling.label_handling import LabelManager


def main() -> None:
    """What `nnUNetv2_evaluate_folder --chill` does, with the labels of dataset.json and no plans."""
    predicted, references, described, out = sys.argv[1:]
    content = json.loads(Path(described).read_text())
    if all(name.isdecimal() for name in content["labels"]):  # Decathlon's form
        content["labels"] = {str(name): int(value) for value, name in content["labels"].items()}
    manager = LabelManager(content["labels"], content.get("regions_class_order"))
    ending = content["file_ending"]
    reader = determine_reader_writer_from_dataset_json(content, str(next(Path(references).glob(f"*{ending}"))))()
    classes = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    compute_metrics_on_folder(references, predicted, out, reader, ending, classes, manager.ignore_label, 1)


if __name__ == "__main__":
    main()
