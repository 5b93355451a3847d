"""Packed records, and real processes of which one per machine reads a dataset."""

import json
import os
import pickle
import platform
import signal
import tempfile
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from mask2former.config import load_config
from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog
from mask2former.data.loader import build_test_loader, build_train_loader, sample_seed, sample_stream
from mask2former.data.records import Datasets
from mask2former.engine.evaluate import Evaluation
from mask2former.engine.setup.custom_data import DataFlags
from mask2former.engine.setup.resolve import resolve_config
from mask2former.utils.comm import all_gather_object, rank
from mask2former.utils.record_cache import PackedRecords, read_once_per_machine

RECORDS = [{"file_name": "a", "counts": [1, 2]}, {}, {"mask": b"\x00\xff", "nested": {"x": (1.5, None)}}]


def test_packing_keeps_records():
    packed = PackedRecords.pack(RECORDS)
    assert [packed[i] for i in range(len(packed))] == list(packed) == RECORDS
    assert list(packed.select(slice(1, 3))) == RECORDS[1:]
    assert list(packed.select(np.array([2, 0]))) == [RECORDS[2], RECORDS[0]]
    assert list(pickle.loads(pickle.dumps(packed))) == RECORDS
    assert len(PackedRecords.pack([])) == len(PackedRecords.concatenate([])) == 0


def test_concatenation_and_selection_keep_order():
    parts = [PackedRecords.pack(RECORDS), PackedRecords.pack([]), PackedRecords.pack([7]).select([0])]
    joined = PackedRecords.concatenate([PackedRecords.concatenate(parts), *parts])
    assert list(joined.select(slice(2, 6))) == [RECORDS[2], 7, *RECORDS[:2]]


class Unsendable(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def check_error(error, match):
    """Check that all processes get the error, and that the next collective call works."""

    def fail():
        raise error

    with pytest.raises(type(error) if isinstance(error, DatasetError) else Exception, match=match):
        read_once_per_machine(fail)
    assert all_gather_object(rank()) == [*range(dist.get_world_size())]


def read_records(folder):
    """Return RECORDS and this process's rank, which is also written to a file."""
    with open(folder / "read", "a") as file:
        file.write(f"{rank()} ")
    return [dict(record) for record in RECORDS], {"reader": rank()}


def readers(folder):
    """Return the ranks of the processes that have read since the last call."""
    dist.barrier()
    found = (folder / "read").read_text().split()
    dist.barrier()
    if rank() == 0:
        (folder / "read").write_text("")
    dist.barrier()
    return sorted(map(int, found))


def share_and_fail(folder):
    found, extra = read_once_per_machine(partial(read_records, folder))
    assert (list(found), extra) == (RECORDS, {"reader": 0})
    assert readers(folder) == [0]
    assert not [*(folder / "temporary").iterdir()]
    check_error(DatasetError("file.json, image id 3: broken"), "^file.json, image id 3: broken$")
    check_error(Unsendable("this", "that"), "this and that")
    check_error(AttributeError("no class"), "no class")


def use_machines(folder):
    """Process 1 is on another machine; then on one with the same host name and a separate file system."""
    platform.node = lambda: f"machine {rank()}"
    found, extra = read_once_per_machine(partial(read_records, folder))
    assert (list(found), extra) == (RECORDS, {"reader": rank()})
    assert readers(folder) == [0, 1]

    def broken_there():
        if rank() == 1:
            raise DatasetError("not on this machine")
        return [], None

    with pytest.raises(DatasetError, match="not on this machine"):
        read_once_per_machine(broken_there)
    platform.node = lambda: "machine"
    load = np.load
    np.load = lambda file, **options: load(file if rank() == 0 else file.with_name("elsewhere"), **options)
    found, extra = read_once_per_machine(partial(read_records, folder))
    assert (list(found), extra) == (RECORDS, {"reader": rank()})


def read_datasets_once(folder):
    """A user's function sets metadata while it reads."""

    def read():
        MetadataCatalog.get("mine").set(thing_classes=["one", "two"])
        annotations = [{"category_id": 1}, {"category_id": 1}, {"category_id": 0, "iscrowd": 1}]
        records, _ = read_records(folder)
        return [{**records[0], "annotations": annotations}, {"annotations": annotations[2:]}, records[1]]

    DatasetCatalog.register("mine", read)
    MetadataCatalog.get("mine").set(cannot_be_sent=lambda: 1).derive(lambda: {"derived": len(readers_here)})
    readers_here = [rank()]
    datasets = Datasets()
    found = datasets.load("mine")
    assert datasets.load("mine") is found
    assert readers(folder) == [0]
    assert [len(record.get("annotations", ())) for record in found.records] == [3, 1, 0]
    assert [*map(set, found.categories)] == [{0, 1}, {0}, set()]
    assert found.is_empty.tolist() == [False, True, False]
    facts = MetadataCatalog.get("mine").as_dict()
    assert (facts["thing_classes"], facts["derived"], facts["cannot_be_sent"]()) == (["one", "two"], 1, 1)
    Datasets().load("mine")
    assert readers(folder) == [0]
    with pytest.raises(DatasetError, match="no dataset is called 'nowhere'"):
        datasets.load("nowhere")
    complete_datasets_once(folder, datasets)


def complete_datasets_once(folder, datasets):
    """One process adds to the records of `mine`; what is known of them stays."""

    def add(records, metadata):
        read_records(folder)
        for number, record in enumerate(records):
            yield {**record, "annotations": [], "added": (number, len(metadata.thing_classes))}

    before = datasets.load("mine")
    for _ in range(2):
        datasets.complete("mine", add)
    assert readers(folder) == [0]
    after = datasets.load("mine")
    assert [record["added"] for record in after.records] == [(0, 2), (1, 2), (2, 2)]
    assert (after.categories, after.metadata) == (before.categories, before.metadata)
    assert after.is_empty.tolist() == [False, True, False]


def are_killed(folder):
    """The reader is killed while it reads: the other process gets an error and keeps what was read before."""
    found, _ = read_once_per_machine(partial(read_records, folder))
    dist.barrier()
    if rank() == 0:
        read_once_per_machine(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RuntimeError):
        read_once_per_machine(partial(read_records, folder))
    assert list(found) == RECORDS
    (folder / "survivor").touch()


def use_custom_data(folder):
    """The JSON is parsed once in a run, and both processes together see one stream of samples."""
    parsed = []
    load = json.load
    json.load = lambda file: parsed.append(file.name) or load(file)
    cfg = load_config(
        "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml",
        ["SEED", "3", "SOLVER.IMS_PER_BATCH", "4", "INPUT.IMAGE_SIZE", "32", "DATALOADER.NUM_WORKERS", "0"],
    )
    images, file = str(folder / "images"), str(folder / "instances.json")
    datasets = Datasets()
    cfg = resolve_config(cfg, datasets, data=DataFlags(images, file, images, file))
    batches = iter(build_train_loader(cfg, datasets=datasets))
    Evaluation(cfg, folder, datasets)
    test_loader = build_test_loader(cfg, "custom_val", datasets=datasets)
    tested = [sample["image_id"] for batch in test_loader for sample in batch]
    assert parsed.count(file) == (rank() == 0)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2
    steps = [[(sample["image_id"], sample["seed"]) for sample in next(batches)] for _ in range(3)]
    (folder / f"samples{rank()}.json").write_text(json.dumps([steps, tested]))


def draw_custom_data(folder):
    (folder / "images").mkdir()
    for number in range(5):
        Image.new("RGB", (32, 24), "gray").save(folder / f"images/{number}.png")
    images = [{"id": n, "file_name": f"{n}.png", "height": 24, "width": 32} for n in range(5)]
    triangle = {"segmentation": [[3, 3, 20, 3, 20, 20]], "area": 144.5, "bbox": [3, 3, 17, 17], "iscrowd": 0}
    annotations = [{"id": n, "image_id": n, "category_id": 5 + n % 2, **triangle} for n in range(4)]
    categories = [{"id": 6, "name": "six"}, {"id": 5, "name": "five"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))


def work(number, folder):
    tempfile.tempdir = str(folder / "temporary")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    last = are_killed if folder.name == "killed" else use_machines
    for job in (share_and_fail, read_datasets_once, use_custom_data, last):
        job(folder)


def prepared(folder):
    (folder / "temporary").mkdir(parents=True)
    draw_custom_data(folder)
    return folder


def test_one_process_per_machine_reads(tmp_path):
    folder = prepared(tmp_path / "data")
    mp.spawn(work, (folder,), nprocs=2)
    (first, one), (second, other) = (json.loads((folder / f"samples{n}.json").read_text()) for n in range(2))
    assert one + other == [0, 1, 2, 3, 4]
    shares = [a + b for a, b in zip(first, second, strict=True)]
    stream = sample_stream(np.ones(4), 3)  # the fifth image is empty
    samples = [[index, sample_seed(3, number)] for number, index in islice(stream, 12)]
    assert shares == [samples[:4], samples[4:8], samples[8:]]


def test_records_survive_a_killed_reader_and_its_files_are_removed(tmp_path):
    folder = prepared(tmp_path / "killed")
    context = mp.spawn(work, (folder,), nprocs=2, join=False)
    for process in context.processes:
        process.join(60)
    assert [process.exitcode for process in context.processes] == [-signal.SIGKILL, 0]
    assert (folder / "survivor").exists()
    assert not [*(folder / "temporary").iterdir()]
