"""EoMT against transformers' with drawn weights, and against slow versions of its parts."""

import pytest
import torch
from small_eomts import CLASSES, KINDS, load_theirs, small_eomt, theirs
from small_vits import draw

from mask2former.config import get_cfg
from mask2former.modeling.eomt.head import EomtHead
from mask2former.modeling.eomt.options import Annealing, build_annealing
from mask2former.modeling.predictions import Prediction, multiply_masks
from mask2former.modeling.vit.positions import TokenLayout
from mask2former.structures import Instances
from mask2former.weights.rename import translate


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_equals_transformers(kind, side, masked, tmp_path):
    oracle = theirs(kind, side, masked)
    model = load_theirs(small_eomt(kind, side), oracle, tmp_path)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        predictions, wanted = model.network(images), oracle(images)
    assert len(predictions.layers) == (3 if masked else 1)
    for ours, their in (
        (predictions.layers[-1].class_logits, wanted.class_queries_logits),
        (predictions.mask_logits(), wanted.masks_queries_logits),
    ):
        assert ours.shape == their.shape and their.std() > 0.05
        torch.testing.assert_close(ours, their, rtol=1e-5, atol=1e-5 * their.abs().max().item())


def same_points(monkeypatch):
    """Let every draw of points, theirs and ours, be the first of the same points."""
    fixed = torch.rand(1024, 2, generator=torch.Generator().manual_seed(7))

    def draw(*shape, **_):
        return fixed[: shape[-2]].expand(shape).clone()

    monkeypatch.setattr(torch, "rand", draw)


def targets_of(sizes, side, seed=3):
    """Return targets of images with so many objects each: rectangles that overlap."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for count in sizes:
        masks = torch.zeros(count, side, side, dtype=torch.bool)
        for mask in masks:
            top, left = torch.randint(0, side // 2, (2,), generator=generator).tolist()
            mask[top : top + side // 3, left : left + side // 2] = True
        classes = torch.randint(0, CLASSES, (count,), generator=generator)
        found.append(Instances((side, side), gt_classes=classes, gt_masks=masks))
    return found


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_loss_and_gradients_equal_transformers_at_the_same_points(kind, monkeypatch, tmp_path):
    side = 64
    oracle = theirs(kind, side)
    model = load_theirs(small_eomt(kind, side), oracle, tmp_path)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    targets = targets_of((3, 1), side)
    same_points(monkeypatch)
    wanted = oracle.train()(
        images,
        mask_labels=[target.gt_masks.float() for target in targets],
        class_labels=[target.gt_classes for target in targets],
    ).loss
    wanted.backward()
    losses = model.train().criterion(model.network(images), targets, (side, side), [0, 1])
    assert len(losses) == 3 * 3  # before both blocks and after them
    loss = sum(losses.values())
    loss.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
    gradients = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    _, gradients = translate({name: grad for name, grad in gradients.items() if grad is not None})
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert set(ours) == set(gradients)
    for name, gradient in ours.items():
        scale = gradients[name].abs().max().item()
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-5 * scale)


def test_masks_are_removed_block_after_block():
    schedule = Annealing(starts=[0, 10], ends=[10, 30], power=2)
    assert schedule.probabilities(0) == [1, 1]
    assert schedule.probabilities(5) == [0.25, 1]
    assert schedule.probabilities(10) == [0, 1]
    assert schedule.probabilities(25) == [0, 0.0625]
    assert schedule.probabilities(30) == schedule.probabilities(99) == [0, 0]


def test_the_published_steps_follow_from_shares_of_training():
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER = 88692
    cfg.MODEL.EOMT.ANNEALING_START = (0.1666667, 0.3333333, 0.5, 0.6666667)
    cfg.MODEL.EOMT.ANNEALING_END = (0.3333333, 0.5, 0.6666667, 0.8333333)
    schedule = build_annealing(cfg)
    assert schedule.starts == [14782, 29564, 44346, 59128]
    assert schedule.ends == [29564, 44346, 59128, 73910]
    cfg.MODEL.EOMT.ANNEALING_END = (0.5,)
    with pytest.raises(ValueError, match=r"ANNEALING_START .* NUM_BLOCKS = 4 shares"):
        build_annealing(cfg)


def test_probabilities_are_saved_and_loaded():
    trained, fresh = small_eomt(), small_eomt()
    trained.sem_seg_head.set_probabilities([0.0, 0.0])
    images = torch.zeros(1, 3, 64, 64)
    assert len(fresh.network(images).layers) == 3
    fresh.load_state_dict(trained.state_dict())
    assert len(fresh.network(images).layers) == 1
    fresh.sem_seg_head.attn_mask_probs.fill_(1)  # as whole_model copies an unsharded model
    assert len(fresh.eval().network(images).layers) == 3


def test_blocks_without_masks_still_predict_in_training():
    model = draw(small_eomt())
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model.sem_seg_head.set_probabilities([0.0, 0.0])
    in_evaluation = model.network(images)
    in_training = model.train().network(images)
    assert len(in_evaluation.layers) == 1 and len(in_training.layers) == 3
    torch.testing.assert_close(in_training.mask_logits(), in_evaluation.mask_logits())
    first, last = in_training.mask_logits(0), in_training.mask_logits(2)
    features = in_training.layers[0].mask_features
    explicit = torch.einsum("bqc,bchw->bqhw", in_training.layers[0].mask_embed, features)
    torch.testing.assert_close(first, explicit)
    assert not torch.allclose(first, last)


def test_a_share_of_the_queries_is_masked_whole():
    head = EomtHead(width=8, num_classes=2, num_queries=2000, num_blocks=1, patch_size=4).train()
    features = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(1))
    embed = torch.randn(1, 2000, 8, generator=torch.Generator().manual_seed(2))
    prediction = Prediction(torch.zeros(1, 2000, 3), embed, mask_features=features)
    whole = head._blocked(prediction, TokenLayout(6, 6), 1.0)
    assert torch.equal(whole, multiply_masks(embed, features).flatten(2) <= 0)
    torch.manual_seed(0)
    some = head._blocked(prediction, TokenLayout(6, 6), 0.3)
    masked = some.any(-1)
    assert torch.equal(some[masked], whole[masked])
    assert 0.25 < masked.float().mean() < 0.35


def test_recomputed_blocks_have_the_same_gradients():
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    gradients = []
    for checkpointing in (False, True):
        model = draw(small_eomt(checkpointing=checkpointing)).train()
        sum(model.criterion(model.network(images), targets_of((2,), 64), (64, 64), [0]).values()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("size", [4, 8])
def test_masks_have_stride_4_with_smaller_patches(size):
    model = draw(small_eomt(patch_size=size, position_grid=64 // size)).train()
    predictions = model.network(torch.randn(1, 3, 64, 96))
    assert [predictions.mask_logits(i).shape for i in range(3)] == [(1, 5, 16, 24)] * 3


def test_other_patches_are_an_error():
    with pytest.raises(ValueError, match="PATCH_SIZE is 12; EoMT takes 4, 8, 16"):
        small_eomt(patch_size=12)
