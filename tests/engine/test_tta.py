"""TEST.AUG from the test loader to the metrics."""

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint
from tiny_runs import tiny_config

from mask2former.data.augmentation import resize_shortest_edge
from mask2former.data.loader import build_test_loader
from mask2former.engine.build import build_model
from mask2former.engine.evaluate import Evaluation, compact_predict, evaluate
from mask2former.engine.hooks.standard import flatten_results
from mask2former.engine.setup.trained_model import stored_config
from mask2former.engine.tta import AugmentedModel, check_augmentation
from mask2former.predictor import Predictor
from mask2former.weights.load import read_checkpoint

SEMANTIC = {"MODEL__MASK_FORMER__TEST__INSTANCE_ON": False, "MODEL__MASK_FORMER__TEST__PANOPTIC_ON": False}
SIZES = (48, 64, 100)
NOISE = torch.randint(0, 256, (70, 90, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
IMAGE = NOISE.numpy()


def semantic_config(**changes):
    options = {"TEST__AUG__ENABLED": True, "TEST__AUG__MIN_SIZES": SIZES, "TEST__AUG__MAX_SIZE": 200}
    return tiny_config(**{**SEMANTIC, **options, **changes})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(2)
    return with_distinct_queries(build_model(tiny_config(**SEMANTIC)).eval())


def with_distinct_queries(model):
    """Enlarge weights so that queries differ in class and mask, and sizes matter."""
    predictor = model.sem_seg_head.predictor
    with torch.no_grad():
        predictor.query_feat.weight.normal_(0, 3)
        predictor.class_embed.weight *= 100
        predictor.mask_embed.layers[-1].weight *= 10
    return model


@pytest.fixture
def uneven(tiny_shapes, tmp_path, monkeypatch):
    """Replace the images of the synthetic test set by one that is not square."""
    monkeypatch.setattr("mask2former.data.mapper.read_image", lambda path: IMAGE)
    monkeypatch.setattr("mask2former.data.mapper.record_image", lambda record: IMAGE)


def test_the_loader_returns_the_image_at_every_size(uneven):
    sample = next(iter(build_test_loader(semantic_config(), "shapes_panoptic_val")))[0]
    assert "image" not in sample and (sample["height"], sample["width"]) == (70, 90)
    assert [tuple(view.shape) for view in sample["views"]] == [(3, 48, 62), (3, 64, 82), (3, 100, 129)]
    for view, size in zip(sample["views"], SIZES, strict=True):
        expected = resize_shortest_edge((70, 90), size, 200).apply_image(IMAGE)  # of the original
        assert torch.equal(view, torch.tensor(expected).permute(2, 0, 1))
    limited = next(iter(build_test_loader(semantic_config(TEST__AUG__MAX_SIZE=90), "shapes_panoptic_val")))[0]
    assert [max(view.shape) for view in limited["views"]] == [62, 82, 90]


@pytest.mark.parametrize("resize_first", [False, True])
def test_results_are_the_mean_over_views(model, uneven, resize_first):
    key = "MODEL__MASK_FORMER__TEST__SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE"
    cfg = semantic_config(**{key: resize_first})
    own = build_model(cfg).eval()
    own.load_state_dict(model.state_dict())
    inputs = next(iter(build_test_loader(cfg, "shapes_panoptic_val")))
    scores = []
    with torch.no_grad():
        for view in inputs[0]["views"]:
            size = {"height": 70, "width": 90}
            scores.append(own([{"image": view, **size}])[0]["sem_seg"])
            scores.append(own([{"image": view.flip(2), **size}])[0]["sem_seg"].flip(2))
    expected = torch.stack(scores).mean(0)
    averaged = AugmentedModel(cfg, own).predict(inputs)[0]["sem_seg"]
    assert torch.allclose(averaged, expected, atol=1e-5)
    labels = compact_predict(cfg, own)(inputs)[0]["label_map"]
    assert torch.allclose(expected.gather(0, labels[None].long())[0], expected.amax(0), atol=1e-5)
    assert len(labels.unique()) > 1


def test_a_single_view_equals_plain_evaluation(model, tiny_shapes, tmp_path):
    plain = evaluate(tiny_config(**SEMANTIC), model, tmp_path / "plain")
    changes = {"TEST__AUG__MIN_SIZES": (64,), "TEST__AUG__FLIP": False, "TEST__AUG__MAX_SIZE": 128}
    single = evaluate(semantic_config(**changes), model, tmp_path / "single")
    assert flatten_results(single) == pytest.approx(flatten_results(plain), nan_ok=True)
    several = evaluate(semantic_config(), model, tmp_path / "several")
    assert flatten_results(several)["sem_seg/mIoU"] != flatten_results(plain)["sem_seg/mIoU"]


@pytest.mark.parametrize("task", ["INSTANCE_ON", "PANOPTIC_ON"])
def test_panoptic_and_instance_results_are_refused(model, tiny_shapes, tmp_path, task):
    cfg = semantic_config(**{f"MODEL__MASK_FORMER__TEST__{task}": True})
    message = rf"TEST\.AUG\.ENABLED is True.*undefined.*no query of another.*MODEL\.MASK_FORMER\.TEST\.{task}"
    for refuse in (check_augmentation, lambda cfg: Evaluation(cfg, tmp_path)):
        with pytest.raises(ValueError, match=message):
            refuse(cfg)
    cfg.TEST.AUG.ENABLED = False
    check_augmentation(cfg)


@pytest.mark.parametrize(("key", "value"), [("MIN_SIZES", ()), ("MIN_SIZES", (0, 64)), ("MAX_SIZE", 0)])
def test_invalid_sizes_are_refused(key, value):
    cfg = semantic_config()
    cfg.TEST.AUG[key] = value
    with pytest.raises(ValueError, match=r"TEST\.AUG needs at least one size in MIN_SIZES"):
        check_augmentation(cfg)


def test_models_of_other_projects_are_refused():
    assert compact_predict(tiny_config(), torch.nn.Identity()) is None
    with pytest.raises(ValueError, match=r"TEST\.AUG\.ENABLED is True, but a Identity takes one view"):
        compact_predict(semantic_config(), torch.nn.Identity())


def test_the_predictor_averages_over_views(tmp_path):
    cfg = stored_config(read_checkpoint(str(save_tiny_checkpoint(tmp_path / "model.pth", confidence=0.0))))
    for task in ("INSTANCE", "PANOPTIC"):
        cfg.merge_from_list([f"MODEL.MASK_FORMER.TEST.{task}_ON", False])
    plain = Predictor(cfg)
    torch.manual_seed(2)
    with_distinct_queries(plain.model)
    cfg.merge_from_list(["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64, 96)])
    averaging = Predictor(cfg)
    averaging.model.load_state_dict(plain.model.state_dict())
    inputs = averaging.mapper.inputs(IMAGE)
    expected = averaging.augmented.predict([inputs], compact=True)[0]["label_map"]
    images = [IMAGE, IMAGE[:, :60]]
    results = averaging(images, batch_size=2)
    assert (results[0].semantic == expected.numpy()).all() and results[1].semantic.shape == (70, 60)
    assert (results[0].semantic != plain(IMAGE).semantic).any()
