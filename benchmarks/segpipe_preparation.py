"""segpipe's side of preparation.py: check, fingerprint, plan and preprocess in one process, without Snakemake.

python benchmarks/segpipe_preparation.py DATASET OUT     # 2d and 3d_fullres
"""

import sys
from pathlib import Path

from segpipe import params as params_module
from segpipe.data import check
from segpipe.data.cases import Cases
from segpipe.prepare import fingerprint, planning, store

CONFIGURATIONS = ("2d", "3d_fullres")


def main(dataset: Path, out: Path) -> None:
    params = params_module.load(Path(__file__).resolve().parents[1] / "params.yaml")
    params = params.model_copy(update={"dataset": str(dataset)})
    check.check(dataset, out / "cases.json", params.check, n_folds=1)
    cases = Cases.read(out / "cases.json", dataset)
    fingerprint.extract(cases, out / "fingerprint.json", params.runtime)
    planning.write(cases, out / "fingerprint.json", params, out / "plan.json")
    for configuration in CONFIGURATIONS:
        store.build(cases, out / "plan.json", configuration, out / configuration / "manifest.json", params.runtime)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
