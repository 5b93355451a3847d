"""Operators that are worth a kernel of their own, each behind one function whatever computes it."""

from mask2former.ops.deformable import ms_deform_attn, ms_deform_attn_from_offsets

__all__ = ["ms_deform_attn", "ms_deform_attn_from_offsets"]
