"""One training step of AlexNet at batch 4: plain, fast, and the floor of the hardware.

    python benchmarks/step.py [--rounds 15] [--json FILE]

Floor = operations of the step / measured rate of a matrix product
      + three passes over the linear weights / measured read rate
(one read in the forward pass, one read and one write in the backward pass; the write counts as a
read, which is generous to the floor). Everything is measured in the same rounds, one after the
other, so that a busy machine hits all alike; ratios are taken within a round, and the table shows
medians over the rounds. With two processes, both run the same thing at the same time.
"""

import argparse
import copy
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

SETTINGS = [("1 thread", 1, 1), ("2 threads", 2, 1), ("2 processes x 1 thread", 1, 2)]
meet: Barrier
# Of the first convolution, four images: 64 x 55 x 55 outputs of 3 x 11 x 11 products.
FIRST_LAYER = 4 * 2 * 64 * 55 * 55 * 3 * 11 * 11
COLUMNS = ["gemm", "read", "plain", "fast", "momentum plain", "momentum fast"]


def share(barrier: Barrier) -> None:
    """Give a worker process the barrier at which all of them meet."""
    global meet
    meet = barrier


def measure(
    threads: int, rounds: int, kept: bool, columns: Sequence[str] = COLUMNS
) -> tuple[list[dict[str, float]], int, int]:
    """Seconds of every column in each round; operations and bytes of the floor."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision.models import alexnet

    from fedcats.training.fast import keep_freed_memory, make_fast_step
    from fedcats.training.loop import PlainStep
    from fedcats.training.recipe import Recipe

    torch.set_num_threads(threads)
    if kept:
        keep_freed_memory()  # of the whole process, so plain steps gain from it too
    torch.manual_seed(0)
    recipe, momentum = (
        Recipe(
            epochs=1,
            batch_size=4,
            lr=0.001,
            momentum=m,
            nesterov=False,
            weight_decay=0.0,
            step_size=0,
            gamma=1.0,
            drop_last=False,
        )
        for m in (0.0, 0.9)
    )
    start = alexnet(num_classes=2).train()
    x, y = torch.randn(4, 3, 224, 224), torch.randint(0, 2, (4,))
    with FlopCounterMode(display=False) as counter:
        PlainStep(copy.deepcopy(start), recipe)(x, y)
    linear = sum(
        layer.weight.numel() for layer in start.modules() if isinstance(layer, torch.nn.Linear)
    )

    a = torch.randn(2048, 2048)
    b = torch.randn(2048, 2048)
    memory = torch.randn(2, 20_000_000)  # 160 MB, beyond the caches
    steps: dict[str, Callable[[], object]] = {
        "gemm": lambda: a @ b,
        "read": lambda: torch.dot(memory[0], memory[1]),
    }
    for name, make in (("plain", PlainStep), ("fast", make_fast_step)):
        for prefix, r in (("", recipe), ("momentum ", momentum)):
            if prefix + name not in columns:
                continue
            model = copy.deepcopy(start)
            if name == "fast":  # as clients have it
                model = model.to(memory_format=torch.channels_last)
            step = make(model, r)
            assert step is not None
            steps[prefix + name] = lambda step=step: step(x, y)

    found = []
    for index in range(rounds + 1):
        times = {}
        for column in columns:
            meet.wait(timeout=300)  # a process that died must not hold up the others
            best = float("inf")
            for _ in range(3):
                begun = time.perf_counter()
                steps[column]()
                best = min(best, time.perf_counter() - begun)
            times[column] = best
        if index:  # the first round warms up
            found.append(times)
    return found, counter.get_total_flops(), 3 * 4 * linear


def summarise(runs: list[tuple[list[dict[str, float]], int, int]]) -> dict[str, float]:
    """Medians over processes and rounds; rates in 1e9/s, times in ms."""
    rows = []
    for found, operations, passes in runs:
        for times in found:
            gflops, gbytes = 2 * 2048**3 / times["gemm"] / 1e9, 0.16 / times["read"]
            floor = operations / gflops / 1e9 + passes / gbytes / 1e9
            row = {f"{c} ms": 1e3 * times[c] for c in COLUMNS[2:]}
            row |= {"floor ms": 1e3 * floor, "GFLOP/s": gflops, "read GB/s": gbytes}
            row |= {
                "fast/floor": times["fast"] / floor,
                "plain/floor": times["plain"] / floor,
                "plain/fast": times["plain"] / times["fast"],
                "plain/fast, momentum": times["momentum plain"] / times["momentum fast"],
            }
            rows.append(row)
    return {key: median(row[key] for row in rows) for key in rows[0]}


def rates(rounds: int = 3) -> dict[str, float]:
    """What the floors of other benchmarks are made of, with one process on each core.

    Returns
    -------
    dict
        ``step``: seconds of a training step's floor; ``forward``: of testing one photo; the rates
        ``GFLOP/s`` and ``read GB/s`` of each core.
    """
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(cores)
    with ProcessPoolExecutor(cores, context, share, (barrier,)) as pool:
        runs = [pool.submit(measure, 1, rounds, True, ["gemm", "read"]) for _ in range(cores)]
        found = [run.result() for run in runs]
    times = [one for rows, _, _ in found for one in rows]
    gflops = median(2 * 2048**3 / one["gemm"] / 1e9 for one in times)
    gbytes = median(0.16 / one["read"] for one in times)
    _, operations, passes = found[0]
    # Backward takes two products for each of the forward pass, but for the first layer's input.
    forward = (operations + FIRST_LAYER) / 3 / 4
    return {
        "step": operations / gflops / 1e9 + passes / gbytes / 1e9,
        "forward": forward / gflops / 1e9,
        "GFLOP/s": gflops,
        "read GB/s": gbytes,
    }


def machine() -> str:
    """Name of the processor, its instructions (several kinds have one name), and its cores."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    kind = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({kind}), {len(os.sched_getaffinity(0))} cores"


def keep(path: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Put results into a JSON file, by machine: ratios of two are not one table.

    Returns
    -------
    dict
        All that the file has of this machine.
    """
    everything = json.loads(path.read_text()) if path.is_file() else {}
    own: dict[str, Any] = everything.setdefault(machine(), {})
    own.update(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(everything, indent=1) + "\n")
    return own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/step.json"))
    parser.add_argument("--malloc-default", action="store_true", help="give freed memory back")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    table: dict[str, dict[str, float]] = {}
    for name, threads, processes in SETTINGS:
        barrier = context.Barrier(processes)
        with ProcessPoolExecutor(processes, context, share, (barrier,)) as pool:
            runs = [
                pool.submit(measure, threads, options.rounds, not options.malloc_default)
                for _ in range(processes)
            ]
            table[name] = summarise([run.result() for run in runs])

    width = max(map(len, table[SETTINGS[0][0]]))
    print(f"{'':{width}}  " + "  ".join(f"{name:>22}" for name in table))
    for key in table[SETTINGS[0][0]]:
        print(f"{key:{width}}  " + "  ".join(f"{row[key]:22.2f}" for row in table.values()))
    keep(options.json, table)


if __name__ == "__main__":
    main()
