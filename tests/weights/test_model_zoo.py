"""The table of published models against the published configs and the page that shows it."""

import re
from pathlib import Path

import pytest
from published_configs import MASK2FORMER, MASKFORMER, VIDEO, is_experiment

from mask2former.config import load_config
from mask2former.weights import model_zoo as zoo

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "model_zoo.md").read_text(encoding="utf-8")
MASK2FORMER_LEAVES, MASKFORMER_LEAVES, VIDEO_LEAVES = (
    sorted(filter(is_experiment, each)) for each in (MASK2FORMER, MASKFORMER, VIDEO)
)


def rows():
    """Return the cells of each config's row on the page, by heading."""
    header, found = [], {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| config"):
            header = cells
        elif config := re.match(r"\| \[.*?\]\(\.\./configs/(.*?)\)", line):
            found[config[1]] = dict(zip(header, cells, strict=True))
    return found


def table_rows():
    """Return the table's row of each config, of all projects."""
    families = (zoo.table(), *(zoo.table()[family] for family in zoo.FAMILIES))
    return {config: row for family in families for config, row in family["models"].items()}


def test_exactly_the_published_configs_have_weights():
    assert (len(MASK2FORMER_LEAVES), len(MASKFORMER_LEAVES), len(VIDEO_LEAVES)) == (47, 30, 12)
    assert sorted(zoo.table()["models"]) == MASK2FORMER_LEAVES
    assert sorted(zoo.table()["maskformer"]["models"]) == MASKFORMER_LEAVES
    assert sorted(zoo.table()["video"]["models"]) == VIDEO_LEAVES


@pytest.mark.parametrize("folder", ["", "configs/", "/somewhere/configs/"])
def test_a_config_has_its_published_model(folder):
    model = zoo.model_of_config(f"{folder}coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml")
    url = "https://dl.fbaipublicfiles.com/maskformer/mask2former/coco/panoptic/maskformer2_R50_bs16_50ep"
    assert model.weights == url + "/model_final_94dc52.pkl"
    assert model.name == "coco-panoptic-r50"


@pytest.mark.parametrize("given", ["my.yaml", "maskformer2_R50_bs16_50ep.yaml", ""])
def test_other_configs_have_no_published_model(given):
    assert zoo.model_of_config(given) is None


def test_names_and_urls_are_unique():
    models = zoo.published_models()
    assert [model.config for model in models.values()] == list(table_rows())
    assert len({model.weights for model in models.values()}) == len(models) == 106
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in models)
    swin = zoo.find_model("ade20k-semantic-swin-b-in21k")
    assert (swin.dataset, swin.task, swin.backbone) == ("ade20k", "semantic", "Swin-B (IN21k)")
    assert zoo.find_model("coco-panoptic-swin-l").figures["PQ"] == 57.8


@pytest.mark.parametrize(
    ("hub", "name"),
    [
        ("facebook/mask2former-swin-large-coco-panoptic", "coco-panoptic-swin-l"),
        ("facebook/mask2former-swin-base-IN21k-ade-semantic", "ade20k-semantic-swin-b-in21k"),
        ("facebook/mask2former-swin-base-ade-semantic", "ade20k-semantic-swin-b"),
        ("facebook/mask2former-swin-base-IN21k-cityscapes-instance", "cityscapes-instance-swin-b-in21k"),
        ("facebook/mask2former-swin-large-mapillary-vistas-semantic", "mapillary-vistas-semantic-swin-l"),
        ("facebook/video-mask2former-swin-tiny-youtubevis-2019-instance", "youtubevis-2019-instance-swin-t"),
        ("facebook/video-mask2former-swin-large-youtubevis-2021-instance", "youtubevis-2021-instance-swin-l"),
        ("coco-instance-r50", "coco-instance-r50"),
        ("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml", "coco-panoptic-r50"),
        ("facebook/mask2former-swin-tiny-mapillary-vistas-instance", None),
        ("facebook/maskformer-swin-large-coco", "maskformer-coco-panoptic-swin-l"),
        ("facebook/maskformer-swin-base-coco", "maskformer-coco-panoptic-swin-b-in21k"),
        ("facebook/maskformer-swin-tiny-ade", "maskformer-ade20k-semantic-swin-t"),
        ("maskformer/coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml", "maskformer-coco-panoptic-r50"),
        ("facebook/maskformer-swin-large-coco-extra", None),
        ("facebook/detr-resnet-50-dc5-panoptic", "detr-coco-panoptic-r50-dc5"),
        ("facebook/detr-resnet-50", None),
        ("tue-mps/coco_panoptic_eomt_large_640", "eomt-coco-panoptic-l-640"),
        ("tue-mps/coco_panoptic_eomt_small_640_2x", "eomt-coco-panoptic-s-640"),
        ("tue-mps/coco_panoptic_eomt_small_640_dinov3", None),
    ],
)
def test_names_of_the_hub_are_known(hub, name):
    assert zoo.published_name(hub) == name
    if name and hub != name:
        with pytest.raises(ValueError, match=rf'type Predictor\.from_zoo\("{name}"\)'):
            zoo.find_model(hub)


def test_an_unknown_name_is_an_error_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"'coco-panoptic-swinl'; near it: coco-panoptic-swin-l,"):
        zoo.find_model("coco-panoptic-swinl")
    with pytest.raises(ValueError, match=r"'COCO-Panoptic-R50'; near it: coco-panoptic-r50,"):
        zoo.find_model("COCO-Panoptic-R50")


def test_figures_are_those_of_the_paper():
    """Compare with figures copied from the tables of the paper."""
    figures = {name: model["figures"] for name, model in zoo.table()["models"].items()}
    assert figures["coco/panoptic-segmentation/maskformer2_R101_bs16_50ep.yaml"]["PQ"] == 52.6
    assert figures["coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"]["boundary AP"] == 30.6
    swin_l = "maskformer2_swin_large_IN21k_384_bs16"
    assert figures[f"ade20k/semantic-segmentation/swin/{swin_l}_160k_res640.yaml"]["mIoU (ms+flip)"] == 57.3
    assert figures["cityscapes/semantic-segmentation/maskformer2_R50_bs16_90k.yaml"]["mIoU"] == 79.4


def test_video_models_by_name():
    """Compare with rows copied from the authors' page."""
    first, last = (
        zoo.find_model(f"youtubevis-{name}") for name in ("2019-instance-r50", "2021-instance-swin-l")
    )
    assert (first.figures, last.figures) == ({"AP": 46.4}, {"AP": 52.6})
    root = "https://dl.fbaipublicfiles.com/maskformer/video_mask2former/ytvis_20"
    assert first.weights == f"{root}19/video_maskformer2_R50_bs16_8ep/model_final_34112b.pkl"
    folder = "video_maskformer2_swin_large_IN21k_384_bs16_8ep"
    assert last.weights == f"{root}21/{folder}/model_final_4da256.pkl"


def test_maskformers_models_by_name():
    """Compare with rows copied from the authors' page."""
    plus = zoo.find_model("per-pixel-baseline-plus-ade20k-full-semantic-r50")
    assert plus[1:5] == ("PerPixelBaseline+", "ade20k-full", "semantic", "R50")
    root = "https://dl.fbaipublicfiles.com/maskformer/"
    config = "per_pixel_baseline_plus_R50_bs16_200k"
    assert plus.weights == f"{root}semantic-ade20k-full/{config}/model_final_4d31f2.pkl"
    baseline, stuff = (
        zoo.find_model(name)
        for name in ("per-pixel-baseline-ade20k-semantic-r50", "maskformer-coco-stuff-10k-semantic-r101c")
    )
    assert (baseline.method, baseline.figures) == ("PerPixelBaseline", {"mIoU": 39.2, "mIoU (ms+flip)": 40.9})
    assert (stuff.method, stuff.figures["mIoU"]) == ("MaskFormer", 38.0)
    swin = zoo.find_model("maskformer-coco-panoptic-swin-l")
    assert (swin.figures, swin.weights) == ({"PQ": 52.7}, f"{root}panoptic-coco/model_final_7505c4.pkl")


def test_detrs_models_by_name():
    """Compare with a row copied from the authors' page."""
    dc5 = zoo.find_model("detr-coco-panoptic-r50-dc5")
    assert dc5.figures == {"PQ": 44.6, "AP": 31.9, "box AP": 40.2}
    assert dc5.weights == "https://dl.fbaipublicfiles.com/detr/detr-r50-dc5-panoptic-da08f1b1.pth"
    assert "DETR" in zoo.license_notice(dc5.weights) and "Apache-2.0" in zoo.license_notice(dc5.weights)


def test_eomts_models_by_name():
    """Compare with rows copied from the authors' page."""
    semantic = zoo.find_model("eomt-ade20k-semantic-l-512")
    assert semantic[1:5] == ("EoMT", "ade20k", "semantic", "DINOv2-L")
    assert semantic.figures == {"mIoU": 58.4}
    folder = "https://huggingface.co/tue-mps/ade20k_semantic_eomt_large_512"
    assert semantic.weights == f"{folder}/resolve/main/pytorch_model.bin"
    assert "EoMT" in zoo.license_notice(semantic.weights) and "MIT" in zoo.license_notice(semantic.weights)
    assert zoo.find_model("eomt-coco-panoptic-g-1280").figures == {"PQ": 59.2}


def eomt_models():
    return [model for model in zoo.published_models().values() if model.method == "EoMT"]


@pytest.mark.parametrize("model", eomt_models(), ids=lambda model: model.name)
def test_an_eomt_has_the_config_of_its_data_size_and_side(model):
    cfg = load_config(model.config)
    _, dataset, task, size, side = model.name.split("-")
    assert cfg.MODEL.META_ARCHITECTURE == "EoMT" and dataset in cfg.DATASETS.TEST[0]
    tasks = cfg.MODEL.MASK_FORMER.TEST
    on = {"panoptic": tasks.PANOPTIC_ON, "instance": tasks.INSTANCE_ON, "semantic": tasks.SEMANTIC_ON}
    assert on[task] and not (task == "semantic" and tasks.PANOPTIC_ON)
    widths = {"s": 384, "b": 768, "l": 1024, "g": 1536}
    assert widths[size] == cfg.MODEL.VIT.EMBED_DIM
    assert cfg.INPUT.MIN_SIZE_TEST == 16 * cfg.MODEL.VIT.POSITION_GRID == int(side)


@pytest.mark.parametrize(
    "name",
    [
        "coco-panoptic-r50",
        "maskformer-coco-panoptic-r50",
        "detr-coco-panoptic-r50",
        "eomt-coco-panoptic-s-640",
    ],
)
def test_urls_of_published_weights_are_known(name):
    assert zoo.is_published(zoo.find_model(name).weights)
    assert not zoo.is_published("https://dl.fbaipublicfiles.com/detectron2/R-50.pkl")


def test_the_page_shows_the_table():
    shown = rows()
    assert shown.keys() == table_rows().keys()
    for config, model in table_rows().items():
        row = shown[config]
        assert row.get("model", "Mask2Former") == zoo.model_of_config(config).method
        assert row["backbone"] == model["backbone"]
        assert row["schedule"] == model["schedule"]
        for name, value in model["figures"].items():
            assert float(row[name]) == value
        assert row["name"] == f"`{zoo.model_of_config(config).name}`"
        assert f"({zoo.model_of_config(config).weights})" in row["weights"]


def test_the_page_states_the_license_and_the_origin_of_every_backbone():
    license = zoo.table()["license"]
    assert license["name"] in PAGE and license["url"] in PAGE
    for model in zoo.published_models().values():
        named = {"DETR": "Apache-2.0", "EoMT": "MIT"}.get(model.method, license["name"])
        assert named in PAGE and named in zoo.license_notice(model.weights)
    for name, origin in zoo.table()["backbones"].items():
        assert f"| `{name}` | {origin} |" in PAGE


def test_a_file_is_an_error_that_says_which_call_reads_it():
    with pytest.raises(
        ValueError,
        match=r'^m\.pth: is a file, .*; type Predictor\("m\.pth"\) or --opts MODEL\.WEIGHTS m\.pth$',
    ):
        zoo.find_model("m.pth")


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("facebook/mask2former-swin-large-coco-panoptic", r'from_zoo\("coco-panoptic-swin-l"\)'),
        ("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml", r'from_zoo\("coco-panoptic-r50"\)'),
        ("x.yaml", r"is a config.*Predictor\(load_config\(\.\.\.\)\)"),
    ],
)
def test_a_hub_name_and_a_config_are_errors_with_the_right_call(name, call):
    with pytest.raises(ValueError, match=call):
        zoo.find_model(name)
