"""Published models: names, URLs, figures and license of their weights, from the table `model_zoo.json`."""

import difflib
import json
import re
from functools import cache
from importlib import resources
from pathlib import PurePath
from typing import Any, NamedTuple

TABLE = "model_zoo.json"
HUB_NAME = re.compile(
    r"mask2former-swin-(?P<size>tiny|small|base|large)(?P<origin>-IN21k)?"
    r"-(?P<dataset>coco|ade20k|ade|cityscapes|mapillary-vistas|mapillary|youtubevis-2019|youtubevis-2021)"
    r"-(?P<task>instance|panoptic|semantic)"
)
FAMILIES = ("video", "maskformer", "detr", "eomt")  # of models, besides Mask2Former's for images
HUB_DATASETS = {"ade": "ade20k", "mapillary": "mapillary-vistas"}
MASKFORMER_HUB_NAME = re.compile(r"/maskformer-swin-(?P<size>tiny|small|base|large)-(?P<dataset>ade|coco)$")
MASKFORMER_HUB_MODELS = {"ade": "ade20k-semantic", "coco": "coco-panoptic"}
DETR_HUB_NAME = re.compile(r"/detr-resnet-(?P<backbone>50|50-dc5|101)-panoptic$")
EOMT_REPOSITORY = re.compile(  # its name on the hub, as "coco_panoptic_eomt_small_640_2x"
    r"(?P<dataset>coco|ade20k|cityscapes)_(?P<task>instance|panoptic|semantic)"
    r"_eomt_(?P<size>small|base|large|giant)_(?P<side>\d+)(_2x)?(?=/|$)"
)
METHODS = {  # start of a MaskFormer config's file name, the longest first
    "per_pixel_baseline_plus": "PerPixelBaseline+",
    "per_pixel_baseline": "PerPixelBaseline",
    "maskformer": "MaskFormer",
}


class PublishedModel(NamedTuple):
    """A model that the authors of `method` trained; `figures` are those that they report."""

    name: str
    method: str  # "Mask2Former", "DETR", "EoMT", or one of METHODS
    dataset: str
    task: str
    backbone: str
    figures: dict[str, float]
    config: str
    weights: str  # a URL


@cache
def table() -> dict[str, Any]:
    """Return the whole table: `license`, `backbones`, and Mask2Former's `root` and, by config file, `models`.

    The root and models of videos are below `video`, MaskFormer's below `maskformer`, and those of DETR and
    EoMT, with their licenses, below `detr` and `eomt`.
    """
    return json.loads(resources.files("mask2former.weights").joinpath(TABLE).read_text(encoding="utf-8"))


def is_published(url: str) -> bool:
    """Return True if a URL is that of published weights."""
    families = (table(), *(table()[family] for family in FAMILIES))
    return url.startswith(tuple(family["root"] for family in families))


def published_models() -> dict[str, PublishedModel]:
    """Return the published models by name, such as "coco-panoptic-swin-l"."""
    families = (
        (table(), _of_mask2former),
        (table()["video"], _of_video),
        (table()["maskformer"], _of_maskformer),
        (table()["detr"], _of_detr),
        (table()["eomt"], _of_eomt),
    )
    models = [of(*row) for family, of in families for row in family["models"].items()]
    return {model.name: model for model in models}


def _of_mask2former(config: str, row: dict[str, Any]) -> PublishedModel:
    dataset, task = config.removesuffix(".yaml").replace("-segmentation", "").split("/")[:2]
    name = f"{dataset}-{task}-{_backbone_word(row)}"
    url = table()["root"] + row["weights"]
    return PublishedModel(name, "Mask2Former", dataset, task, row["backbone"], row["figures"], config, url)


def _of_video(config: str, row: dict[str, Any]) -> PublishedModel:
    dataset = config.split("/")[0].replace("_", "-")
    name, url = f"{dataset}-instance-{_backbone_word(row)}", table()["video"]["root"] + row["weights"]
    return PublishedModel(
        name, "Mask2Former", dataset, "instance", row["backbone"], row["figures"], config, url
    )


def _of_maskformer(config: str, row: dict[str, Any]) -> PublishedModel:
    word = next(start for start in METHODS if PurePath(config).name.startswith(start))
    task, dataset = row["weights"].split("/")[0].split("-", 1)
    name = f"{word.replace('_', '-')}-{dataset}-{task}-{_backbone_word(row)}"
    url = table()["maskformer"]["root"] + row["weights"]
    return PublishedModel(name, METHODS[word], dataset, task, row["backbone"], row["figures"], config, url)


def _of_detr(config: str, row: dict[str, Any]) -> PublishedModel:
    name, url = f"detr-coco-panoptic-{row['backbone'].lower()}", table()["detr"]["root"] + row["weights"]
    return PublishedModel(name, "DETR", "coco", "panoptic", row["backbone"], row["figures"], config, url)


def _of_eomt(config: str, row: dict[str, Any]) -> PublishedModel:
    dataset, task = row["weights"].split("_")[:2]
    url = table()["eomt"]["root"] + row["weights"]
    return PublishedModel(
        _eomt_name(row["weights"]), "EoMT", dataset, task, row["backbone"], row["figures"], config, url
    )


def _eomt_name(text: str) -> str:
    """Return the name here of the EoMT model whose repository on the hub is named in `text`, or ""."""
    match = EOMT_REPOSITORY.search(text)
    return f"eomt-{match['dataset']}-{match['task']}-{match['size'][0]}-{match['side']}" if match else ""


def _backbone_word(row: dict[str, Any]) -> str:
    """Return the backbone as names have it; Swin-L's does not say IN21k, on which alone it was pretrained."""
    return row["backbone"].lower().replace(" (in21k)", "-in21k").replace("swin-l-in21k", "swin-l")


def published_name(name: str) -> str | None:
    """Return the published model that is called `name` here or on the Hugging Face hub, or has that config.

    The hub has "facebook/mask2former-swin-large-coco-panoptic", "facebook/maskformer-swin-large-coco",
    "facebook/detr-resnet-50-panoptic" and "tue-mps/coco_panoptic_eomt_large_640", for example.
    """
    if model := model_of_config(name):
        return model.name
    names = published_models()
    if match := HUB_NAME.search(name):
        hub_name = (
            f"{HUB_DATASETS.get(match['dataset'], match['dataset'])}-{match['task']}-swin-{match['size'][0]}"
        )
        wanted = [f"{hub_name}-in21k"] if match["origin"] else [hub_name, f"{hub_name}-in21k"]
    elif match := MASKFORMER_HUB_NAME.search(name):
        hub_name = f"maskformer-{MASKFORMER_HUB_MODELS[match['dataset']]}-swin-{match['size'][0]}"
        wanted = [hub_name, f"{hub_name}-in21k"]
    elif match := DETR_HUB_NAME.search(name):
        wanted = [f"detr-coco-panoptic-r{match['backbone']}"]
    elif eomt := _eomt_name(name):
        wanted = [eomt]
    else:
        wanted = [name]
    return next((candidate for candidate in wanted if candidate in names), None)


def near_names(name: str) -> list[str]:
    """Return the published models that `name` may mean, the likeliest first."""
    known = published_name(name)
    return [known] if known else difflib.get_close_matches(name.lower(), published_models())


def find_model(name: str) -> PublishedModel:
    """Return the published model of that name.

    Raises:
        ValueError: there is none; the message has the nearest names.
    """
    models = published_models()
    if PurePath(name).suffix in (".pth", ".pkl", ".safetensors"):
        call = f'Predictor("{name}") or --opts MODEL.WEIGHTS {name}'
        raise ValueError(f"{name}: is a file, not the name of a published model; type {call}")
    if PurePath(name).suffix in (".yaml", ".yml"):
        call = (
            f'Predictor.from_zoo("{known}")'
            if (known := published_name(name))
            else "Predictor(load_config(...))"
        )
        raise ValueError(f"{name}: is a config, not the name of a published model; type {call}")
    if name not in models and (known := published_name(name)):
        raise ValueError(f'{name}: is called "{known}" here; type Predictor.from_zoo("{known}")')
    if name not in models:
        near = ", ".join(near_names(name)) or "none"
        raise ValueError(f"no published model '{name}'; near it: {near} (`mask2former zoo` lists all)")
    return models[name]


def model_of_config(config_file: str) -> PublishedModel | None:
    """Return the model published for a config; any path that ends in the config's name is accepted."""
    file = PurePath(config_file)
    return next((model for model in published_models().values() if file.match(model.config)), None)


def model_of_weights(file_name: str) -> PublishedModel | None:
    """Return the published model whose weights have that file name, as the configs of videos name them."""
    models = published_models().values()
    return next((model for model in models if PurePath(model.weights).name == file_name), None)


def license_notice(url: str) -> str:
    """Return the notice that a download of the published weights at `url` logs."""
    families = (table()[name] for name in FAMILIES)
    own = (family for family in families if "license" in family and url.startswith(family["root"]))
    family = next(own, table())
    license = family["license"]
    return (
        f"The weights of {family['models_of']} are published by their authors under {license['name']} "
        f"({license['url']}){license['terms']}. The license of this program does not cover them."
    )


def backbone_origin(file_name: str) -> str | None:
    """Return the URL of the file that users of the published configs convert into `file_name`."""
    return table()["backbones"].get(file_name)
