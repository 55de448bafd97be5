"""influence.TRAK: its formula, its files, runs that are killed, ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from influence import models, worker
from influence.models import CLASSES, images, labels, network
from robustcore import ops
from robustcore.influence import TRAK, exact_linear
from testing import assert_same

K = 24


def batches(n=60, size=16, dtype=torch.float64):
    x, y = images(n, dtype), labels(n)
    return list(zip(x.split(size), y.split(size), strict=True))


def states(kind, count):
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(kind().double().state_dict())
    return made


def fitted(ridge=0.1, count=2, **more):
    trak = TRAK(network(models.perceptron), CLASSES, K, seed=5, ridge=ridge, **more)
    return trak.fit(batches(), states(models.perceptron, count))


def expected(x, y, train, given, ridge, count, normalised=False):
    """The published formula in float64, with our matrix in memory."""
    matrix = None
    scores, weights = 0, 0
    for state in states(models.perceptron, count):
        model = network(models.perceptron)
        model.load_state_dict(state)
        g, target = models.gradients(model, train, given), models.gradients(model, x, y)
        if matrix is None:
            matrix = ops.random_projection(torch.eye(g.shape[1]).double(), K, seed=5)
        phi, target = (g @ matrix).float().double(), target @ matrix  # features are kept in float32
        gram = phi.T @ phi
        gram = gram + ridge * gram.trace() / K * torch.eye(K)
        scores = scores + target @ gram.inverse() @ phi.T / count
        weights = weights + (1 - model(train).softmax(1).gather(1, given[:, None])[:, 0]) / count
    return scores * weights


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("count", [1, 3])
def test_the_published_formula(ridge, count):
    x, y = images(7, seed=1), labels(7)
    got = fitted(ridge, count).score(x, y)
    want = expected(x, y, images(60), labels(60), ridge, count)
    assert got.shape == (7, 60)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_trakers_scores(tmp_path):
    """traker, with our matrix plugged in and its division by the inverse's mean taken back."""
    trak = pytest.importorskip("trak", reason="traker is not installed")
    from trak.projectors import AbstractProjector
    from trak.score_computers import BasicSingleBlockScoreComputer

    class Ours(AbstractProjector):
        def __init__(self, *args, **kwargs):
            super().__init__(0, K, 5, "rademacher", "cpu")

        def project(self, grads, model_id):
            flat = torch.cat([grads[n].flatten(1) for n in names], 1)
            return ops.random_projection(flat, K, seed=5)

        def free_memory(self):
            pass

    class Scores(BasicSingleBlockScoreComputer):
        def __init__(self, **options):
            self.dtype, self.device = torch.float64, "cpu"

        def get_xtx(self, grads):
            return super().get_xtx(grads.double())

        def get_x_xtx_inv(self, grads, xtx):
            return grads.double() @ torch.linalg.inv(xtx)

    model = network(models.perceptron)
    names = [name for name, _ in model.named_parameters()]
    peer = trak.TRAKer(
        model=model, task="image_classification", train_set_size=60, save_dir=str(tmp_path),
        device="cpu", proj_dim=K, projector=Ours(), score_computer=Scores,
        use_half_precision=False, logging_level=50,
    )  # fmt: skip
    peer.dtype = torch.float64
    x, y = images(7, seed=1), labels(7)
    for m, state in enumerate(states(models.perceptron, 2)):
        peer.load_checkpoint(state, model_id=m)
        for batch in batches():
            peer.featurize(batch, num_samples=len(batch[0]))
    peer.finalize_features()
    for m, state in enumerate(states(models.perceptron, 2)):
        peer.start_scoring_checkpoint("t", state, model_id=m, num_targets=7)
        peer.score((x, y), num_samples=7)
    theirs = torch.as_tensor(np.array(peer.finalize_scores("t")))
    got = fitted(0.0, 2).score(x, y).T.double()
    # Gradients are divided by the root of their number there, which cancels in the formula.
    torch.testing.assert_close(theirs.double(), got, rtol=1e-3, atol=1e-5)


def test_near_the_leave_one_out_of_a_linear_model():
    """TRAK's Gram matrix leaves out the weights p (1 - p), so the order is near, not the same."""
    torch.manual_seed(0)
    train, x = torch.randn(200, 6).double(), torch.randn(9, 6).double()
    y = (train[:, 0] + 0.5 * torch.randn(200).double() > 0).double()
    exact = exact_linear(train, y, x, loss="logistic", ridge=1e-2)
    model = nn.Linear(6, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.stack([-exact.coefficients, exact.coefficients]) / 2)
    trak = TRAK(model, 2, 12, ridge=1e-6).fit([(train, y.long())])
    scores = trak.score(x, torch.ones(9).long()).double()
    pairs = zip(scores, exact.scores, strict=True)
    alike = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])
    assert alike.min() > 0.7
    assert alike.mean() > 0.9


def test_top_and_self_influence():
    trak, x, y = fitted(), images(7, seed=1), labels(7)
    scores = trak.score(x, y)
    best, worst = trak.top(x, 5, y), trak.top(x, 5, y, largest=False)
    assert_same(best.scores, scores.sort(1, descending=True).values[:, :5].contiguous())
    assert_same(worst.scores, scores.sort(1).values[:, :5].contiguous())
    assert_same(scores.gather(1, best.indices), best.scores)
    torch.testing.assert_close(
        trak.self_influence(), trak.score(images(60), labels(60)).diagonal(), rtol=1e-4, atol=1e-7
    )


def test_predicted_labels_by_default():
    trak, x = fitted(), images(7, seed=1)
    mean = 0
    for state in states(models.perceptron, 2):
        model = network(models.perceptron)
        model.load_state_dict(state)
        mean = mean + model(x).softmax(1)
    assert_same(trak.score(x), trak.score(x, mean.argmax(1)))
    assert trak.score(x[:0]).shape == (0, 60)


def test_batches_and_blocks_do_not_matter(monkeypatch):
    x, y = images(7, seed=1), labels(7)
    want = fitted().score(x, y)
    trak = TRAK(network(models.perceptron), CLASSES, K, seed=5)
    trak.fit(batches(size=7), states(models.perceptron, 2))
    torch.testing.assert_close(trak.score(x, y), want)
    from robustcore.influence import trak as module

    monkeypatch.setattr(module, "BLOCK", 13)
    trak._factors = {}
    torch.testing.assert_close(trak.score(x, y), want)


def test_the_users_model_stays_as_it_is():
    model = network(models.perceptron).train()
    before = [p.clone() for p in model.parameters()]
    trak = TRAK(model, CLASSES, K)
    trak.fit(batches(), states(models.perceptron, 2)).score(images(2))
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_data_loaders_files_and_progress(tmp_path):
    paths = [tmp_path / f"{m}.pt" for m in range(2)]
    for path, state in zip(paths, states(models.perceptron, 2), strict=True):
        torch.save(state, path)
    data = torch.utils.data.TensorDataset(images(60), labels(60))
    told = []
    trak = TRAK(network(models.perceptron), CLASSES, K, seed=5)
    trak.fit(
        torch.utils.data.DataLoader(data, 16),
        paths,
        progress=lambda done, all: told.append((done, all)),
    )
    assert told[-1] == (120, 120)
    assert_same(trak.score(images(3, seed=1)), fitted().score(images(3, seed=1)))
    with pytest.raises(ValueError, match="loader: shuffles"):
        trak.fit(torch.utils.data.DataLoader(data, 16, shuffle=True))


# ---- files, kills and ranks ----------------------------------------------------------------------


def test_features_are_memory_mapped_and_used_again(tmp_path):
    trak = TRAK(network(models.perceptron), CLASSES, K, seed=5)
    trak.fit(batches(), states(models.perceptron, 2), folder=tmp_path / "features")
    features = np.load(tmp_path / "features" / "features-1.npy", mmap_mode="r")
    assert features.shape == (60, K)
    assert isinstance(trak._store.features[1].map, np.memmap)
    again = TRAK(network(models.perceptron), CLASSES, K, seed=5)
    again._features = None  # nothing is computed
    again.fit(batches(), states(models.perceptron, 2), folder=tmp_path / "features")
    assert_same(again.self_influence(), trak.self_influence())


def test_a_folder_of_another_run(tmp_path):
    given, made = states(models.perceptron, 2), tmp_path / "features"
    TRAK(network(models.perceptron), CLASSES, K, seed=5).fit(batches(), given, folder=made)
    for message, more, data, checkpoints in (
        ("seed", dict(seed=6), batches(), given),
        ("kind", dict(kind="normal"), batches(), given),
        ("rows", {}, batches(61), given),
        ("checkpoints", {}, batches(), given[:1]),
        ("checkpoints", {}, batches(), given[::-1]),
    ):
        trak = TRAK(network(models.perceptron), CLASSES, K, **{"seed": 5, **more})
        with pytest.raises(ValueError, match=f"folder: .* was made with {message} = "):
            trak.fit(data, checkpoints, folder=made)
    others = [(x, (y + 1) % CLASSES) for x, y in batches()]
    trak = TRAK(network(models.perceptron), CLASSES, K, seed=5)
    with pytest.raises(ValueError, match="loader: labels 0 to 15 are others"):
        trak.fit(others, given, folder=made)


def start(folder, result, rank=0, ranks=1, seconds=0.0):
    arguments = [folder, result, rank, ranks, f"{folder}.store", seconds]
    command = [sys.executable, worker.__file__, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(worker.__file__).parents[1])}
    environment.pop("LD_PRELOAD", None)
    return subprocess.Popen(command, env=environment, cwd="/")


def wait_for_rows(folder, rows):
    """Until so many rows of the first checkpoint are done."""
    path, end = folder / "done-0.npy", time.monotonic() + 120
    while time.monotonic() < end:
        if (folder / "settings.json").exists() and np.load(path).sum() >= rows:
            return
        time.sleep(0.01)
    pytest.fail("nothing was written in two minutes")


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    assert start(tmp_path / "whole", tmp_path / "whole.pt").wait() == 0
    want, own, count = torch.load(tmp_path / "whole.pt")
    assert count == 2 * worker.COUNT
    for rows in (1, 30, 80):
        process = start(tmp_path / "killed", tmp_path / "killed.pt", seconds=0.1)
        wait_for_rows(tmp_path / "killed", rows)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed.pt").exists()
    assert start(tmp_path / "killed", tmp_path / "killed.pt").wait() == 0
    scores, self_influence, count = torch.load(tmp_path / "killed.pt")
    assert count <= 2 * worker.COUNT - 80  # what was there was not computed again
    assert_same(scores, want)
    assert_same(self_influence, own)


@pytest.mark.slow
def test_killed_while_the_folder_is_made(tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    (folder / "features-0.npy").write_bytes(b"rubbish")  # and no settings
    assert start(folder, tmp_path / "out.pt").wait() == 0
    assert start(tmp_path / "whole", tmp_path / "whole.pt").wait() == 0
    for got, want in zip(torch.load(tmp_path / "out.pt"), torch.load(tmp_path / "whole.pt"),
                         strict=True):  # fmt: skip
        assert torch.equal(torch.as_tensor(got), torch.as_tensor(want))


@pytest.mark.slow
def test_ranks_share_the_work(tmp_path):
    assert start(tmp_path / "one", tmp_path / "one.pt").wait() == 0
    ranks = [start(tmp_path / "three", tmp_path / "three.pt", r, 3) for r in range(3)]
    assert [process.wait() for process in ranks] == [0, 0, 0]
    want, own, _ = torch.load(tmp_path / "one.pt")
    scores, self_influence, count = torch.load(tmp_path / "three.pt")
    assert count <= 2 * worker.COUNT / 3 + worker.BATCH * 2
    assert_same(scores, want)
    assert_same(self_influence, own)


MODEL = network(models.perceptron)
BAD = [
    (lambda: TRAK(lambda x: x, CLASSES), TypeError, "model: got function"),
    (lambda: TRAK(MODEL, 1), ValueError, "num_classes: got 1"),
    (lambda: TRAK(MODEL, CLASSES, ridge=-1), ValueError, "ridge: got -1"),
    (lambda: TRAK(MODEL, CLASSES + 1, K).fit(batches()), ValueError, "model: gave .* want logits"),
    (lambda: TRAK(MODEL, CLASSES, K).fit([]), ValueError, "loader: got no samples"),
    (lambda: TRAK(MODEL, CLASSES, K).fit(iter(batches())), TypeError, "loader: got a list_iter"),
    (lambda: TRAK(MODEL, CLASSES, K).fit([images(2)]), TypeError, "loader: gave a Tensor"),
    (lambda: TRAK(MODEL, 4, K).fit(batches()), ValueError, "loader: got 0 to 4, want"),
    (lambda: TRAK(MODEL, CLASSES, K).fit(batches(), []), ValueError, "checkpoints: got none"),
    (
        lambda: TRAK(MODEL, CLASSES, K).fit(batches(), [{}]),
        ValueError,
        "checkpoints: .*Missing key",
    ),
    (lambda: TRAK(MODEL, CLASSES, K).fit(batches(), folder=3), TypeError, "folder: got 3"),
    (lambda: TRAK(MODEL, CLASSES, K).score(images(2)), RuntimeError, "call fit first"),
    (lambda: fitted().score(images(2), labels(3)), ValueError, "y: got shape"),
    (lambda: fitted().top(images(2), 61), ValueError, "n: got 61"),
    (
        lambda: TRAK(MODEL, CLASSES, 100, ridge=0).fit(batches()).score(images(2)),
        ValueError,
        "ridge: ",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
