"""What this installation was built for."""

from pathlib import Path
from typing import Any

from robustcore import _C


def build_info() -> dict[str, Any]:
    """How the compiled extension was built and what it runs.

    Returns a dict with ``version`` (str), ``torch_target`` (str, the oldest torch it runs on),
    ``cuda`` (bool, CUDA kernels inside), ``cuda_archs`` (list of str, such as
    ``["80", "90", "90+PTX"]``), ``simd`` (str, the CPU instruction set picked at load: ``avx512``,
    ``avx2`` or ``baseline``) and ``compiler`` (str).
    """
    info: dict[str, Any] = _C.build_info()
    info["cuda_archs"] = info["cuda_archs"].split()
    return info


def get_include() -> str:
    """The folder of the counter stream's headers, for a compiler's ``-I``: no torch in them.

    ``#include "common/stream.h"`` gives a CUDA or C++ kernel the words of the stream, and
    ``"common/math.h"`` what turns them to noise, with the bits of the ops; compile with
    ``-std=c++20`` and without fused multiply-adds of the compiler's own (``-fmad=false``,
    ``-ffp-contract=off``). NVRTC, which CuPy's ``RawModule`` uses, has no standard headers: add the
    folder's ``nvrtc``. See ``robustcore/smoothing/CUPY.md``.
    """
    return str(Path(_C.__file__).parent / "include")


__version__: str = build_info()["version"]
