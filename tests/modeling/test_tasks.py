"""One decoder for several tasks, against plain decoders whose queries hold the embeddings of one task."""

import dataclasses

import pytest
import torch
from test_mask_former import build as build_tiny
from test_mask_former import random_image
from test_pilots import EXACT, batch
from test_transformer_decoder import build, draw_inputs

from mask2former.modeling.postprocessing.inference import TASKS, post_process
from mask2former.modeling.transformer_decoder.tasks import task_indices
from mask2former.weights.load import WeightsError, load_weights
from mask2former.weights.read import Checkpoint

ON = [(f"MODEL.MASK_FORMER.TEST.{task.upper()}_ON", True) for task in TASKS]
EMBEDDINGS = ("task_feat.weight", "task_embed.weight")


def indices(*tasks):
    """One row of tasks for each of two images."""
    return task_indices(tasks, torch.device("cpu")).expand(2, -1)


def told(model):
    """Draw the embeddings of tasks, as training would change them."""
    generator = torch.Generator().manual_seed(7)
    for name, weight in model.state_dict().items():
        if name.endswith(EMBEDDINGS):
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return model


def baked(state, task, prefix=""):
    """The weights of a plain decoder for one task."""
    place = TASKS.index(task)
    state = {name: weight.clone() for name, weight in state.items()}
    state[f"{prefix}query_feat.weight"] += state.pop(f"{prefix}task_feat.weight")[place]
    state[f"{prefix}query_embed.weight"] += state.pop(f"{prefix}task_embed.weight")[place]
    return state


def plain_model(joint, task, *options):
    model = build_tiny(*ON, *options).eval()
    model.load_state_dict(baked(joint.state_dict(), task, "sem_seg_head.predictor."))
    return model


def joint_model(*options, tasks=TASKS):
    return told(build_tiny(*ON, ("SOLVER.TASKS", tasks), *options))


def equal(found, expected, atol=1e-5):
    return all(torch.allclose(a, b, atol=atol) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("options", [{}, {"attention": "smca"}, {"concatenate_levels": True}])
def test_each_task_is_predicted_as_by_a_plain_decoder(options):
    joint = told(build(tasks=TASKS, **options))
    asked = ("panoptic", "semantic", "instance")
    found = joint(*draw_inputs(), tasks=indices(*asked))
    for place, task in enumerate(asked):
        plain = build(**options)
        plain.load_state_dict(baked(joint.state_dict(), task))
        for layer, expected in zip(found.layers, plain(*draw_inputs()).layers, strict=True):
            assert equal((part.chunk(3, 1)[place] for part in layer[:3]), expected[:3])


def test_images_of_a_batch_may_have_different_tasks():
    joint = told(build(tasks=TASKS))
    mixed = joint(*draw_inputs(), tasks=task_indices(["instance", "panoptic"], torch.device("cpu"))[:, None])
    for image, task in enumerate(["instance", "panoptic"]):
        same = joint(*draw_inputs(), tasks=indices(task))
        assert equal(
            (part[image] for part in mixed.layers[-1][:3]), (part[image] for part in same.layers[-1][:3])
        )


def test_embeddings_are_zero_at_first_and_change_no_bit_and_no_random_number():
    torch.manual_seed(0)
    plain = build()
    random = torch.get_rng_state()
    joint = build(tasks=TASKS)
    assert torch.equal(random, torch.get_rng_state())
    found, expected = joint(*draw_inputs(), tasks=indices("instance")), plain(*draw_inputs())
    for layer, other in zip(found.layers, expected.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer[:3], other[:3], strict=True))
    assert joint.state_dict().keys() - plain.state_dict().keys() == set(EMBEDDINGS)


def test_pilots_and_tasks_go_together():
    joint = told(build(tasks=TASKS, pilot_groups=2, **EXACT))
    plain = build(pilot_groups=2, **EXACT)
    plain.load_state_dict(baked(joint.state_dict(), "semantic"))
    found = joint(*draw_inputs(), batch(), tasks=indices("semantic"))
    expected = plain(*draw_inputs(), batch())
    assert equal(found.layers[-1][:3], expected.layers[-1][:3])
    assert equal(found.pilots[-1][:3], expected.pilots[-1][:3])


@pytest.mark.parametrize("pilots", [0, 1])
def test_losses_of_a_batch_are_those_of_plain_models_for_the_task_of_each_image(pilots):
    """With as many targets in each image, the loss of a batch is the mean of those of its images."""
    options = [
        ("MODEL.MASK_FORMER.DECODER.PILOT_GROUPS", pilots),
        ("MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", 1.0),
    ]
    joint = joint_model(*options).train()
    images = [random_image(64, 64, seed=seed, task=task) for seed, task in enumerate(TASKS)]
    images = [{**image, "seed": seed} for seed, image in enumerate(images)]
    found = joint.losses(images)
    alone = [plain_model(joint, image["task"], *options).train().losses([image]) for image in images]
    assert found.keys() == alone[0].keys()
    for name, loss in found.items():
        assert torch.allclose(loss, sum(losses[name] for losses in alone) / 3, rtol=1e-4), name


def test_all_tasks_have_gradients_even_if_no_image_of_the_batch_has_them():
    joint = joint_model().train()
    sum(joint.losses([random_image(64, 64, task="instance")]).values()).backward()
    for name in EMBEDDINGS:
        gradient = joint.sem_seg_head.predictor.get_parameter(name).grad
        assert (gradient.abs().sum(1) > 0).tolist() == [False, True, False]


def test_results_of_each_task_are_those_of_a_plain_model_and_the_backbone_runs_once():
    joint = joint_model().eval()
    images = [random_image(40, 64), random_image(64, 50, seed=1)]
    runs = []
    for part in (joint.backbone, joint.sem_seg_head.pixel_decoder, joint.sem_seg_head.predictor):
        part.register_forward_hook(lambda *_: runs.append(1))
    found = joint.predict(images)
    assert len(runs) == 3
    compact = joint.predict(images, compact=True)
    for task, key in zip(TASKS, ("sem_seg", "instances", "panoptic_seg"), strict=True):
        plain = plain_model(joint, task)
        for i, (expected, small) in enumerate(
            zip(plain.predict(images), plain.predict(images, compact=True), strict=True)
        ):
            if task == "semantic":
                assert torch.allclose(found[i][key], expected[key], atol=1e-5)
                assert torch.equal(compact[i]["label_map"], small["label_map"])
            elif task == "instance":
                assert torch.allclose(found[i][key].scores, expected[key].scores, atol=1e-5)
                assert torch.equal(found[i][key].pred_masks, expected[key].pred_masks)
                assert torch.equal(compact[i][key].pred_queries, small[key].pred_queries + 6)
            else:
                assert (
                    torch.equal(found[i][key][0], expected[key][0]) and found[i][key][1] == expected[key][1]
                )
                assert compact[i]["segment_queries"] == [q + 12 for q in small["segment_queries"]]
                assert torch.allclose(compact[i]["best_query_score"], small["best_query_score"], atol=1e-5)


def test_a_task_that_the_image_was_not_read_for_is_an_error():
    joint = build_tiny(("SOLVER.TASKS", TASKS), ("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False)).eval()
    assert joint.tasks == ("semantic", "instance")
    (prediction,) = joint.predict_images([random_image(64, 64)])
    options = dataclasses.replace(joint.inference, tasks=("panoptic",))
    with pytest.raises(ValueError, match=r"^the image was read for semantic, instance, not for panoptic$"):
        post_process(prediction, options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({}, 'it has no "task"'), ({"task": "instance"}, "its \"task\" is 'instance'"), ({"task": 3}, "is 3")],
)
def test_a_sample_without_a_task_of_the_model_is_an_error(fields, message):
    options = [("MODEL.MASK_FORMER.TEST.INSTANCE_ON", False), ("SOLVER.TASKS", ("semantic", "panoptic"))]
    model = build_tiny(*options).train()
    with pytest.raises(ValueError, match=rf"^image0\.png: .*{message}.* one of semantic, panoptic$"):
        model.losses([random_image(64, 64, **fields)])


OTHER = (
    r"^SOLVER.TASKS \(semantic, instance, panoptic\) needs MODEL.META_ARCHITECTURE MaskFormer, .*TASKS \(\)$"
)
STANDARD = [
    ("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder"),
    ("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5"),
]
PER_PIXEL = [
    ("MODEL.META_ARCHITECTURE", "SemanticSegmentor"),
    ("MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselineHead"),
    ("MODEL.MASK_FORMER.TEST.INSTANCE_ON", False),
    ("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False),
]
VIDEO = [
    ("MODEL.META_ARCHITECTURE", "VideoMaskFormer"),
    ("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "VideoMultiScaleMaskedTransformerDecoder"),
    ("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False),
    ("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False),
]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (STANDARD, OTHER),
        (PER_PIXEL, OTHER),
        (VIDEO, OTHER),
        ([("MODEL.MASK_FORMER.DECODER.LEARNED_QUERIES", False)], r"needs .*LEARNED_QUERIES True$"),
        (
            [("SOLVER.TASKS", ("semantic", "panoptic"))],
            r"^MODEL.MASK_FORMER.TEST.INSTANCE_ON is True, but SOLVER.TASKS is \(semantic, panoptic\); type "
            "MODEL.MASK_FORMER.TEST.INSTANCE_ON False$",
        ),
    ],
)
def test_other_models_and_other_tasks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_tiny(("SOLVER.TASKS", TASKS), *options)


def test_weights_for_one_task_fit_and_those_for_several_need_the_key():
    joint, plain = joint_model(), build_tiny(*ON)
    fresh = build_tiny(*ON, ("SOLVER.TASKS", TASKS))
    report = load_weights(fresh, Checkpoint("one.pth", plain.state_dict()))
    assert not report.problems and report.has_trained_head
    assert not fresh.sem_seg_head.predictor.task_feat.weight.any()
    with pytest.raises(WeightsError, match=r"joint.pth.*for several tasks.*SOLVER.TASKS.*--task TASK"):
        load_weights(plain, Checkpoint("joint.pth", joint.state_dict()))
    load_weights(fresh, Checkpoint("joint.pth", joint.state_dict()))
    assert torch.equal(
        fresh.sem_seg_head.predictor.task_feat.weight, joint.sem_seg_head.predictor.task_feat.weight
    )
