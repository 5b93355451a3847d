"""Operators with compiled kernels, each behind one function for all backends."""

from mask2former.ops.deformable import ms_deform_attn, ms_deform_attn_from_offsets

__all__ = ["ms_deform_attn", "ms_deform_attn_from_offsets"]
