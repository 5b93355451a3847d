"""Folders in the form of the transformers library, as people share them on the Hugging Face hub."""
