"""Loaders: a seeded, infinite, resumable stream, the same with any number of processes and workers."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog, loader
from mask2former.data.loader import (
    TrainBatches,
    build_test_loader,
    build_train_loader,
    epoch_order,
    repeat_factors,
    sample_seed,
    sample_stream,
    share_of_step,
)

repeats = st.lists(st.floats(1, 3), min_size=1, max_size=9).map(np.array)


def take(iterable, count):
    return list(itertools.islice(iterable, count))


def test_each_epoch_has_each_record_once_in_random_order():
    indices = [index for _, index in take(sample_stream(np.ones(7), seed=3), 70)]
    epochs = [tuple(indices[i : i + 7]) for i in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) > 5
    assert indices != [index for _, index in take(sample_stream(np.ones(7), seed=4), 70)]


@given(repeats, st.integers(0, 99), st.integers(0, 60))
def test_the_stream_can_begin_at_any_sample(repeats, seed, first):
    whole = take(sample_stream(repeats, seed), first + 20)
    assert take(sample_stream(repeats, seed, first), 20) == whole[first:]


def test_fractional_repeats_are_probabilities():
    counts = sum(np.bincount(epoch_order(np.array([1.0, 2.0, 1.25]), 0, e), minlength=3) for e in range(400))
    assert counts[0] == 400
    assert counts[1] == 800
    assert 460 < counts[2] < 540


@given(repeats, st.integers(0, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
def test_processes_together_take_the_samples_of_one(repeats, seed, parts, share, first):
    def steps(part, parts):
        return take(TrainBatches(repeats, seed, total, first, rank=part, world_size=parts), 4)

    total = parts * share
    shares = [steps(part, parts) for part in range(parts)]
    joined = [list(itertools.chain(*step)) for step in zip(*shares, strict=True)]
    assert joined == steps(0, 1)
    numbers = range(first * total, (first + 1) * total)
    assert [key[1] for key in joined[0]] == [sample_seed(seed, number) for number in numbers]


def shares_of(step, processes, micro_batches):
    return [share_of_step(step, rank, processes, micro_batches) for rank in range(processes)]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_a_micro_batch_is_the_same_with_any_number_of_processes(processes, micro_batches, size):
    """The trainer divides the share of a process into equal micro-batches, in order."""
    step = list(range(processes * micro_batches * size))
    shares = shares_of(step, processes, micro_batches)
    for i in range(micro_batches):
        together = [sample for share in shares for sample in share[i * size : (i + 1) * size]]
        assert together == step[i * processes * size : (i + 1) * processes * size]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_a_step_that_micro_batches_do_not_divide_is_shared_evenly(processes, micro_batches, size):
    step = list(range(processes * size))
    shares = shares_of(step, processes, micro_batches)
    assert sorted(itertools.chain(*shares)) == step
    assert {len(share) for share in shares} == {size}


def test_sample_seeds_differ_and_fit_a_torch_generator():
    seeds = {sample_seed(seed, number) for seed in range(20) for number in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


def test_images_with_rare_categories_are_repeated():
    """Category 0 is in 4 of 4 images, 1 in one of 4: its factor is 0.5 / 0.25, or the root of that."""
    shown = [(0,), (0,), (0,), (0, 1)]
    np.testing.assert_allclose(repeat_factors(shown, 0.5), [1, 1, 1, 2**0.5])
    np.testing.assert_allclose(repeat_factors(shown, 0.5, sqrt=False), [1, 1, 1, 2])
    np.testing.assert_allclose(repeat_factors(shown, 0.25), 1)
    np.testing.assert_allclose(repeat_factors([*shown, ()], 0.5), [1, 1, 1, 2.5**0.5, 1])


def same(first, second):
    """Return True if two batches have the same samples."""
    return all(
        a["image_id"] == b["image_id"]
        and a["seed"] == b["seed"]
        and torch.equal(a["image"], b["image"])
        and torch.equal(a["instances"].gt_masks, b["instances"].gt_masks)
        for a, b in zip(first, second, strict=True)
    )


def test_a_resumed_loader_continues(cfg):
    unbroken, resumed = take(build_train_loader(cfg), 6), take(build_train_loader(cfg, 3), 3)
    assert all(len(batch) == 2 for batch in unbroken)
    assert all(same(a, b) for a, b in zip(unbroken[3:], resumed, strict=True))
    assert len({sample["seed"] for batch in unbroken for sample in batch}) == 12


def test_samples_do_not_depend_on_workers(cfg):
    alone = take(build_train_loader(cfg), 5)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert all(same(a, b) for a, b in zip(alone, take(build_train_loader(cfg), 5), strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_workers_are_raised_with_their_own_message(cfg, synthetic, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    batches = build_train_loader(cfg)
    for image in synthetic.images.iterdir():
        image.unlink()
    with pytest.raises(DatasetError, match=r"^\S+000\d\.png, image id \d: no such file$"):
        take(batches, 1)


def test_the_sampler_is_chosen_by_name(cfg, names):
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = "RepeatFactorTrainingSampler", 1.0
    records = DatasetCatalog.get(names["instance"])
    expected = repeat_factors([{a["category_id"] for a in record["annotations"]} for record in records], 1.0)
    np.testing.assert_array_equal(build_train_loader(cfg).batch_sampler.repeats, expected)
    cfg.DATALOADER.SAMPLER_TRAIN = "Mine"
    with pytest.raises(ValueError, match="SAMPLER_TRAIN is 'Mine'; it can be one of TrainingSampler, Repeat"):
        build_train_loader(cfg)


def test_images_without_objects_are_filtered_by_the_config(cfg):
    def images_seen():
        return {sample["image_id"] for batch in take(build_train_loader(cfg), 8) for sample in batch}

    assert images_seen() == {1, 2}
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert images_seen() == {1, 2, 3, 5}


def test_the_seed_is_the_argument_or_that_of_the_config_or_random(cfg, monkeypatch):
    def seeds(**arguments):
        return [sample["seed"] for batch in take(build_train_loader(cfg, **arguments), 2) for sample in batch]

    assert seeds() == seeds(seed=11) == [sample_seed(11, number) for number in range(4)]
    assert seeds(seed=12) != seeds()
    cfg.SEED = -1
    assert seeds() != seeds()
    monkeypatch.setattr(loader, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="SEED is negative"):
        build_train_loader(cfg)


def test_unusable_training_configs_are_errors(cfg, monkeypatch):
    monkeypatch.setattr(loader, "world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH is 2: 3 processes cannot share that evenly"):
        build_train_loader(cfg)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(DatasetError, match=r"nothing to train on: DATASETS\.TRAIN is empty"):
        build_train_loader(cfg)
    cfg.DATASETS.TRAIN = ("synthetic_instance",)
    with pytest.raises(DatasetError, match="did you mean synthetic_instances"):
        build_train_loader(cfg)


def test_datasets_with_equal_classes_can_be_concatenated(cfg, names):
    cfg.DATASETS.TRAIN = (names["instance"], names["instance"])
    assert len(build_train_loader(cfg).dataset.records) == 4
    cfg.DATASETS.TRAIN = (names["instance"], names["panoptic"])
    with pytest.raises(
        DatasetError, match="'synthetic_instances' and 'synthetic_panoptic' cannot be joined: 'stuff_"
    ):
        build_train_loader(cfg)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_test_loaders_have_each_image_once(cfg, names, monkeypatch, processes, batch_size):
    monkeypatch.setattr(loader, "world_size", lambda: processes)
    seen = []
    for part in range(processes):
        monkeypatch.setattr(loader, "rank", lambda part=part: part)
        own = build_test_loader(cfg, names["panoptic"], batch_size)
        batches = list(own)
        assert len(own.dataset.records) == sum(map(len, batches))  # other processes' records are not kept
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        seen += [sample["image_id"] for batch in batches for sample in batch]
    assert seen == [1, 2, 3, 5]


def test_samples_can_be_pickled_for_spawned_workers(cfg):
    samples = build_train_loader(cfg).dataset
    assert same([pickle.loads(pickle.dumps(samples))[0, 5]], [samples[0, 5]])


def test_mappers_have_a_snapshot_of_the_metadata(cfg, names):
    metadata = build_train_loader(cfg).dataset.mapper.metadata
    assert metadata is not MetadataCatalog.get(names["instance"])
    registered = MetadataCatalog.get(names["instance"]).as_dict()
    assert metadata.as_dict() == {"ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE, **registered}
