"""One training step of AlexNet at batch 4 on a GPU: plain, fast and recorded, and the floor.

    python benchmarks/gpu.py [--steps 300]

Floor = the larger of: operations of the step / measured rate of a float32 product; four passes
over the linear weights (read forward, read backward, read and write for the update) / measured
copy rate, counting bytes read and written. Also: time to record, several models on streams of
their own, and whether two runs give the same bits.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import alexnet

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


def clock(work: Callable[[], object], steps: int) -> float:
    """Milliseconds of one call, the GPU's work included; median of five series."""
    series = []
    for _ in range(6):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(steps):
            work()
        torch.cuda.synchronize()
        series.append((time.perf_counter() - begun) / steps * 1e3)
    return sorted(series[1:])[2]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs a CUDA GPU")
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    start = alexnet(num_classes=2).cuda().train()
    pixels = torch.randint(0, 256, (40, 3, 224, 224), dtype=torch.uint8, device="cuda")
    x, y = normalise(pixels[:4]), torch.tensor([0, 1, 1, 0], device="cuda")
    with FlopCounterMode(display=False) as counter:
        PlainStep(copy.deepcopy(start), RECIPE)(x, y)
    layers = own_linear_layers(start).values()
    passes = 4 * 4 * sum(layer.weight.numel() for layer in layers)

    a = torch.randn(8192, 8192, device="cuda")
    gflops = 2 * 8192**3 / clock(lambda: a @ a, 5) / 1e6
    source, target = torch.randn(2, 500_000_000, device="cuda")
    gbytes = 2 * source.nbytes / clock(lambda: target.copy_(source), 5) / 1e6
    result: dict[str, float | str | bool] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "GFLOP/s": gflops,
        "GB/s": gbytes,
        "floor ms": max(counter.get_total_flops() / gflops, passes / gbytes) / 1e6,
    }

    model = copy.deepcopy(start)
    for name, step in (
        ("plain", PlainStep(model, RECIPE)),
        ("fast", FastStep(model, own_linear_layers(model), RECIPE)),
    ):
        result[f"{name} ms"] = clock(lambda step=step: step(x, y), steps)
    step = recorded(model)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    step(x, y)
    torch.cuda.synchronize()
    result["record ms"] = (time.perf_counter() - begun) * 1e3
    result["recorded ms"] = clock(lambda: step(x, y), steps)
    batch = torch.tensor([3, 9, 1, 7], device="cuda")
    result["recorded, with pixels ms"] = clock(lambda: step(normalise(pixels[batch]), y), steps)

    for count in (2, 4, 10):
        streams = [torch.cuda.Stream() for _ in range(count)]
        several = [recorded(copy.deepcopy(start)) for _ in range(count)]
        torch.cuda.synchronize()

        def all_of_them(streams=streams, several=several) -> None:
            for stream, each in zip(streams, several, strict=True):
                with torch.cuda.stream(stream):
                    each(x, y)

        result[f"recorded, {count} streams, ms a step"] = clock(all_of_them, steps // count) / count
    result["same bits"] = same_bits(start, pixels, y)
    for key, value in result.items():
        print(f"{key:36} {value:.3f}" if isinstance(value, float) else f"{key:36} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
