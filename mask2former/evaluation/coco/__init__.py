"""Average precision of COCO and LVIS."""
