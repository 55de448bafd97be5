"""Which of timm's models MaskedModel takes: the smallest below 60 M parameters of each module.

    python bench/masking/survey.py [NAME ...] > bench/results/masking_survey.md

Random weights (what is initialised with zeros, too), the model's own image size, one image, random
16 x 16 blocks. `ones`: the largest difference between a mask of ones and no mask, over the largest
output (0: to the bit). `hidden`: whether the output stays the same, to the bit, when all that is
hidden becomes NaN, is finite, and is the same, to 1e-5, beside another mask, where no tokens are
left out. `wrapping` is the time of the trace and the plan, one thread on a machine in use: most of
it is torch.export's. timm has to be installed.
"""

import runpy
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from robustcore.masking import MaskedModel, UnsupportedOperation

build = runpy.run_path(str(Path(__file__).with_name("zoo.py")))["build"]

# Of timm 1.0.31.
NAMES = (
    "halonet_h1", "test_byobnet", "cait_xxs24_224", "coat_tiny", "convit_tiny",
    "convmixer_768_32", "test_convnext", "cpubone_nano", "crossvit_tiny_240", "csatv2",
    "cs3darknet_focus_s", "cspnext_tiny", "davit_tiny", "deit_tiny_patch16_224", "densenet121",
    "dla46x_c", "dpn48b", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0",
    "test_efficientnet", "efficientvim_m1", "efficientvit_b0", "efficientvit_m0",
    "vit_tiny_patch16_dinov3_qkvb", "fasternet_t0", "fastvit_t8", "focalnet_tiny_srf",
    "gcvit_xxtiny", "ghostnet_050", "hardcorenas_b", "hgnetv2_b0", "hiera_tiny_224",
    "sam2_hiera_tiny", "hrnet_w18_small", "iformer_t", "inception_next_atto",
    "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2_small", "levit_128s",
    "lowformer_b0", "test_mambaout", "test_coatnet", "poolformerv2_s12", "gmlp_ti16_224",
    "mobilenetv3_small_050", "mobilevit_xxs", "mvitv2_tiny", "nest_tiny", "nextvit_small",
    "test_nfnet", "pit_ti_224", "pvt_v2_b0", "rdnet_tiny", "regnetx_002", "repghostnet_050",
    "repvit_m1", "res2next50", "resnest14d", "test_resnet", "resnetv2_18", "rexnet_100",
    "selecsls42", "legacy_seresnet18", "sequencer2d_s", "shvit_s1", "skresnet18", "starnet_s050",
    "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m",
    "twins_svt_small", "visformer_tiny", "test_vit", "vit_tiny_r_s16_p8_224", "test_vit_relpos",
    "vitamin_small_224", "volo_d1_224", "ese_vovnet19b_slim_dw", "legacy_xception", "xception41p",
    "xcit_nano_12_p8_224",
)  # fmt: skip
COLUMNS = ("model", "parameters", "size", "fills", "times", "ones", "hidden", "wrapping")


class Result(NamedTuple):
    """One model: what :data:`COLUMNS` says; ``refused``: why it was, else empty."""

    name: str
    parameters: int
    size: int
    refused: str = ""
    fills: int = 0
    multiplications: int = 0
    ones: float = float("nan")
    hidden: bool = False
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Accepted, and both invariants hold."""
        return not self.refused and self.ones <= 1e-5 and self.hidden


def survey(name):
    """The :class:`Result` of one model."""
    model = build("timm", name)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # a head or scale that starts as 0 would hide all before it
                parameter.normal_(0, 0.02, generator=generator)
    size = model.default_cfg["input_size"][-1]
    parameters = sum(p.numel() for p in model.parameters())
    x = torch.randn(1, 3, size, size, generator=generator)
    side = -(-size // 16)
    mask = torch.rand(1, 1, side, side, generator=generator) < 0.5
    mask = mask.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, :, :size, :size]
    start = time.perf_counter()
    try:
        masked = MaskedModel(model, x)
    except UnsupportedOperation as error:
        return Result(name, parameters, size, " ".join(str(error).split())[:300])
    seconds = time.perf_counter() - start
    with torch.no_grad():
        want = model(x)
        difference = (masked(x, torch.ones_like(mask)) - want).abs().max() / want.abs().max()
        got = masked(x, mask)
        same = torch.equal(masked(torch.where(mask, x, torch.nan), mask), got)
        beside = masked(x.expand(2, -1, -1, -1), torch.cat([mask, ~mask]))[:1]
        same &= bool((beside - got).abs().max() <= 1e-5 * got.abs().max())
    steps = masked.plan().steps.values()
    return Result(
        name, parameters, size, "", sum(len(s.fills) for s in steps),
        sum(len(s.clean) for s in steps), float(difference),
        same and bool(got.isfinite().all()) and not torch.equal(got, want), seconds,
    )  # fmt: skip


def row(result):
    """A line of the table."""
    start = f"| {result.name} | {result.parameters / 1e6:.1f} M | {result.size} "
    if result.refused:
        return f"{start}| refused: {result.refused} |||||"
    ones = "0" if result.ones == 0 else f"{result.ones:.1e}"
    holds = "same" if result.hidden else "**differs**"
    rest = (result.fills, result.multiplications, ones, holds, f"{result.seconds:.1f} s")
    return start + "".join(f"| {cell} " for cell in rest) + "|"


def main(names):
    """Prints the table, a line as each model is done, and how many of them hold."""
    print(f"# MaskedModel on timm's models, torch {torch.__version__}\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    results = []
    for name in names:
        results.append(survey(name))
        print(row(results[-1]), flush=True)
    holds, refused = sum(r.holds for r in results), sum(bool(r.refused) for r in results)
    print(f"\n{holds} of {len(results)} are accepted and hold both; {refused} are refused.")


if __name__ == "__main__":
    main(sys.argv[1:] or NAMES)
