"""Registries: the name in a YAML file -> the builder `(cfg, input_shape)` of that part.

`SEM_SEG_HEADS` holds heads and pixel decoders, as the published configs expect. A builder stands next to the
module it builds, and is the only function that reads the config for it.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import fvcore.common.registry

Builder = TypeVar("Builder", bound=Callable[..., Any])


class Builders(Protocol):
    """Builders by name: a registry, as far as it is read here."""

    def __contains__(self, name: str) -> bool: ...
    def __iter__(self) -> Iterator[tuple[str, Any]]: ...
    def get(self, name: str) -> Any:
        """The builder of that name."""


class Registry(fvcore.common.registry.Registry):
    """fvcore's registry, where a builder may also be registered under another name than its own.

    Attributes:
        host: the builders of the framework that the project runs in, for names that are not here.
    """

    host: Builders | None = None

    def register_as(self, name: str) -> Callable[[Builder], Builder]:
        """Decorator that registers a builder under the name that YAML files use."""

        def register(builder: Builder) -> Builder:
            self._do_register(name, builder)
            return builder

        return register


META_ARCH = Registry("META_ARCH")
BACKBONE = Registry("BACKBONE")
SEM_SEG_HEADS = Registry("SEM_SEG_HEADS")
TRANSFORMER_DECODER = Registry("TRANSFORMER_DECODER")


def find_builder(registry: Registry, name: str, key: str) -> Callable[..., Any]:
    """The builder registered as `name`; `key` is the config key that asked for it.

    Raises:
        ValueError: nothing of that name is registered; the message lists what is.
    """
    sources = [registry] if registry.host is None else [registry, registry.host]
    for source in sources:
        if name in source:
            return source.get(name)
    known = ", ".join(sorted({entry for source in sources for entry, _ in source}))
    raise ValueError(f"{key} is '{name}', which is not registered; registered are: {known}")
