"""Where in the counter stream an op draws, see csrc/common/stream.h."""

from torch import Tensor


def stream_arguments(
    seed: int, image_offset: int | Tensor, sample_offset: int | Tensor
) -> tuple[int, int, int, Tensor | None, Tensor | None]:
    """The ops' five arguments of the stream: offsets as values, and as tensors the kernel reads."""
    images, samples = _offset(image_offset), _offset(sample_offset)
    # The schema's integers are signed.
    return seed - 2**64 if seed >= 2**63 else seed, images[0], samples[0], images[1], samples[1]


def _offset(offset: int | Tensor) -> tuple[int, Tensor | None]:
    return (0, offset) if isinstance(offset, Tensor) else (offset, None)
