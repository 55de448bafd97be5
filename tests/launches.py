"""How many ops of a function launch kernels on a GPU, counted on the CPU.

A GPU is asked for the ops that the dispatcher is handed, so they are counted there: views and empty
tensors launch nothing, an op of torch counts once (cuDNN's may be several kernels, of its own
choice), and one of ours as often as it launches. The caller sees to it that the path is a GPU's.
"""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode

# Of one call, where it is not one.
OURS = {
    "skew_power": 3, "skew_filter_backward": 2,
    "batch_norm_backward": 2, "batch_norm_double_backward": 2,  # 3 of more than 64 units a channel
}  # fmt: skip
NOTHING = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view",
    "squeeze_", "unsqueeze_",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """``with Launches() as launches: ...``; then ``launches.total``, and by op's name."""

    def __init__(self):
        super().__init__()
        self.by_op = Counter()

    @property
    def total(self):
        return self.by_op.total()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        space, name = op._schema.name.split("::")
        if not op.is_view and name not in NOTHING:
            self.by_op[name] += OURS.get(name, 1) if space == "robustcore" else 1
        return op(*args, **(kwargs or {}))
