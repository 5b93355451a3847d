"""The wheel carries the YAML files: the folder configs/ is installed as the package mask2former.configs."""

from pathlib import Path

from setuptools import find_packages, setup

CONFIG_PACKAGE = "mask2former.configs"


def config_files() -> list[str]:
    """Every YAML below configs/, relative to it."""
    root = Path(__file__).parent / "configs"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.yaml"))


setup(
    packages=[*find_packages(include=["mask2former", "mask2former.*"]), CONFIG_PACKAGE],
    package_dir={CONFIG_PACKAGE: "configs"},
    package_data={
        CONFIG_PACKAGE: config_files(),
        "mask2former": ["model_zoo.json"],
        "mask2former.data.datasets": ["metadata/*"],
    },
)
