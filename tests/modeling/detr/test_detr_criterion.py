"""DETR's loss against a version that goes pair by pair, and batches that have little to match."""

import itertools

import pytest
import torch
from small_detr import draw_targets
from torch.nn import functional as F

from mask2former.modeling.detr.boxes import boxes_of_masks, corners_of, generalized_iou
from mask2former.modeling.detr.criterion import DetrCriterion, DetrWeights
from mask2former.modeling.detr.predictions import DetrPredictions

SIZE = (32, 48)
OUTPUTS = [1, 3, 4, 7]  # outputs of three classes, and of "no object"
LAYERS, QUERIES = 3, 5
BOX_KEYS = {f"loss_{term}{layer}" for term in ("ce", "bbox", "giou") for layer in ("", "_0", "_1")}
MASK_KEYS = {"loss_mask", "loss_dice"}


class DrawnMasks:
    """Stands for the mask head: the mask of a query is a product of the query and drawn maps."""

    def __init__(self, maps):
        self.maps = maps

    def masks(self, image, queries):
        return torch.einsum("nc,chw->nhw", queries, self.maps[image])


def criterion(**changes):
    arguments = {"num_outputs": 7, "weights": DetrWeights(1.0, 5.0, 2.0, 1.5, 0.5), "no_object_weight": 0.1}
    return DetrCriterion(**{**arguments, "mask_loss": "focal", "with_masks": True, **changes})


def drawn_tensors(num_images, num_queries=QUERIES):
    """Return logits of classes (L, B, Q, O+1) and boxes (L, B, Q, 4), queries (L, B, Q, C), maps."""
    generator = torch.Generator().manual_seed(0)
    of_queries = (LAYERS, num_images, num_queries)
    shapes = [
        (*of_queries, 8),
        (*of_queries, 4),
        (*of_queries, 6),
        (num_images, 6, SIZE[0] // 4, SIZE[1] // 4),
    ]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def predictions(class_logits, box_logits, queries, maps, sizes):
    return DetrPredictions(
        class_logits=class_logits,
        boxes=box_logits.sigmoid(),
        queries=queries,
        outputs=torch.tensor(OUTPUTS),
        sizes=sizes,
        padded_size=SIZE,
        source=DrawnMasks(maps),
    )


def targets_of(*counts, sizes=None):
    sizes = sizes or [SIZE] * len(counts)
    return [
        draw_targets(count, size, num_classes=3, seed=number)
        for number, (count, size) in enumerate(zip(counts, sizes, strict=True))
    ]


def slow_losses(found, targets):
    """Compute pair by pair; the assignment of least cost is found by trying all."""
    terms = {key: torch.zeros(LAYERS) for key in ("ce", "bbox", "giou", "mask", "dice")}
    weight = torch.zeros(LAYERS)
    for layer, (image, target) in itertools.product(range(LAYERS), enumerate(targets)):
        boxes, count = boxes_of_masks(target.gt_masks), len(target)
        probabilities = found.class_logits[layer, image].softmax(-1)

        def pair(query, number, boxes=boxes, layer=layer, image=image):
            box = found.boxes[layer, image, query]
            giou = generalized_iou(corners_of(box), corners_of(boxes[number]))
            return (box - boxes[number]).abs().sum(), 1 - giou

        def cost(queries, target=target, probabilities=probabilities, pair=pair):
            total = 0.0
            for number, query in enumerate(queries):
                l1, giou = pair(query, number)
                output = OUTPUTS[target.gt_classes[number]]
                total += float(5 * l1 + 2 * giou - probabilities[query, output])
            return total

        chosen = min(itertools.permutations(range(QUERIES), count), key=cost)
        wanted = {query: OUTPUTS[target.gt_classes[number]] for number, query in enumerate(chosen)}
        for query in range(QUERIES):
            w = 1.0 if query in wanted else 0.1
            terms["ce"][layer] -= w * probabilities[query, wanted.get(query, OUTPUTS[-1])].log()
            weight[layer] += w
        for number, query in enumerate(chosen):
            l1, giou = pair(query, number)
            terms["bbox"][layer] += l1
            terms["giou"][layer] += giou
            if layer == LAYERS - 1:
                logits = found.masks(image, torch.tensor([query]))
                p = F.interpolate(logits[None], SIZE, mode="bilinear").sigmoid().flatten()
                height, width = target.gt_masks.shape[1:]
                t = (
                    F.pad(target.gt_masks[number], (0, SIZE[1] - width, 0, SIZE[0] - height))
                    .flatten()
                    .float()
                )
                focal = torch.where(t == 1, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
                terms["mask"][layer] += focal.mean()
                terms["dice"][layer] += 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    total = sum(len(target) for target in targets)
    factors = {"ce": total / weight, "bbox": 5, "giou": 2, "mask": 1.5, "dice": 0.5}
    return {key: factors[key] * value / total for key, value in terms.items()}


def test_losses_equal_the_slow_version():
    tensors, sizes = drawn_tensors(3), [SIZE, SIZE, (29, 41)]
    targets = targets_of(2, 0, 3, sizes=sizes)
    found = predictions(*(tensor.detach() for tensor in tensors), sizes)
    losses = criterion()(found, targets, SIZE)
    assert losses.keys() == BOX_KEYS | MASK_KEYS
    for key, values in slow_losses(found, targets).items():
        if key in ("mask", "dice"):
            assert losses[f"loss_{key}"].item() == pytest.approx(values[-1].item(), rel=1e-4)
            continue
        for suffix, value in zip(("_0", "_1", ""), values.tolist(), strict=True):
            assert losses[f"loss_{key}{suffix}"].item() == pytest.approx(value, rel=1e-4), key + suffix


def test_targets_without_a_pixel_are_left_out():
    tensors, targets = drawn_tensors(1), targets_of(3)
    targets[0].gt_masks[1] = False
    found = predictions(*tensors, [SIZE])
    seen = [targets[0][torch.tensor([0, 2])]]
    losses, expected = (criterion()(found, each, SIZE) for each in (targets, seen))
    assert {name: value.item() for name, value in losses.items()} == {
        name: value.item() for name, value in expected.items()
    }


COUNTS = {"normal": [3, 2], "half empty": [0, 2], "all empty": [0, 0], "more than queries": [9, 1]}


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("num_queries", [1, QUERIES])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_every_batch_gives_all_terms_and_gradients(counts, num_queries, with_masks):
    tensors = drawn_tensors(2, num_queries)
    losses = criterion(with_masks=with_masks)(predictions(*tensors, [SIZE] * 2), targets_of(*counts), SIZE)
    assert losses.keys() == BOX_KEYS | (MASK_KEYS if with_masks else set())
    sum(losses.values()).backward()
    for tensor in tensors[: 4 if with_masks else 2]:
        assert tensor.grad is not None and tensor.grad.isfinite().all()
    if not sum(counts):
        assert all(value.item() == 0 for name, value in losses.items() if "ce" not in name)


def test_only_the_last_prediction_without_deep_supervision():
    found = predictions(*drawn_tensors(1), [SIZE])
    last = criterion(deep_supervision=False)(found, targets_of(2), SIZE)
    assert last.keys() == {"loss_ce", "loss_bbox", "loss_giou"} | MASK_KEYS
    every = criterion()(found, targets_of(2), SIZE)
    assert all(last[name].item() == pytest.approx(every[name].item()) for name in last)


def test_an_unknown_mask_loss_lists_the_known_ones():
    with pytest.raises(ValueError, match="MASK_LOSS is 'lovasz'; it must be one of cross_entropy, focal"):
        criterion(mask_loss="lovasz")
