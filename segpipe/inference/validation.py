"""Predict and score the validation cases of one fold with one checkpoint.

Finished cases lie in `state/`, which no rule declares, so a killed validation goes on where it stopped; at the end
they are moved into the declared folders.
"""

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe import device, digest
from segpipe.data import image, splits
from segpipe.errors import SegpipeError, problem
from segpipe.evaluation import metrics, summary
from segpipe.inference import export, memory, predict, softmax_file, spill
from segpipe.inference.export import LabelMap, Probabilities, Softmax
from segpipe.inference.predict import Model
from segpipe.params import Params, section
from segpipe.prepare.store import Store
from segpipe.ranks import ALONE, Ranks

log = getLogger(__name__)

WRITERS = 2  # threads that compress and score while the next case is predicted


@dataclass(frozen=True)
class _Validation:
    """One validation: what is predicted, and where finished cases wait."""

    store: Store
    params: Params
    state: Path

    def paths(self, case: str) -> tuple[Path, Path, Path]:
        """Segmentation, softmax and metrics of a finished case; the metrics are written last."""
        name = f"{case}{self.store.cases.label_ending}"
        return self.state / "segmentations" / name, self.state / "softmax" / f"{case}.npz", self.state / f"{case}.json"

    def is_done(self, case: str) -> bool:
        return all(path.exists() for path in self.paths(case))

    def predict(self, model: Model, case: str) -> tuple[NDArray[np.int16], Probabilities]:
        """Label map and softmax of a case."""
        prepared, settings = self.store.read(case), self.params.validate_
        shape = (len(model.labels.heads), *export.file_shape(prepared.grid))
        softmax = spill.zeros(shape, settings.softmax_dtype, self.state)
        sinks = LabelMap(prepared.grid, model.labels), Softmax(softmax, prepared.grid, model.labels)
        predict.run(model, prepared, settings, sinks)
        return sinks[0].array, softmax

    def write(self, case: str, segmentation: NDArray[np.int16], softmax: Probabilities) -> None:
        """Save and score one predicted case."""
        cases = self.store.cases
        segmentation_path, softmax_path, metrics_path = self.paths(case)
        softmax_file.save(softmax_path, softmax, self.params.validate_.softmax_dtype)
        cases.write_segmentation(segmentation_path, segmentation, case)
        of_case = cases.labels, cases.annotated(case), cases.entry(case)["spacing_mm"], self.params.evaluate
        digest.write_json(metrics_path, metrics.case_metrics(segmentation, cases.read_label(case), *of_case))


def validate(
    store: Store,
    splits_path: Path,
    fold_name: str,
    model_path: Path,
    out: Path,
    params: Params,
    ranks: Ranks = ALONE,
) -> None:
    """Write segmentations/, softmax/ and summary.json of one fold's validation cases into `out`.

    ranks : who take turns at the cases; each makes this call
    Raises SegpipeError where `out` is a folder of the workflow's and the checkpoint is not the one that belongs there.
    """
    _keep_to_its_folder(model_path, out)
    fold = splits.read(splits_path, fold_name)
    state = _state(out)
    title = f"{out.name} of {store.configuration} fold {fold_name}"
    with memory.told(title), ranks.exclusive(lock(out), title) as report:
        on = device.start(params.runtime, memory.gpu_bytes(params))
        model = predict.load([model_path], on, params.validate_.weights, params.validate_.precision)
        identity = digest.of([*model.files, store.digest, fold["val"], how(params)])
        if ranks.same(_is_published(out, fold["val"], identity)):
            return log.info("%s: done already, with the same weights, cases and settings", title)
        work = _Validation(store, params, state / identity)
        missing = ranks.same([case for case in fold["val"] if not work.is_done(case)])
        log.info("%s: %d cases, %d predicted before", title, len(fold["val"]), len(fold["val"]) - len(missing))
        own = ranks.own(missing)
        _predict(work, model, own, lambda n: report(f"{title}, {n} of {len(own)} cases done"))
        ranks.meet()
        if not ranks.is_first:
            return
        of = {"fold": fold_name, "checkpoint": model_path.stem.removeprefix("checkpoint_")}
        content = {**_summary(work, model, fold["val"], of, out), "validation_digest": identity}
        _assemble(work, fold["val"], content, out)
        predict.tidy(state)
    log.info("%s: mean foreground Dice %s", title, summary.readable(content["foreground_mean"]["Dice"]))


def _state(out: Path) -> Path:
    return out.parent / "state" / out.name


def lock(out: Path) -> Path:
    """The file whose lock a validation holds that writes into `out`."""
    return _state(out) / ".lock"


def _keep_to_its_folder(model_path: Path, out: Path) -> None:
    """What lies in validation_final and validation_best counts: no unfinished training may write there."""
    name = out.name.removeprefix("validation_")
    if name in ("final", "best") and model_path.name != f"checkpoint_{name}.pth":
        raise SegpipeError(
            problem(
                "this folder belongs to another checkpoint",
                where=out,
                found=model_path,
                expected=f"checkpoint_{name}.pth, as a finished training publishes it",
                cure="write into a folder of another name",
            )
        )


def _is_published(out: Path, cases: list[str], identity: str) -> bool:
    """Whether all of `out` is there already: the process that this one waited for may have done the work."""
    path = out / "summary.json"
    # a segmentation and what belongs to it differ in the ending
    counts = [len({file.stem for file in folder.glob("[!.]*")}) for folder in (out / "segmentations", out / "softmax")]
    return path.exists() and counts == [len(cases)] * 2 and digest.read_json(path)["validation_digest"] == identity


def how(params: Params) -> str:
    """Identity of the way in which cases are predicted and scored, whatever the checkpoint."""
    settings = {key: value for key, value in section(params, "validate").items() if key != "checkpoint"}
    return digest.of([settings, params.evaluate.scoring(), digest.of_code("validate")])


def _predict(work: _Validation, model: Model, cases: Sequence[str], done: Any) -> None:
    """Predict on the device while the case before is compressed and scored; at most WRITERS cases wait in memory."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS) as pool:
        for number, case in enumerate(cases):
            waiting.append(pool.submit(work.write, case, *work.predict(model, case)))
            if len(waiting) > WRITERS:
                waiting.popleft().result()
            done(number)
        for future in waiting:
            future.result()


def _summary(work: _Validation, model: Model, val: list[str], of: dict[str, str], out: Path) -> dict[str, Any]:
    """The fold's summary. Every validation case is in it: one without a prediction is an error.

    of : fold and checkpoint, by name
    """
    cases = work.store.cases
    rows = [
        summary.case_row(
            digest.read_json(work.paths(case)[2]),
            os.fspath(out / "segmentations" / f"{case}{cases.label_ending}"),
            next(iter(cases.entry(case)["label"])),
        )
        for case in val
    ]
    return {
        **summary.tables(rows),
        **of,
        "configuration": work.store.configuration,
        "epoch": model.content["epoch"],
        "labels": cases.labels.to_json(),
        "orientation": cases.orientation,
        "digest": model.content["digest"],
        "identity": {
            "dataset": digest.of({case: cases.identity(case) for case in cases.training}),
            "training": model.content["settings_digest"],
            "checkpoint": of["checkpoint"],
            "validate": how(work.params),
        },
        "settings": {
            "train": model.content["settings"],
            "validate": section(work.params, "validate"),
            "evaluate": work.params.evaluate.scoring(),
        },
        "training": model.content["facts"],
        "precision": str(model.dtype).removeprefix("torch."),
        "versions": summary.versions(),
    }


def _assemble(work: _Validation, cases: list[str], content: dict[str, Any], out: Path) -> None:
    """Move the finished cases into the declared folders; the old summary goes first, the new one comes last."""
    (out / "summary.json").unlink(missing_ok=True)
    for index, name in enumerate(("segmentations", "softmax")):
        with digest.new_folder(out / name) as folder:
            for case in cases:
                path = work.paths(case)[index]
                for file in [path, *(image.companions(path) if name == "segmentations" else [])]:
                    os.replace(file, folder / file.name)
    digest.write_json(out / "summary.json", content)
