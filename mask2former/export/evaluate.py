"""Measuring an exported file on datasets."""

from os import PathLike

from fvcore.common.config import CfgNode

from mask2former.engine.evaluate import evaluate
from mask2former.engine.setup.begin import Run
from mask2former.engine.setup.dataset_facts import dataset_metadata, warn_of_other_classes
from mask2former.evaluation.evaluator import Results
from mask2former.export.exported_model import exported_model, read_trained


def evaluate_exported(
    cfg: CfgNode, run: Run, precision: str = "fp32", calibrate: str | PathLike[str] | None = None
) -> Results:
    """Measure the exported file MODEL.WEIGHTS on DATASETS.TEST, as `evaluate_checkpoint` a checkpoint.

    Raises:
        ValueError: as `exported_model`.
    """
    checkpoint = read_trained(cfg.MODEL.WEIGHTS)
    warn_of_other_classes(dataset_metadata(cfg), checkpoint)
    model = exported_model(cfg, checkpoint, precision, calibrate)
    return evaluate(cfg, model, run.folder.path / "inference", run.datasets)
