"""Print params.yaml with two configurations and a training that ends as soon as it has seen something."""

from pathlib import Path

import yaml

params = yaml.safe_load(Path("params.yaml").read_text())
params.update(configurations=["2d", "3d_fullres"], folds=[0])
params["phantoms"].update(n_train=8, n_test=0)
params["train"].update(epochs=10, iterations_per_epoch=20, val_iterations_per_epoch=1)
print(yaml.safe_dump(params, sort_keys=False))
