"""Catalogs: names and metadata that are found or refused; nothing is read too early."""

import pickle

import pytest

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog
from mask2former.data.catalog import Metadata


def test_unknown_names_are_errors_that_list_near_and_known_names():
    with pytest.raises(
        DatasetError, match=r"no dataset is called 'coco_2017_trian'; did you mean coco_2017_train"
    ):
        DatasetCatalog.get("coco_2017_trian")
    with pytest.raises(DatasetError, match=r"registered are: ade20k_full_.*shapes_panoptic_val"):
        DatasetCatalog.get("?")


class FakeHost:
    """Catalogs of a framework that has the dataset "hosts"."""

    def __init__(self):
        self.added = []

    def add(self, name):
        self.added.append(name)

    def __contains__(self, name):
        return name == "hosts"

    def get(self, name):
        return [{"file_name": name}]

    def facts(self, name):
        return {"stuff_classes": ["sky"]} if name in self else {}


def test_a_host_gets_our_datasets_and_offers_its_own():
    datasets, facts, host = type(DatasetCatalog)(), type(MetadataCatalog)(), FakeHost()
    datasets.register("before", list)
    datasets.join(host)
    facts.join(host)
    datasets.register("after", list)
    assert host.added == ["before", "after"]
    assert "hosts" in datasets and datasets.get("hosts") == [{"file_name": "hosts"}]
    assert "neither" not in datasets and datasets.list() == ["after", "before"]
    with pytest.raises(DatasetError, match="'neither'"):
        datasets.get("neither")
    assert facts.get("hosts").stuff_classes == ["sky"] and facts.get("before").as_dict() == {"name": "before"}


def test_names_are_unique_and_can_be_removed():
    catalog = type(DatasetCatalog)()
    catalog.register("once", lambda: [{"file_name": "a"}])
    with pytest.raises(DatasetError, match="'once' is registered already"):
        catalog.register("once", list)
    assert catalog.get("once") == [{"file_name": "a"}] and catalog.list() == ["once"]
    catalog.remove("once")
    assert "once" not in catalog


def test_facts_cannot_change():
    metadata = Metadata("m")
    metadata.thing_classes = ["a"]
    metadata.thing_classes = ["a"]
    with pytest.raises(
        DatasetError, match=r"'thing_classes' of dataset 'm' is \['a'\], and cannot become \['b'\]"
    ):
        metadata.thing_classes = ["b"]
    assert metadata.get("ignore_label", 255) == 255
    assert metadata.as_dict() == {"name": "m", "thing_classes": ["a"]}


def test_absent_facts_are_errors_that_list_the_present_ones():
    with pytest.raises(
        AttributeError, match="dataset 'm' has no metadata 'stuff'; it has: ignore_label, name"
    ):
        Metadata("m").set(ignore_label=0).stuff  # noqa: B018


def test_facts_are_derived_on_access_unless_set():
    calls = []

    def derived():
        calls.append(1)
        return {"a": len(calls), "b": 2}

    metadata = Metadata("m").set(b=3).derive(derived)
    assert not calls
    assert (metadata.b, metadata.a, metadata.a) == (3, 1, 2)
    with pytest.raises(DatasetError, match="cannot become"):
        metadata.a = 99


def test_snapshots_can_be_pickled():
    metadata = Metadata("m").set(b=3).derive(lambda: {"a": 1})
    copy = pickle.loads(pickle.dumps(metadata.snapshot()))
    assert copy.as_dict() == {"name": "m", "a": 1, "b": 3}


def test_metadata_is_kept_until_it_is_removed():
    catalog = type(MetadataCatalog)()
    catalog.get("kept").x = 1
    assert catalog.get("kept").x == 1 and catalog.list() == ["kept"]
    catalog.remove("kept")
    assert catalog.get("kept").get("x") is None
