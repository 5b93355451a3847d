"""Documented import path of the registries that extensions use (CONTRIBUTING.md)."""

from mask2former.utils.registry import BACKBONE, META_ARCH, SEM_SEG_HEADS, TRANSFORMER_DECODER

__all__ = ["BACKBONE", "META_ARCH", "SEM_SEG_HEADS", "TRANSFORMER_DECODER"]
