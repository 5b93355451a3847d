"""The stream of samples: seeded, endless, resumable, the same for any number of processes and workers."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mask2former.data import (
    DatasetCatalog,
    DatasetError,
    MetadataCatalog,
    build_test_loader,
    build_train_loader,
    loader,
)
from mask2former.data.loader import (
    TrainBatches,
    epoch_order,
    repeat_factors,
    sample_seed,
    sample_stream,
    share_of_step,
)

repeats = st.lists(st.floats(1, 3), min_size=1, max_size=9).map(np.array)


def take(iterable, count):
    return list(itertools.islice(iterable, count))


def test_every_epoch_shows_every_record_once_in_another_order():
    indices = [index for _, index in take(sample_stream(np.ones(7), seed=3), 70)]
    epochs = [tuple(indices[i : i + 7]) for i in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) > 5
    assert indices != [index for _, index in take(sample_stream(np.ones(7), seed=4), 70)]


@given(repeats, st.integers(0, 99), st.integers(0, 60))
def test_the_stream_can_be_entered_anywhere(repeats, seed, first):
    assert (
        take(sample_stream(repeats, seed, first), 20)
        == take(sample_stream(repeats, seed), first + 20)[first:]
    )


def test_fractional_repeats_are_chances():
    counts = sum(np.bincount(epoch_order(np.array([1.0, 2.0, 1.25]), 0, e), minlength=3) for e in range(400))
    assert counts[0] == 400
    assert counts[1] == 800
    assert 460 < counts[2] < 540


@given(repeats, st.integers(0, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
def test_processes_together_take_what_one_would(repeats, seed, parts, share, first):
    def steps(part, parts):
        batches = TrainBatches(
            repeats=repeats, seed=seed, batch_size=total, first_step=first, rank=part, world_size=parts
        )
        return take(batches, 4)

    total = parts * share
    shares = [steps(part, parts) for part in range(parts)]
    joined = [list(itertools.chain(*step)) for step in zip(*shares, strict=True)]
    assert joined == steps(0, 1)
    assert [number for number, _ in joined[0]] == list(range(first * total, (first + 1) * total))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_a_piece_shows_the_same_with_any_number_of_processes(parts, pieces, size):
    """Of what a process has, the trainer makes pieces of its own accord: equal ones, in a row."""
    step = list(range(parts * pieces * size))
    shares = [share_of_step(step, rank=part, world_size=parts, micro_batches=pieces) for part in range(parts)]
    for piece in range(pieces):
        together = [sample for share in shares for sample in share[piece * size : (piece + 1) * size]]
        assert together == step[piece * parts * size : (piece + 1) * parts * size]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_a_step_that_pieces_do_not_divide_is_dealt_out_whole(parts, pieces, own):
    step = list(range(parts * own))
    shares = [share_of_step(step, rank=part, world_size=parts, micro_batches=pieces) for part in range(parts)]
    assert sorted(itertools.chain(*shares)) == step
    assert {len(share) for share in shares} == {own}


def test_sample_seeds_differ_and_fit_a_torch_generator():
    seeds = {sample_seed(seed, number) for seed in range(20) for number in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


def test_rare_categories_repeat():
    """Category 0 is on 4 of 4 images, 1 on one of 4: it wants 0.5 / 0.25 times, or the root of that."""
    shown = [(0,), (0,), (0,), (0, 1)]
    np.testing.assert_allclose(repeat_factors(shown, 0.5), [1, 1, 1, 2**0.5])
    np.testing.assert_allclose(repeat_factors(shown, 0.5, sqrt=False), [1, 1, 1, 2])
    np.testing.assert_allclose(repeat_factors(shown, 0.25), 1)
    np.testing.assert_allclose(repeat_factors([*shown, ()], 0.5), [1, 1, 1, 2.5**0.5, 1])


def same(first, second):
    """Whether two batches hold the same samples."""
    return all(
        a["image_id"] == b["image_id"]
        and a["seed"] == b["seed"]
        and torch.equal(a["image"], b["image"])
        and torch.equal(a["instances"].gt_masks, b["instances"].gt_masks)
        for a, b in zip(first, second, strict=True)
    )


def test_a_resumed_loader_continues(cfg):
    unbroken, resumed = take(build_train_loader(cfg), 6), take(build_train_loader(cfg, first_step=3), 3)
    assert all(len(batch) == 2 for batch in unbroken)
    assert all(same(a, b) for a, b in zip(unbroken[3:], resumed, strict=True))
    assert len({sample["seed"] for batch in unbroken for sample in batch}) == 12


def test_workers_change_nothing(cfg):
    alone = take(build_train_loader(cfg), 5)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert all(same(a, b) for a, b in zip(alone, take(build_train_loader(cfg), 5), strict=True))


def test_a_worker_hands_on_what_is_broken(cfg, drawn):
    cfg.DATALOADER.NUM_WORKERS = 1
    batches = build_train_loader(cfg)
    for image in drawn.images.iterdir():
        image.unlink()
    with pytest.raises(DatasetError, match=r"^\S+000\d\.png, image id \d: no such file$"):
        take(batches, 1)


def test_samplers_by_name(cfg, names):
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = "RepeatFactorTrainingSampler", 1.0
    shown = [
        {a["category_id"] for a in record["annotations"]} for record in DatasetCatalog.get(names["instance"])
    ]
    expected = repeat_factors(shown, 1.0)
    np.testing.assert_array_equal(build_train_loader(cfg).batch_sampler.repeats, expected)
    cfg.DATALOADER.SAMPLER_TRAIN = "Mine"
    with pytest.raises(ValueError, match="SAMPLER_TRAIN is 'Mine'; it can be one of TrainingSampler, Repeat"):
        build_train_loader(cfg)


def test_empty_images_are_filtered_if_asked(cfg):
    def images_seen():
        return {sample["image_id"] for batch in take(build_train_loader(cfg), 8) for sample in batch}

    assert images_seen() == {1, 2}
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert images_seen() == {1, 2, 3, 5}


def test_the_seed_is_the_argument_else_the_configs_else_drawn(cfg, monkeypatch):
    def seeds(**arguments):
        return [sample["seed"] for batch in take(build_train_loader(cfg, **arguments), 2) for sample in batch]

    assert seeds() == seeds(seed=11) == [sample_seed(11, number) for number in range(4)]
    assert seeds(seed=12) != seeds()
    cfg.SEED = -1
    assert seeds() != seeds()
    monkeypatch.setattr(loader, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="SEED is negative"):
        build_train_loader(cfg)


def test_what_cannot_be_trained_on(cfg, monkeypatch):
    monkeypatch.setattr(loader, "world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH is 2: 3 processes cannot share that evenly"):
        build_train_loader(cfg)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(DatasetError, match=r"nothing to train on: DATASETS\.TRAIN is empty"):
        build_train_loader(cfg)
    cfg.DATASETS.TRAIN = ("drawn_instance",)
    with pytest.raises(DatasetError, match="did you mean drawn_instances"):
        build_train_loader(cfg)


def test_datasets_can_be_joined_if_they_agree(cfg, names):
    cfg.DATASETS.TRAIN = (names["instance"], names["instance"])
    assert len(build_train_loader(cfg).dataset.records) == 4
    cfg.DATASETS.TRAIN = (names["instance"], names["panoptic"])
    with pytest.raises(
        DatasetError, match="'drawn_instances' and 'drawn_panoptic' cannot be joined: 'stuff_"
    ):
        build_train_loader(cfg)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_in_evaluation_each_image_comes_once(cfg, names, monkeypatch, processes, batch_size):
    monkeypatch.setattr(loader, "world_size", lambda: processes)
    seen = []
    for part in range(processes):
        monkeypatch.setattr(loader, "rank", lambda part=part: part)
        own = build_test_loader(cfg, names["panoptic"], batch_size)
        batches = list(own)
        assert len(own.dataset.records) == sum(map(len, batches))  # those of others are not kept
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        seen += [sample["image_id"] for batch in batches for sample in batch]
    assert seen == [1, 2, 3, 5]


def test_samples_reach_workers_that_are_spawned(cfg):
    """Where processes do not fork, everything a worker needs is pickled."""
    samples = build_train_loader(cfg).dataset
    assert same([pickle.loads(pickle.dumps(samples))[5, 0]], [samples[5, 0]])


def test_metadata_is_not_read_in_the_workers(cfg, names):
    """The mapper holds a snapshot: later changes of the catalog, and other processes, do not matter to it."""
    metadata = build_train_loader(cfg).dataset.mapper.metadata
    assert metadata is not MetadataCatalog.get(names["instance"])
    registered = MetadataCatalog.get(names["instance"]).as_dict()
    assert metadata.as_dict() == {"ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE, **registered}
