"""Mean IoU of semantic segmentation."""
