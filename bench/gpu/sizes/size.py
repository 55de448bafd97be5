"""What the sizes are made of."""

import torch

LAST = torch.channels_last
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
raw = torch.ops.robustcore


def size_of(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


class Shapes:
    """Shapes as they are, or one of each kind small enough for a rehearsal."""

    def __init__(self, device, tiny):
        self.device, self.tiny = device, tiny

    def __call__(self, *sides):
        return tuple(min(side, 8) for side in sides) if self.tiny else sides

    def randn(self, *shape, dtype=F32, last=False):
        t = torch.randn(shape, device=self.device, dtype=dtype)
        return t.contiguous(memory_format=LAST) if last else t
