"""What the rivals share: arguments, the photos through torchvision, a plain epoch."""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from torchvision import datasets, models, transforms

LR, BATCH = 0.001, 4


def arguments(description: str | None) -> argparse.ArgumentParser:
    """ROOT has train/<class>/*.jpg and test/<class>/*.jpg."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("root", type=Path)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--per-class", type=int, default=99, help="of each client")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--untrained", action="store_true", help="clients send back what they got")
    return parser


def photos(root: Path, split: str) -> datasets.ImageFolder:
    """The paper's transforms; a photo is decoded each time that it is asked for."""
    flip = [transforms.RandomHorizontalFlip()] if split == "train" else []
    steps = [
        transforms.Resize((224, 224)),
        transforms.CenterCrop(224),
        *flip,
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    return datasets.ImageFolder(str(root / split), transforms.Compose(steps))


def shard(data: datasets.ImageFolder, client: int, per_class: int) -> Dataset[tuple[Tensor, int]]:
    """The client's own photos: so many of each class, disjoint from all others' while they last."""
    found = []
    for label in range(len(data.classes)):
        own = [i for i, target in enumerate(data.targets) if target == label]
        found += [own[(client * per_class + k) % len(own)] for k in range(per_class)]
    return Subset(data, found)


def new_model(classes: int = 2) -> nn.Module:
    """AlexNet with random weights."""
    return models.alexnet(num_classes=classes)


def train(model: nn.Module, data: Dataset[tuple[Tensor, int]], epochs: int) -> None:
    """The loop that one writes first."""
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    model.train()
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
