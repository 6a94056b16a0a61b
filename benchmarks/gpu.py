"""One GPU: a step of AlexNet at batch 4, plain, fast and recorded, its floor; the whole paper.

    python benchmarks/gpu.py [--root DIR [--weights FILE]] [--seconds 90]

Each row is printed as soon as it is measured, and none begins when the time is up. Floor = the
larger of: operations of the step / measured rate of a float32 product; four passes over the linear
weights (read forward, read backward, read and write for the update) / measured copy rate, counting
bytes read and written. With ``--root`` (train/<class>, test/<class>) also the step of a naive loop
over these photos (ImageFolder, DataLoader with 8 workers, SGD) and the whole experiment with
``runner=local``, twice: the second finds the decoded photos, not the trainings.
"""

import argparse
import copy
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rivals.common import new_model, photos
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from fedcats.data import normalise
from fedcats.training.cuda import GraphStep, make_cuda_step
from fedcats.training.fast import FastStep, own_linear_layers
from fedcats.training.loop import PlainStep
from fedcats.training.recipe import Recipe

RECIPE = Recipe(
    epochs=1,
    batch_size=4,
    lr=0.001,
    momentum=0.0,
    nesterov=False,
    weight_decay=0.0,
    step_size=0,
    gamma=1.0,
    drop_last=False,
)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU to try the script itself


def synchronize() -> None:
    """Wait for the GPU."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def clock(work: Callable[[], object], steps: int) -> float:
    """Milliseconds of one call, the GPU's work included; median of five series."""
    series = []
    for _ in range(6):
        synchronize()
        begun = time.perf_counter()
        for _ in range(steps):
            work()
        synchronize()
        series.append((time.perf_counter() - begun) / steps * 1e3)
    return sorted(series[1:])[2]


def rates() -> tuple[float, float]:
    """Of a float32 product, GFLOP/s, and of a copy, GB/s, read and written counted."""
    side, size = (8192, 500_000_000) if DEVICE == "cuda" else (1024, 20_000_000)
    a = torch.randn(side, side, device=DEVICE)
    source, target = torch.randn(2, size, device=DEVICE)
    product, copied = clock(lambda: a @ a, 5), clock(lambda: target.copy_(source), 5)
    return 2 * side**3 / product / 1e6, 2 * source.nbytes / copied / 1e6


def recorded(model: nn.Module) -> GraphStep:
    step = make_cuda_step(model, RECIPE)
    assert step is not None
    return step


def same_bits(start: nn.Module, pixels: Tensor, y: Tensor) -> bool:
    """Whether two recorded trainings of ten steps end in the same weights."""
    ends = []
    for _ in range(2):
        model = copy.deepcopy(start)
        step = recorded(model)
        torch.manual_seed(0)
        for i in range(10):
            step(normalise(pixels[4 * i : 4 * i + 4]), y)
        ends.append(model.state_dict())
    return all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def naive(root: Path, steps: int) -> float:
    """Milliseconds of a step as tutorials write it, reading and decoding included."""
    data, workers = photos(root, "train"), min(8, os.cpu_count() or 1)
    loader = DataLoader(data, batch_size=4, shuffle=True, num_workers=workers)
    model = new_model(len(data.classes)).to(DEVICE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=RECIPE.lr)
    ends = []
    for x, y in itertools.islice(loader, steps + 20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.to(DEVICE)), y.to(DEVICE)).backward()
        optimizer.step()
        ends.append(time.perf_counter())
    synchronize()
    first = min(20, len(ends) // 2)  # until then the workers are started
    return (time.perf_counter() - ends[first - 1]) / (len(ends) - first) * 1e3


def experiment(root: Path, weights: str, home: Path, seed: int, left: float) -> dict[str, float]:
    """Seconds by the clock of the paper's experiment, and of its parts by the run's own."""
    out = home / f"run-{seed}"
    options = [f"data.root={root.resolve()}", f"model.weights={weights}", f"seed={seed}"]
    options += ["runner=local", "save_models=none", "figures=[]", "gallery=0", "reference=[full]"]
    command = [sys.executable, "-m", "fedcats.cli", "experiment=paper", *options]
    begun = time.perf_counter()
    subprocess.run(
        [*command, f"hydra.run.dir={out}"],
        env=os.environ | {"FEDCATS_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        timeout=left,
        check=True,
    )
    found = {"whole": time.perf_counter() - begun}
    return found | json.loads((out / "results.json").read_text())["seconds"]


def rows(
    root: Path | None, weights: str, steps: int, left: Callable[[], float]
) -> Iterator[tuple[str, object]]:
    """What is measured, one row after another."""
    cuda = DEVICE == "cuda"
    yield "device", torch.cuda.get_device_name() if cuda else "cpu"
    yield "torch", torch.__version__
    torch.manual_seed(0)
    start = new_model().to(DEVICE).train()
    pixels = torch.randint(0, 256, (40, 3, 224, 224), dtype=torch.uint8, device=DEVICE)
    x, y = normalise(pixels[:4]), torch.tensor([0, 1, 1, 0], device=DEVICE)
    with FlopCounterMode(display=False) as counter:
        PlainStep(copy.deepcopy(start), RECIPE)(x, y)
    layers = own_linear_layers(start).values()
    passes = 4 * 4 * sum(layer.weight.numel() for layer in layers)
    gflops, gbytes = rates()
    yield "GFLOP/s", gflops
    yield "GB/s", gbytes
    yield "floor ms", max(counter.get_total_flops() / gflops, passes / gbytes) / 1e6
    model = copy.deepcopy(start)
    plain, fast = PlainStep(model, RECIPE), FastStep(model, own_linear_layers(model), RECIPE)
    yield "plain ms", clock(lambda: plain(x, y), steps)
    yield "fast ms", clock(lambda: fast(x, y), steps)
    if cuda:
        step = recorded(model)
        synchronize()
        begun = time.perf_counter()
        step(x, y)
        synchronize()
        yield "record ms", (time.perf_counter() - begun) * 1e3
        yield "recorded ms", clock(lambda: step(x, y), steps)
        batch = torch.tensor([3, 9, 1, 7], device=DEVICE)
        yield "recorded, with pixels ms", clock(lambda: step(normalise(pixels[batch]), y), steps)
        yield "same bits", same_bits(start, pixels, y)
    if root is None:
        return
    yield "naive step ms", naive(root, steps)
    with tempfile.TemporaryDirectory() as home:
        for seed, cache in ((0, "cold"), (1, "warm")):
            for part, seconds in experiment(root, weights, Path(home), seed, left()).items():
                yield f"experiment, {cache} cache: {part} s", seconds


def main() -> None:
    """Print the rows, then all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="photos: train/<class>, test/<class>")
    parser.add_argument("--weights", default="auto", help="model.weights of the experiment")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=90)
    chosen = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    until = time.monotonic() + chosen.seconds
    result: dict[str, object] = {}
    try:
        for key, value in rows(
            chosen.root, chosen.weights, chosen.steps, lambda: until - time.monotonic()
        ):
            result[key] = value
            text = f"{value:.3f}" if isinstance(value, float) else value
            print(f"{key:44} {text}", flush=True)
            if time.monotonic() > until:
                print(f"stopped: {chosen.seconds:g} s are over", flush=True)
                break
    except subprocess.TimeoutExpired:
        print(f"stopped in the experiment: {chosen.seconds:g} s are over", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
