"""A quantised model as a float32 file of the same numbers."""

from pathlib import Path

import pytest


def in_float32(source: Path, target: Path) -> None:
    """A copy of a GGUF file: every key, and every tensor as the numbers that it stands for."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    own = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")
    for key, one in reader.fields.items():
        if not key.startswith(own):
            writer.add_key_value(key, one.contents(), one.types[0], sub_type=one.types[-1])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
