"""One of two processes that train with the density penalty under DistributedDataParallel.

Arguments: rank, rendezvous file, result file. Rank 0 saves the gradients of one process that has
the whole batch, and those that two processes with half of it agree on.
"""

import sys

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from robustcore import density


def gradients(model, x, y):
    x = x.clone().requires_grad_()
    with density.fast_double_backward():
        logits = model(x)
    penalty = density.marginal_density_penalty(model, x, logits=logits)
    model.zero_grad()
    (cross_entropy(logits, y) + penalty).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def main(rank, store, result):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
    model = nn.Sequential(
        nn.Linear(6, 24), nn.Softplus(), nn.Unflatten(1, (3, 8)), layer, nn.Flatten(),
        nn.Linear(24, 3),
    )  # fmt: skip
    x, y = torch.rand(4, 6), torch.tensor([0, 1, 2, 0])
    alone = gradients(model, x, y)
    half = slice(2 * rank, 2 * rank + 2)
    shared = gradients(nn.parallel.DistributedDataParallel(model), x[half], y[half])
    if rank == 0:
        torch.save((alone, shared), result)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
