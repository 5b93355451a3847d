"""Tiny synthetic datasets with exactly the layout of the real ones after download and unpacking.

Each module (`from synthetic_datasets import cityscapes`) has

    draw(root: Path, *, seed: int = 0, counts: dict[str, int] | None = None) -> None

which writes below `root`, the folder that $DETECTRON2_DATASETS names. `counts` is the number of images in
each split (default: `COUNTS` of the module); the same seed gives the same files, byte for byte. The project's
readers are not used: files are written with numpy, Pillow, json, scipy and pycocotools alone.

    ade20k      ADEChallengeData2016/: images (one of them gray), labels 0..150, instances as RGB
    ade20k_full ADE20K_2021_17_01/images/ADE/: images with *_seg.png and JSON in folders of scenes
    cityscapes  cityscapes/{leftImg8bit,gtFine}/: groups, ignored labels, a license plate, small objects
    coco        coco/: instances (polygons in parts, crowds as RLE) and panoptic (crowds, void)
    coco_stuff  coco/coco_stuff_10k/: version 1.1, MATLAB files of labels 0..182
    lvis        lvis/: version 1, images in coco/
    mapillary   mapillary_vistas/: `layout="flat"` or "v1.2" (nested, beside a v2.0 with made-up classes)
    youtube_vis ytvis_2019/, `dataset="ytvis_2021"` or "ovis": videos, with tracks in the training set

Images: a kind of stuff on each side of a line, things in the color of their class on top, and noise. The
first image of a split has all special cases; the last image of a split of two or more has no things.
"""
