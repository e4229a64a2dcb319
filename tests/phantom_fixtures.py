"""Prepared and trained phantoms, made once. Modules that use them name this one in `pytest_plugins`."""

from pathlib import Path

import pytest
from tiny import Prepared, params, prepare

from segpipe.training import job


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Five phantoms, preprocessed at 3 mm. Only for tests that change nothing."""
    return prepare(tmp_path_factory.mktemp("phantoms"), params())


@pytest.fixture(scope="session")
def trained(prepared: Prepared) -> Path:
    """The files of both folds, trained without interruption: fold_0 and fold_1. Only for tests that change nothing."""
    out = prepared.root / "results/3d_fullres"
    for fold in ("0", "1"):
        job.train(prepared.store, prepared.splits, fold, out / f"fold_{fold}", params())
    return out
