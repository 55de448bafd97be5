"""``robustcore certify``: a user's model on a user's data, one row an image, resumable."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import pickle
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from tqdm.auto import tqdm

from robustcore.smoothing import results
from robustcore.smoothing.certificates import ABSTAIN, Certificates
from robustcore.smoothing.result_file import ResultFile
from robustcore.smoothing.smooth import Smooth


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options; names and defaults are those of the published code where it has them."""
    add = parser.add_argument
    factory = "PKG.MODULE:FACTORY"
    add("--model", required=True, metavar=factory, help="function that returns the base classifier")
    add("--checkpoint", type=Path, metavar="FILE", help="weights for it, as torch.save wrote them")
    add(
        "--data",
        required=True,
        metavar=factory,
        help="function that returns a map-style dataset of (image [C, H, W] in [0, 1], label)",
    )
    add("--sigma", type=float, required=True, help="noise level in pixel units")
    add("--out", type=Path, required=True, metavar="FILE", help="table to write (.tsv)")
    add("--start", type=int, default=0, help="index of the first image (%(default)s)")
    add("--skip", type=int, default=1, help="take every SKIP-th image (%(default)s)")
    add("--max", type=int, default=-1, help="stop before image MAX (all)")
    add("--N0", type=int, default=100, help="samples that choose the class (%(default)s)")
    add("--N", type=int, default=100_000, help="samples that bound its probability (%(default)s)")
    add(
        "--alpha",
        type=float,
        default=0.001,
        help="failure probability of a certificate (%(default)s)",
    )
    add("--batch", type=int, default=1000, help="images in one call of the model (%(default)s)")
    add("--device", default=None, help="cpu, cuda, ... (cuda if there is one)")
    add(
        "--seed",
        type=int,
        default=None,
        help="of the noise (a fresh one from the operating system)",
    )
    add("--num-classes", type=int, default=None, help="columns of the logits (found by one call)")
    add(
        "--mean",
        type=float,
        nargs="+",
        help="one value or one a channel, taken off after the noise",
    )
    add(
        "--std",
        type=float,
        nargs="+",
        help="one value or one a channel, divided by after the noise",
    )
    add("--no-progress", action="store_true", help="show no progress bar")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace an existing table")
    existing.add_argument("--resume", action="store_true", help="complete an existing table")


def run(args: argparse.Namespace) -> None:
    """Certifies the images asked for; argparse.ArgumentError for bad input of the user's."""
    if args.start < 0 or args.skip < 1:
        raise _error(f"--start {args.start} --skip {args.skip}: want at least 0 and at least 1")
    table = ResultFile(args.out, overwrite=args.overwrite, resume=args.resume)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    data = _dataset(args.data)
    stop = len(data) if args.max < 0 else min(args.max, len(data))
    indices = range(args.start, stop, args.skip)
    seed = args.seed if args.seed is not None else table.seed(default=secrets.randbits(64))
    settings = {
        "model": args.model,
        "checkpoint_sha256": _sha256(args.checkpoint),
        "data": args.data,
        "sigma": args.sigma,
        "N0": args.N0,
        "N": args.N,
        "alpha": args.alpha,
        "seed": seed,
        "num_classes": args.num_classes,
        "mean": args.mean,
        "std": args.std,
        "start": args.start,
        "skip": args.skip,
    }
    todo = table.remaining(indices, settings)
    if not todo:
        print(f"{args.out}: no image left to certify")
        return
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = _model(args.model, args.checkpoint, device)
    num_classes = args.num_classes or _num_classes(model, _item(data, todo[0])[0].to(device))
    with _as_user_error():
        smooth = Smooth(model, num_classes, args.sigma, seed=seed, mean=args.mean, std=args.std)
    certified = 0
    with tqdm(
        indices,
        initial=len(indices) - len(todo),
        desc="certify",
        unit="image",
        disable=args.no_progress,
    ) as bar:
        for idx in todo:
            image, label = _item(data, idx)
            with _as_user_error(f"image {idx}: "):
                result = smooth.certify(
                    image.to(device).unsqueeze(0),
                    args.N0,
                    args.N,
                    args.alpha,
                    args.batch,
                    image_offset=idx,
                )
            assert isinstance(result, Certificates)  # of a batch of one
            prediction = int(result.prediction)
            table.append(
                results.row(idx, label, prediction, float(result.radius), float(result.seconds))
            )
            certified += prediction != ABSTAIN
            bar.update()
    print(f"{args.out}: {len(todo)} images, {certified} certified, seed {seed}")


def _error(message: str) -> argparse.ArgumentError:
    return argparse.ArgumentError(None, " ".join(message.split()))


@contextmanager
def _as_user_error(prefix: str = "") -> Iterator[None]:
    """The API's complaints about arguments, which are the user's options here, in one line."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise _error(f"{prefix}{error}") from error


def _load(option: str, spec: str) -> Callable[[], Any]:
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise _error(f"{option}: got {spec!r}, want PKG.MODULE:FACTORY")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise _error(f"{option} {spec}: {error}") from error
    if not callable(factory):
        raise _error(f"{option} {spec}: got a {type(factory).__name__}, want a function")
    return factory  # type: ignore[no-any-return]


def _dataset(spec: str) -> Any:
    data = _load("--data", spec)()
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise _error(
            f"--data {spec}: gave a {type(data).__name__}, "
            "want a dataset with a length and (image, label) items"
        )
    return data


def _item(data: Any, idx: int) -> tuple[Tensor, int]:
    item = data[idx]
    try:
        image, label = item
        return torch.as_tensor(image), int(label)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _error(f"--data: item {idx} is no (image tensor, integer label): {error}") from error


def _model(spec: str, checkpoint: Path | None, device: str) -> Callable[[Tensor], Tensor]:
    model = _load("--model", spec)()
    if not isinstance(model, nn.Module):
        raise _error(f"--model {spec}: gave a {type(model).__name__}, want a torch.nn.Module")
    if checkpoint is not None:
        _load_weights(model, checkpoint)
    try:
        return model.to(device).eval()
    except RuntimeError as error:
        raise _error(f"--device {device}: {error}") from error


def _load_weights(model: nn.Module, checkpoint: Path) -> None:
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise _error(f"--checkpoint {checkpoint}: holds no plain weights: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise _error(f"--checkpoint {checkpoint}: got a {type(state).__name__}, want a state_dict")
    consume_prefix_in_state_dict_if_present(state, "module.")  # of DataParallel
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise _error(f"--checkpoint {checkpoint}: {error}") from error


def _sha256(checkpoint: Path | None) -> str | None:
    return None if checkpoint is None else hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def _num_classes(model: Callable[[Tensor], Tensor], image: Tensor) -> int:
    with torch.inference_mode():
        logits = model(image.unsqueeze(0))
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise _error(f"--model: gave {got} for one image, want logits [1, number of classes]")
    return logits.shape[1]
