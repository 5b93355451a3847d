"""The configuration: Detectron2's keys and YAML semantics."""

from mask2former.config.node import (
    CfgNode,
    add_maskformer2_config,
    config_from_text,
    config_names,
    get_cfg,
    load_config,
    resolve_config_file,
    with_tasks,
    with_values,
)

__all__ = [
    "CfgNode",
    "add_maskformer2_config",
    "config_from_text",
    "config_names",
    "get_cfg",
    "load_config",
    "resolve_config_file",
    "with_tasks",
    "with_values",
]
