"""The published layer masking of a bottleneck ResNet, re-expressed: (x, mask) in every layer.

Source of the sequence: Balasubramanian and Feizi, "Towards improved input masking for convolutional
neural networks", 2023, with its k fill iterations a convolution, the multiplications around every
BatchNorm and ReLU, and one mask pooling a convolution.
"""

import torch
from torch.nn import functional


def fill(x, mask, iters):
    """The published chain of operations of one fill."""
    x = x * mask
    channels = x.shape[1]
    box = x.new_ones(1, 1, 3, 3)
    boxes = box.expand(channels, -1, -1, -1)
    for _ in range(iters):
        with torch.no_grad():
            num = functional.conv2d(x, boxes, groups=channels, padding="same")
            den = functional.conv2d(mask, box, padding="same")
            edge = (1 - mask) * (num / (den + 1e-5))
        x = x + edge.detach()
        mask = (mask + den).clip(0, 1)
    return x


def conv(module, x, mask):
    x = fill(x, mask, module.kernel_size[0])
    mask = functional.max_pool2d(mask, module.kernel_size, module.stride, module.padding)
    return module(x) * mask, mask


def norm(module, x, mask):
    return module(x * mask) * mask, mask


def conv_norm(c, n, x, mask):
    return norm(n, *conv(c, x, mask))


def relu(x, mask):
    return torch.relu(x * mask) * mask, mask


def bottleneck(block, x, mask):
    y, m = relu(*conv_norm(block.conv1, block.bn1, x, mask))
    y, m = relu(*conv_norm(block.conv2, block.bn2, y, m))
    y, m = conv_norm(block.conv3, block.bn3, y, m)
    if block.downsample is not None:
        x, mask = conv_norm(*block.downsample, x, mask)
    return relu(y + x, m * mask)


def resnet(model, x, mask):
    """Logits of a torchvision bottleneck ResNet for x [N, 3, H, W] and mask [N, 1, H, W]."""
    x, mask = relu(*conv_norm(model.conv1, model.bn1, x, mask))
    x, mask = model.maxpool(x), model.maxpool(mask)
    x = x * mask
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            x, mask = bottleneck(block, x, mask)
    pooled = model.avgpool(x * mask) / (model.avgpool(mask) + 1e-8)
    return model.fc(torch.flatten(pooled, 1))
