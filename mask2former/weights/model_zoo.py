"""The published models: addresses, figures and license of their weights, from the table `model_zoo.json`."""

import json
from functools import cache
from importlib import resources
from pathlib import PurePath
from typing import Any

TABLE = "model_zoo.json"


@cache
def table() -> dict[str, Any]:
    """The whole table: `root`, `license`, `backbones` and, by config file, `models`."""
    return json.loads(resources.files("mask2former.weights").joinpath(TABLE).read_text(encoding="utf-8"))


def root() -> str:
    """The address under which all published Mask2Former weights lie."""
    return table()["root"]


def license_notice() -> str:
    """What a download of published weights says."""
    license = table()["license"]
    return (
        f"These weights are published by the authors of Mask2Former under {license['name']} "
        f"({license['url']}): non-commercial use only. The license of this program does not cover them."
    )


def published_weights(config_file: str) -> str | None:
    """The address of the weights published for a config, which may be any path that ends in its name."""
    given = PurePath(config_file).parts
    for name, model in table()["models"].items():
        parts = PurePath(name).parts
        if given[-len(parts) :] == parts:
            return root() + model["weights"]
    return None


def backbone_origin(file_name: str) -> str | None:
    """The address of the file that users of the published configs convert into `file_name`."""
    return table()["backbones"].get(file_name)
