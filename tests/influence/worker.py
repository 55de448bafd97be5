"""One process of a TRAK run that tests start, alone or as a rank, and may kill.

Arguments: folder, result file, rank, ranks, rendezvous file, seconds a batch.
"""

import sys
import time

import torch

from influence import models
from robustcore.influence import TRAK

BATCH, COUNT, K = 7, 100, 48


def data():
    x, y = models.images(COUNT, torch.float32), models.labels(COUNT)
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def checkpoints():
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(models.Convolutions().state_dict())
    return states


class Slow(list):
    """Batches that take their time."""

    def __init__(self, batches, seconds):
        super().__init__(batches)
        self.seconds = seconds

    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(self.seconds)
            yield batch


def main(folder, result, rank, ranks, store, seconds):
    torch.set_num_threads(1)
    if ranks > 1:
        torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=ranks)
    trak = TRAK(models.Convolutions(), models.CLASSES, K, seed=3, ridge=0.1)
    computed = []
    features = trak._features
    trak._features = lambda m, x, y: (computed.append(len(x)), features(m, x, y))[1]
    from robustcore.influence import trak as module

    module.SYNC_SECONDS = 0.0
    trak.fit(Slow(data(), seconds), checkpoints(), folder=folder)
    count = sum(computed)
    if rank == 0:
        scores = trak.score(models.images(4, torch.float32, seed=9))
        torch.save((scores, trak.self_influence(), count), result)
    if ranks > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    folder, result, rank, ranks, store, seconds = sys.argv[1:]
    main(folder, result, int(rank), int(ranks), store, float(seconds))
