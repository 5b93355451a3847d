import copy
import functools
import pickle

import pytest
import torch
from tiny_runs import tiny_config

from mask2former.modeling.postprocessing.inference import TASKS
from mask2former.modeling.predictions import Predictions
from mask2former.structures import Instances
from mask2former.utils.registry import META_ARCH, find_builder

CLASSES = 4
TINY = [
    ("MODEL.PIXEL_MEAN", [120.0, 110.0, 100.0]),
    ("MODEL.PIXEL_STD", [60.0, 50.0, 40.0]),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES),
    ("MODEL.MASK_FORMER.DEC_LAYERS", 3),
    ("MODEL.MASK_FORMER.THING_IDS", [0, 1]),
]
KEYS = {f"loss_{term}{layer}" for term in ("ce", "mask", "dice") for layer in ("", "_0", "_1")}


def build(*options):
    cfg = tiny_config()
    cfg.merge_from_list([item for pair in [*TINY, *options] for item in pair])
    torch.manual_seed(0)
    return find_builder(META_ARCH, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")(cfg)


@functools.cache
def tiny_model():
    """One model for the tests that change neither its weights nor its settings."""
    return build().eval()


def random_image(h, w, objects=2, seed=0, **fields):
    random = torch.Generator().manual_seed(seed)
    return {
        "file_name": f"image{seed}.png",
        "image": torch.randint(256, (3, h, w), generator=random, dtype=torch.uint8),
        "instances": Instances(
            (h, w),
            gt_classes=torch.randint(CLASSES, (objects,), generator=random),
            gt_masks=torch.rand(objects, h, w, generator=random) > 0.5,
        ),
        **fields,
    }


def test_images_are_normalized_then_padded_with_zeros():
    model = tiny_model()
    small, large = random_image(20, 40), random_image(33, 30)
    batch = model._images([small, large])
    assert batch.shape == (2, 3, 64, 64)
    for image, inputs in zip(batch, (small, large), strict=True):
        height, width = inputs["image"].shape[1:]
        expected = (inputs["image"][1].float() - 110) / 50
        assert torch.allclose(image[1, :height, :width], expected)
        assert not image[:, height:].any() and not image[:, :, width:].any()


@pytest.mark.parametrize("kind", [torch.float16, torch.float32, torch.float64, torch.int64])
def test_images_may_have_any_numeric_type(kind):
    inputs = random_image(40, 50)
    expected = tiny_model()([inputs])[0]["sem_seg"]
    result = tiny_model()([{**inputs, "image": inputs["image"].to(kind)}])[0]["sem_seg"]
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_models_and_results_can_be_copied_and_pickled(copied):
    expected = tiny_model()([random_image(40, 50)])[0]
    result = copied(copied(tiny_model())([random_image(40, 50)])[0])
    assert torch.equal(result["sem_seg"], expected["sem_seg"])
    for name, value in expected["instances"].get_fields().items():
        assert torch.equal(result["instances"].get_fields()[name], value)


def test_results_have_the_size_asked_for():
    inputs = [random_image(40, 50, height=30, width=61), random_image(64, 33, seed=1)]
    results, compact = tiny_model()(inputs), tiny_model().predict(inputs, compact=True)
    for result, small, size in zip(results, compact, [(30, 61), (64, 33)], strict=True):
        assert result["sem_seg"].shape == (CLASSES, *size)
        assert "sem_seg" not in small
        assert torch.equal(small["label_map"].long(), result["sem_seg"].argmax(0))
        panoptic, segments = result["panoptic_seg"]
        assert panoptic.shape == size and panoptic.dtype == torch.int32
        assert set(panoptic.unique().tolist()) <= {0, *(segment["id"] for segment in segments)}
        assert result["instances"].pred_masks.shape[1:] == size
        assert result["instances"].image_size == size
        assert set(result["instances"].pred_classes.tolist()) <= {0, 1}
        assert (result["instances"].scores.diff() <= 0).all()


def test_an_image_alone_equals_itself_in_a_batch_padded_to_the_same_size():
    model = tiny_model()
    inputs = [random_image(50, 33), random_image(64, 64, seed=1), random_image(20, 60, seed=2)]
    images = model._images(inputs)
    with torch.no_grad():
        together = model.network(images)
        for i in range(3):
            alone = model.network(images[i : i + 1])
            assert torch.allclose(together.mask_logits()[i], alone.mask_logits()[0], atol=1e-4)
            for layer, single in zip(together.layers, alone.layers, strict=True):
                assert torch.allclose(layer.class_logits[i], single.class_logits[0], atol=1e-5)
    results = model(inputs)
    alone = model([inputs[0], {"image": torch.zeros(3, 64, 64)}])[0]  # another neighbor, the same padding
    assert torch.allclose(results[0]["sem_seg"], alone["sem_seg"], atol=1e-5)
    assert torch.equal(results[0]["panoptic_seg"][0], alone["panoptic_seg"][0])


BATCHES = {"normal": [2, 3], "half empty": [0, 2], "all empty": [0, 0], "more objects than queries": [9, 1]}


@pytest.mark.parametrize("counts", BATCHES.values(), ids=BATCHES.keys())
def test_training_gives_the_same_terms_and_finite_gradients(counts):
    model = build(("MODEL.RESNETS.NORM", "BN")).train()
    losses = model([random_image(50, 60, n, seed=i) for i, n in enumerate(counts)])
    assert set(losses) == KEYS
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("key", ["MASK_FORMER.NUM_OBJECT_QUERIES", "SEM_SEG_HEAD.NUM_CLASSES"])
def test_the_smallest_heads_train_and_predict(key):
    model = build((f"MODEL.{key}", 1), ("MODEL.MASK_FORMER.THING_IDS", [0]))
    inputs = random_image(40, 40, 2)
    inputs["instances"].gt_classes.zero_()
    assert all(torch.isfinite(loss) for loss in model.train()([inputs]).values())
    found = model.eval()([inputs])[0]["instances"]
    assert len(found) <= 6 * CLASSES


def test_seeds_make_losses_repeatable():
    model = tiny_model()
    seeded = [{**random_image(50, 60, seed=i), "seed": i} for i in range(2)]
    with torch.no_grad():
        first, second = model.losses(seeded), model.losses(seeded)
        swapped = model.losses(seeded[::-1])
    assert all(torch.equal(first[key], second[key]) for key in KEYS)
    assert all(first[key].item() == pytest.approx(swapped[key].item(), rel=1e-4) for key in KEYS)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_autocast_trains_and_predicts_in_float32(kind, norm):
    model = build(("MODEL.RESNETS.NORM", norm)).train()
    with torch.autocast("cpu", kind):
        losses = model([random_image(40, 40)])
        result = model.eval()([random_image(40, 40)])[0]
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    for scores in (result["sem_seg"], result["instances"].scores):
        assert scores.dtype == torch.float32 and torch.isfinite(scores).all()


def test_activation_checkpointing_changes_neither_losses_nor_gradients():
    inputs = [{**random_image(50, 60), "seed": 1}]

    def step(checkpointing):
        model = build(("MODEL.RESNETS.NORM", "BN"), ("MODEL.ACTIVATION_CHECKPOINTING", checkpointing)).train()
        total = sum(model(inputs).values())
        total.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        return {"loss": total.detach(), **gradients, **dict(model.named_buffers())}

    torch.testing.assert_close(step(True), step(False))


def test_the_network_has_one_graph_for_all_images_of_a_size():
    model = tiny_model()
    exported = torch.export.export(Network(model), (torch.randn(1, 3, 64, 96),), strict=False).module()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model.network(images)
        class_logits, mask_logits = exported(images)
    assert torch.allclose(class_logits, expected.layers[-1].class_logits, atol=1e-4)
    assert torch.allclose(mask_logits, expected.mask_logits(), atol=1e-3)


class Network(torch.nn.Module):
    """The network with tensors alone as results."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        predictions = self.model.network(images)
        assert isinstance(predictions, Predictions)
        return predictions.layers[-1].class_logits, predictions.mask_logits()


NO_CLASS = Instances((9, 9), gt_classes=torch.tensor([CLASSES]), gt_masks=torch.ones(1, 9, 9) > 0)
WRONG = {
    "gray": ({"image": torch.zeros(1, 9, 9)}, r"\(1, 9, 9\)"),
    "no channels": ({"image": torch.zeros(9, 9)}, r"\(9, 9\)"),
    "no targets": ({"image": torch.zeros(3, 9, 9)}, "instances"),
    "mask size": ({"image": torch.zeros(3, 8, 9), "instances": NO_CLASS}, r"\(1, 9, 9\).*\(3, 8, 9\)"),
    "class": ({"image": torch.zeros(3, 9, 9), "instances": NO_CLASS}, rf"\[{CLASSES}\].*NUM_CLASSES"),
}


@pytest.mark.parametrize(("inputs", "message"), WRONG.values(), ids=WRONG.keys())
def test_invalid_inputs_are_refused_by_file_name(inputs, message):
    with pytest.raises(ValueError, match=rf"bad\.png.*{message}"):
        tiny_model().losses([{**inputs, "file_name": "bad.png"}])


BAD_OPTIONS = {
    "thing ids": ([("MODEL.MASK_FORMER.THING_IDS", [0, CLASSES])], "THING_IDS"),
    "divisibility": ([("MODEL.MASK_FORMER.SIZE_DIVISIBILITY", -1)], "SIZE_DIVISIBILITY"),
    "channels": ([("MODEL.PIXEL_STD", [1.0])], "PIXEL_STD"),
    "no spread": ([("MODEL.PIXEL_STD", [1.0, 0.0, 1.0])], "PIXEL_STD"),
    "tasks": ([(f"MODEL.MASK_FORMER.TEST.{task.upper()}_ON", False) for task in TASKS], "tasks"),
    "backbone": ([("MODEL.BACKBONE.NAME", "vgg")], "vgg"),
    "loss": ([("MODEL.MASK_FORMER.CRITERION_NAME", "SetCriteria")], r"did you mean SetCriterion\?"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_invalid_options_are_refused_by_key(options, message):
    with pytest.raises(ValueError, match=message):
        build(*options)


def test_options_reach_the_model():
    model = build(
        ("TEST.DETECTIONS_PER_IMAGE", 3),
        ("MODEL.MASK_FORMER.THING_IDS", []),
        ("MODEL.MASK_FORMER.TEST.MEMORY_BUDGET_MB", 7),
        ("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False),
        ("MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE", True),
        ("MODEL.MASK_FORMER.SIZE_DIVISIBILITY", 64),
        ("MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", 0.25),
        ("MODEL.MASK_FORMER.DEEP_SUPERVISION", False),
    ).eval()
    assert model.inference.memory_budget == 7 * 2**20
    assert model.inference.resize_first
    assert model.tasks == ("semantic", "instance")
    assert model._images([random_image(40, 70)]).shape == (1, 3, 64, 128)
    assert model.criterion.empty_weight[-1] == 0.25 and not model.criterion.deep_supervision
    result = model([random_image(40, 70)])[0]
    assert len(result["instances"]) == 3 and "panoptic_seg" not in result


def test_instance_output_is_restricted_to_known_things():
    options = ("MODEL.MASK_FORMER.THING_IDS", [1]), ("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False)
    model = build(*options).eval()
    assert model([random_image(40, 70)])[0]["instances"].pred_classes.unique().tolist() == [1]
