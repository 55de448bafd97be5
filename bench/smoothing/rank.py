"""One rank of bench_scale.py: certifies at every line on stdin, and answers with its counts.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python rank.py images|samples
"""

import json
import sys

import torch
from bench_smooth import two_convolutions

from robustcore.common.memory import keep_freed_memory
from robustcore.common.ranks import connect
from robustcore.smoothing import Smooth
from robustcore.smoothing.distributed import SharedSmooth


def main(way):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = two_convolutions().eval()
    images = torch.rand(2, 3, 32, 32)
    settings = dict(n0=100, n=1900, batch_size=250)
    keep_freed_memory()  # as `robustcore certify` does
    with connect("cpu") as ranks:
        for _ in sys.stdin:
            if way == "samples":
                shared = SharedSmooth(model, 10, 0.25, seed=1)
                counts = shared.certify(images, **settings).counts.tolist()
            else:
                alone = Smooth(model, 10, 0.25, seed=1)
                part = ranks.share(len(images))
                mine = alone.certify(
                    images[part.start : part.stop], **settings, image_offset=part.start
                )
                counts = [row for rows in ranks.gather(mine.counts.tolist()) for row in rows]
            print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
