"""Registries: the name in a YAML file -> the builder `(cfg, input_shape)` of that part.

`SEM_SEG_HEADS` holds heads and pixel decoders, as the published configs expect. A builder stands next to the
module it builds, and is the only function that reads the config for it.
"""

import difflib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import fvcore.common.registry

Builder = TypeVar("Builder", bound=Callable[..., Any])


class Builders(Protocol):
    """The part of a registry's interface that is used here: builders by name."""

    def __contains__(self, name: str) -> bool: ...
    def __iter__(self) -> Iterator[tuple[str, Any]]: ...
    def get(self, name: str) -> Any:
        """Return the builder of that name."""


class Registry(fvcore.common.registry.Registry):
    """fvcore's registry, in which a builder may be registered under another name than that of its function.

    Attributes:
        host: the builders of the framework that the project runs in, for names that are not here.
    """

    host: Builders | None = None

    def register_as(self, name: str) -> Callable[[Builder], Builder]:
        """Return a decorator that registers a builder under the name that YAML files use."""

        def register(builder: Builder) -> Builder:
            self._do_register(name, builder)
            return builder

        return register


META_ARCH = Registry("META_ARCH")
BACKBONE = Registry("BACKBONE")
SEM_SEG_HEADS = Registry("SEM_SEG_HEADS")
TRANSFORMER_DECODER = Registry("TRANSFORMER_DECODER")
CRITERION = Registry("CRITERION")


def find_builder(registry: Registry, name: str, key: str) -> Callable[..., Any]:
    """Return the builder registered as `name`, the value of the config key `key`.

    Raises:
        ValueError: nothing is registered under that name; the message gives the nearest name and all names.
    """
    sources = [registry] if registry.host is None else [registry, registry.host]
    for source in sources:
        if name in source:
            return source.get(name)
    known = sorted({entry for source in sources for entry, _ in source})
    (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0) or ("",)
    raise ValueError(
        f"{key} is '{name}', which is not registered; did you mean {nearest}? "
        f"Registered are: {', '.join(known)}"
    )
