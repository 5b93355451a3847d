"""The web page: an image in, its panoptic, instance and semantic results beside it. Needs Gradio."""
