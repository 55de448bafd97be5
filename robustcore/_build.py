"""What this installation was built for."""

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


__version__: str = build_info()["version"]
