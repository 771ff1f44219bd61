"""Curvature files: reading and writing what docs/curvature_format.md defines.

files     whole curvatures, in one file or several          packing    tensors as they are stored, and checksums
entries   blocks as JSON and named tensors (logical)        lazy       blocks that stay in their file until asked for
shards    safetensors files as one table (physical)
"""

from asrcl.curvature.storage.files import MAX_SHARD_BYTES, file_bytes, is_curvature, read, write

__all__ = ["MAX_SHARD_BYTES", "file_bytes", "is_curvature", "read", "write"]
