"""The built-in datasets, one module for each family. Importing this package registers them."""

from mask2former.data.datasets.ade20k import register_ade20k
from mask2former.data.datasets.cityscapes import register_cityscapes
from mask2former.data.datasets.coco import register_coco
from mask2former.data.datasets.coco_stuff import register_coco_stuff
from mask2former.data.datasets.lvis import register_lvis
from mask2former.data.datasets.mapillary import register_mapillary
from mask2former.data.datasets.scenes import SCENES
from mask2former.data.datasets.shapes import register_shapes
from mask2former.data.datasets.youtube_vis import register_videos

for _register in (
    register_coco,
    register_ade20k,
    register_cityscapes,
    register_mapillary,
    register_coco_stuff,
    register_lvis,
    register_shapes,
    SCENES.register,
    register_videos,
):
    _register()
