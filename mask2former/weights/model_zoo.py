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
    r"-(?P<dataset>coco|ade20k|ade|cityscapes|mapillary-vistas|mapillary)-(?P<task>instance|panoptic|semantic)"
)
HUB_DATASETS = {"ade": "ade20k", "mapillary": "mapillary-vistas"}


class PublishedModel(NamedTuple):
    """A model that the authors of Mask2Former trained; `figures` are those that they report."""

    name: str
    dataset: str
    task: str
    backbone: str
    figures: dict[str, float]
    config: str
    weights: str  # a URL


@cache
def table() -> dict[str, Any]:
    """Return the whole table: `root`, `license`, `backbones` and, by config file, `models`."""
    return json.loads(resources.files("mask2former.weights").joinpath(TABLE).read_text(encoding="utf-8"))


def root() -> str:
    """Return the URL under which all published Mask2Former weights lie."""
    return table()["root"]


def published_models() -> dict[str, PublishedModel]:
    """Return the published models by name, such as "coco-panoptic-swin-l"."""
    models = {}
    for config, row in table()["models"].items():
        dataset, task = config.removesuffix(".yaml").replace("-segmentation", "").split("/")[:2]
        # Swin-L was only pretrained on ImageNet-21k, so its name does not say so
        backbone = row["backbone"].lower().replace(" (in21k)", "-in21k").replace("swin-l-in21k", "swin-l")
        name = f"{dataset}-{task}-{backbone}"
        url = root() + row["weights"]
        models[name] = PublishedModel(name, dataset, task, row["backbone"], row["figures"], config, url)
    return models


def published_name(name: str) -> str | None:
    """Return the published model that is called `name` here or on the Hugging Face hub, or has that config.

    The hub has "facebook/mask2former-swin-large-coco-panoptic", for example.
    """
    if model := model_of_config(name):
        return model.name
    names = published_models()
    if match := HUB_NAME.search(name):
        hub_name = (
            f"{HUB_DATASETS.get(match['dataset'], match['dataset'])}-{match['task']}-swin-{match['size'][0]}"
        )
        wanted = [f"{hub_name}-in21k"] if match["origin"] else [hub_name, f"{hub_name}-in21k"]
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
    if name not in models:
        near = ", ".join(near_names(name)) or "none"
        raise ValueError(f"no published model '{name}'; near it: {near} (`mask2former zoo` lists all)")
    return models[name]


def model_of_config(config_file: str) -> PublishedModel | None:
    """Return the model published for a config; any path that ends in the config's name is accepted."""
    file = PurePath(config_file)
    return next((model for model in published_models().values() if file.match(model.config)), None)


def license_notice() -> str:
    """Return the notice that a download of published weights logs."""
    license = table()["license"]
    return (
        f"These weights are published by the authors of Mask2Former under {license['name']} "
        f"({license['url']}): non-commercial use only. The license of this program does not cover them."
    )


def backbone_origin(file_name: str) -> str | None:
    """Return the URL of the file that users of the published configs convert into `file_name`."""
    return table()["backbones"].get(file_name)
