"""From logits to semantic, instance and panoptic results."""
