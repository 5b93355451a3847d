"""Base class of backbones: named feature maps of known width and stride."""

from collections.abc import Mapping, Sequence

from torch import nn

from mask2former.structures import ShapeSpec


class Backbone(nn.Module):
    """A network from normalized images (B, 3, H, W) to maps by name (B, C, H / stride, W / stride).

    `shapes` are all maps that it can compute, `out_features` the names of those to return.

    Raises:
        ValueError: an unknown name in `out_features`, or none at all.
    """

    def __init__(self, shapes: Mapping[str, ShapeSpec], out_features: Sequence[str]) -> None:
        super().__init__()
        self._output_shape = {name: shapes[name] for name in out_features if name in shapes}
        unknown = [name for name in out_features if name not in shapes]
        if unknown or not self._output_shape:
            raise ValueError(f"OUT_FEATURES is {list(out_features)}; choose among {list(shapes)}")

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return the channels and the stride of each map."""
        return dict(self._output_shape)
