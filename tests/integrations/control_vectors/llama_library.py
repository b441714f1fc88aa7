"""llama.cpp's own functions, called through ctypes.

The wheel of xllamacpp is llama.cpp in one shared library. Its Python names reach neither logits nor
control vectors, but the library exports all of llama.h, and the reader of `--control-vector`. Those
are called here as they are laid out; `Library` checks that before anything is computed.

Source: llama.h and common/common.h of llama.cpp, https://github.com/ggml-org/llama.cpp (MIT).
"""

import ctypes
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

F32, F16 = 0, 1  # ggml's numbers
# common_control_vector_load: it takes a std::vector of files and returns a struct.
_READER = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"
_LONGEST = 128  # tokens


class _Model(ctypes.Structure):
    """llama_model_params, of which nothing is changed: bytes enough for it, as it goes last."""

    _fields_ = [("bytes", ctypes.c_uint64 * 64)]


class _Context(ctypes.Structure):
    """llama_context_params: what is set here, and bytes enough for the rest."""

    _fields_ = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("sequences", c_uint32 * 4),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("kinds", c_int32 * 4),
        ("flash_attention", c_int32),
        ("rope", c_float * 8),
        ("callback", c_void_p * 2),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("rest", ctypes.c_uint64 * 32),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


class _Data(ctypes.Structure):
    """common_control_vector_data: a width and a std::vector<float>."""

    _fields_ = [("width", c_int32), ("begin", c_void_p), ("end", c_void_p), ("room", c_void_p)]


class Library:
    """llama.cpp's functions.

    Raises:
        RuntimeError: if the parameters' defaults are not where they are looked for.
    """

    def __init__(self) -> None:
        found = importlib.util.find_spec("xllamacpp")
        assert found is not None and found.origin is not None
        self.c = ctypes.CDLL(str(next(Path(found.origin).parent.glob("xllamacpp*.so"))))
        self._silence = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)(lambda *_: None)
        self.c.llama_log_set.argtypes = [c_void_p, c_void_p]
        self.c.llama_log_set(ctypes.cast(self._silence, c_void_p), None)
        for name, restype, *argtypes in (
            ("llama_model_default_params", _Model),
            ("llama_context_default_params", _Context),
            ("llama_model_load_from_file", c_void_p, c_char_p, _Model),
            ("llama_init_from_model", c_void_p, c_void_p, _Context),
            ("llama_model_get_vocab", c_void_p, c_void_p),
            ("llama_vocab_n_tokens", c_int32, c_void_p),
            ("llama_model_n_layer", c_int32, c_void_p),
            ("llama_model_n_embd", c_int32, c_void_p),
            ("llama_get_memory", c_void_p, c_void_p),
            ("llama_memory_clear", None, c_void_p, ctypes.c_bool),
            ("llama_batch_init", _Batch, c_int32, c_int32, c_int32),
            ("llama_batch_free", None, _Batch),
            ("llama_decode", c_int32, c_void_p, _Batch),
            ("llama_get_logits", POINTER(c_float), c_void_p),
            ("llama_set_adapter_cvec", c_int32, c_void_p, c_void_p, c_size_t, *[c_int32] * 3),
            (_READER, _Data, c_void_p),
            ("llama_free", None, c_void_p),
            ("llama_model_free", None, c_void_p),
        ):
            function = getattr(self.c, name)
            function.restype, function.argtypes = restype, argtypes
        usual = self.c.llama_context_default_params()
        seen = (usual.n_ctx, usual.n_threads, usual.flash_attention, usual.type_k, usual.type_v)
        if seen != (512, 4, -1, F16, F16):
            raise RuntimeError(f"This llama.cpp lays out its parameters in another way: {seen}.")

    def read(self, path: Path) -> tuple[int, Tensor]:
        """What `--control-vector` reads: the width, or -1, and [width x layers from block 1]."""
        name = str(path).encode()
        # A std::string as libstdc++ had it before C++11, which manylinux keeps: length, room and
        # owners stand before the characters.
        counts = np.array([len(name), len(name), 0], np.uint64).tobytes()
        text = ctypes.create_string_buffer(counts + name)
        info = (c_void_p * 2)(None, ctypes.addressof(text) + len(counts))
        ctypes.cast(info, POINTER(c_float))[0] = 1.0  # the scale
        start = ctypes.addressof(info)
        files = (c_void_p * 3)(start, *[start + ctypes.sizeof(info)] * 2)
        data = getattr(self.c, _READER)(byref(files))
        n = ((data.end or 0) - (data.begin or 0)) // ctypes.sizeof(c_float)
        if n == 0:
            return data.width, torch.empty(0)
        numbers = (c_float * n).from_address(data.begin)
        return data.width, torch.from_numpy(np.array(numbers, np.float32))

    @contextmanager
    def model(self, path: Path) -> Iterator["Running"]:
        """A model file, on one thread; keys, values and attention in float32."""
        model = self.c.llama_model_load_from_file(
            str(path).encode(), self.c.llama_model_default_params()
        )
        if not model:
            raise RuntimeError(f"llama.cpp could not load '{path}'.")
        try:
            asked = self.c.llama_context_default_params()
            asked.n_ctx = asked.n_batch = asked.n_ubatch = _LONGEST
            asked.n_threads = asked.n_threads_batch = 1
            asked.flash_attention, asked.type_k, asked.type_v = 0, F32, F32
            context = self.c.llama_init_from_model(model, asked)
            try:
                yield Running(self.c, model, context)
            finally:
                self.c.llama_free(context)
        finally:
            self.c.llama_model_free(model)


class Running:
    """A model in memory; `steer` holds until the next."""

    def __init__(self, c: ctypes.CDLL, model: int, context: int) -> None:
        self._c, self._context = c, context
        self.vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
        self.layers, self.width = c.llama_model_n_layer(model), c.llama_model_n_embd(model)

    def steer(self, data: Tensor | None, first: int = 1, last: int | None = None) -> None:
        """With what `Library.read` reads, as llama.cpp's programs do; None: no longer.

        `first` and `last` are those of `--control-vector-layer-range`, both steered.
        """
        # What a shorter file leaves out would stay as the file before it had it.
        whole = torch.zeros((self.layers - 1) * self.width)
        if data is not None:
            whole[: len(data)] = data
        where = None if data is None else whole.data_ptr()
        failed = self._c.llama_set_adapter_cvec(
            self._context,
            where,
            len(whole),
            self.width,
            first,
            self.layers if last is None else last,
        )
        assert failed == 0

    def logits(self, ids: list[int], start: int = 0) -> Tensor:
        """[t, vocabulary] of tokens at `start`, after those before if that is not 0."""
        if start == 0:
            self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        batch = self._c.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            assert self._c.llama_decode(self._context, batch) == 0
            flat = self._c.llama_get_logits(self._context)
            shape = (len(ids), self.vocabulary)
            return torch.from_numpy(np.ctypeslib.as_array(flat, shape).copy())
        finally:
            self._c.llama_batch_free(batch)

    def greedy(self, ids: list[int], new_tokens: int) -> list[int]:
        """The most likely token, again and again, with what was computed before kept."""
        said, latest, at = [], ids, 0
        for _ in range(new_tokens):
            token = int(self.logits(latest, at)[-1].argmax())
            at, latest = at + len(latest), [token]
            said.append(token)
        return said
