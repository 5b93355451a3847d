"""The table of published models against the published configs and the page that shows it."""

import re
from pathlib import Path

import pytest

from mask2former.weights import model_zoo as zoo

ROOT = Path(__file__).parents[2]
LEAVES = sorted(
    path.relative_to(ROOT / "configs").as_posix()
    for folder in ("coco", "ade20k", "cityscapes", "mapillary-vistas")
    for path in (ROOT / "configs" / folder).rglob("maskformer*.yaml")
)


def rows():
    """Config -> the cells of its row on the page."""
    lines = (ROOT / "docs" / "model_zoo.md").read_text(encoding="utf-8").splitlines()
    header, found = [], {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| config"):
            header = cells
        elif config := re.match(r"\| \[.*?\]\(\.\./configs/(.*?)\)", line):
            found[config[1]] = dict(zip(header, cells, strict=True))
    return found


def test_every_published_config_has_weights_and_no_other():
    assert len(LEAVES) == 47
    assert sorted(zoo.table()["models"]) == LEAVES


@pytest.mark.parametrize(
    "given",
    [
        "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
        "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
        "/somewhere/configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
    ],
)
def test_the_address_for_a_config(given):
    address = "https://dl.fbaipublicfiles.com/maskformer/mask2former/coco/panoptic/maskformer2_R50_bs16_50ep"
    assert zoo.published_weights(given) == address + "/model_final_94dc52.pkl"


@pytest.mark.parametrize("given", ["my.yaml", "maskformer2_R50_bs16_50ep.yaml", ""])
def test_no_address_for_others(given):
    assert zoo.published_weights(given) is None


def test_no_address_appears_twice():
    addresses = [zoo.published_weights(config) for config in LEAVES]
    assert len(set(addresses)) == len(addresses)


def test_figures_that_the_paper_gives():
    """The tables of the paper, written down apart from the zoo's."""
    figures = {name: model["figures"] for name, model in zoo.table()["models"].items()}
    assert figures["coco/panoptic-segmentation/maskformer2_R101_bs16_50ep.yaml"]["PQ"] == 52.6
    assert figures["coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"]["boundary AP"] == 30.6
    swin_l = "maskformer2_swin_large_IN21k_384_bs16"
    assert figures[f"ade20k/semantic-segmentation/swin/{swin_l}_160k_res640.yaml"]["mIoU (ms+flip)"] == 57.3
    assert figures["cityscapes/semantic-segmentation/maskformer2_R50_bs16_90k.yaml"]["mIoU"] == 79.4


def test_the_page_shows_the_table():
    shown = rows()
    assert sorted(shown) == LEAVES
    for config, model in zoo.table()["models"].items():
        row = shown[config]
        assert row["backbone"] == model["backbone"]
        assert row["schedule"] == model["schedule"]
        for name, value in model["figures"].items():
            assert float(row[name]) == value
        assert f"({zoo.published_weights(config)})" in row["weights"]


def test_the_page_states_the_license():
    page = (ROOT / "docs" / "model_zoo.md").read_text(encoding="utf-8")
    license = zoo.table()["license"]
    assert license["name"] in page and license["url"] in page
    assert license["name"] in zoo.license_notice()


def test_the_page_says_what_every_backbone_file_is_converted_from():
    page = (ROOT / "docs" / "model_zoo.md").read_text(encoding="utf-8")
    for name, origin in zoo.table()["backbones"].items():
        assert f"| `{name}` | {origin} |" in page
