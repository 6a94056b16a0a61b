"""The whole experiment: fedcats against the script that one writes first.

    python benchmarks/experiment.py ROOT [--per-class 20] [--epochs 2] [--test 100] [--repeat 3]

ROOT has train/<class>/*.jpg and test/<class>/*.jpg. Both sides train AlexNet from random weights
with the paper's recipe (SGD, lr 0.001, batch 4, float32) on ten shards and on all of their photos
together, merge the ten by the sequential Polyak average, and test all twelve models. The script
decodes with a DataLoader in every epoch, trains one model after another with torch's own number
of threads, and tests at batch 4. fedcats starts with nothing cached. Each round runs one after
the other; the ratio is taken within a round, and the last line is the median.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

SHARDS = 10


def naive(root: Path, per_class: int, epochs: int, test: int) -> None:
    """The script."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, Subset
    from torchvision import datasets, models, transforms

    common = [
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    resize = [transforms.Resize((224, 224))]
    augmented = transforms.Compose([*resize, transforms.RandomHorizontalFlip(), *common])
    training = datasets.ImageFolder(str(root / "train"), augmented)
    testing = datasets.ImageFolder(str(root / "test"), transforms.Compose([*resize, *common]))

    def of_class(data: datasets.ImageFolder, first: int, count: int) -> list[int]:
        found = []
        for label in range(len(data.classes)):
            own = [i for i, target in enumerate(data.targets) if target == label]
            found += own[first : first + count]
        return found

    def train(positions: list[int]) -> nn.Module:
        model = models.alexnet(num_classes=len(training.classes))
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
        loader = DataLoader(Subset(training, positions), batch_size=4, shuffle=True)
        model.train()
        for _ in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        return model

    torch.manual_seed(0)
    start = models.alexnet(num_classes=len(training.classes)).state_dict()
    shards = [of_class(training, i * per_class, per_class) for i in range(SHARDS)]
    trained = [train(shard) for shard in shards]
    merged = {key: value.clone() for key, value in trained[0].state_dict().items()}
    for model in trained[1:]:
        for key, value in model.state_dict().items():
            merged[key] = 0.5 * value + 0.5 * merged[key]
    polyak = models.alexnet(num_classes=len(training.classes))
    polyak.load_state_dict(merged)
    centralized = train([position for shard in shards for position in shard])
    loader = DataLoader(Subset(testing, of_class(testing, 0, test)), batch_size=4)
    for model in (*trained, polyak, centralized):
        model.eval()
        right = 0
        with torch.no_grad():
            for x, y in loader:
                right += int((model(x).argmax(1) == y).sum())
    print(f"centralized: {right} right")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="The whole experiment against a naive script")
    parser.add_argument("root", type=Path)
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--naive", action="store_true", help="run the script once, here")
    given = parser.parse_args()
    if given.naive:
        naive(given.root, given.per_class, given.epochs, given.test)
        return
    numbers = [f"--per-class={given.per_class}", f"--epochs={given.epochs}", f"--test={given.test}"]
    script = [sys.executable, __file__, str(given.root), *numbers, "--naive"]
    train, test = SHARDS * given.per_class, given.test
    ratios = []
    for _ in range(given.repeat):
        with tempfile.TemporaryDirectory() as home:
            fedcats = [sys.executable, "-m", "fedcats.cli", "data=folder", "partition=paper"]
            fedcats += [f"data.root={given.root}", f"partition.per_class={given.per_class}"]
            fedcats += [f"data.counts={{train: [{train}, {train}], test: [{test}, {test}]}}"]
            fedcats += [f"train.epochs={given.epochs}", "model.weights=none", "strategy=polyak"]
            fedcats += ["save_models=false", f"hydra.run.dir={home}/run"]
            took = []
            for command in (script, fedcats):
                begun = time.perf_counter()
                environment = {**os.environ, "FEDCATS_HOME": home}
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
                took.append(time.perf_counter() - begun)
        ratios.append(took[0] / took[1])
        print(f"script {took[0]:6.1f} s, fedcats {took[1]:6.1f} s: {ratios[-1]:.2f}", flush=True)
    print(f"median: fedcats is {median(ratios):.2f} times as fast")


if __name__ == "__main__":
    main()
