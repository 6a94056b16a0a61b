"""A run folder as a real run leaves it, with scores of random predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from fedcats.metrics import compare, scores, write_predictions

PAPER = OmegaConf.to_container(
    OmegaConf.load(Path(__file__).parents[1] / "conf" / "paper" / "cats_dogs.yaml")
)


def predictions(
    labels: np.ndarray, k: int, skill: float, generator: np.random.Generator, shared: np.ndarray
) -> np.ndarray:
    """Probabilities of a made-up model; ``shared`` makes some photos hard for every model."""
    logits = skill * np.eye(k)[labels] + 0.9 * shared + 0.5 * generator.normal(size=shared.shape)
    exp = np.exp(2 * logits)
    return exp / exp.sum(axis=1, keepdims=True)


def fake_run(
    folder: Path,
    *,
    clients: int = 10,
    classes: tuple[str, ...] = ("cat", "dog"),
    rules: tuple[str, ...] = ("polyak", "fedavg"),
    with_centralized: bool = True,
    rounds: int = 1,
    epochs: int = 10,
    source: str = "folder",
    paper: dict[str, Any] | None = None,
    per_class: int = 506,
) -> dict[str, Any]:
    """Build a run folder as a real run leaves it, with scores of random predictions."""
    generator = np.random.default_rng(11)
    k = len(classes)
    labels = np.repeat(np.arange(k), per_class)
    shared = generator.normal(size=(len(labels), k))
    files = [f"test/{classes[y]}/{i:05d}.jpg" for i, y in enumerate(labels)]
    history: list[list[Any]] = []
    probabilities: dict[str, np.ndarray] = {}

    def model(name: str, skill: float) -> dict[str, Any]:
        probabilities[name] = predictions(labels, k, skill, generator, shared)
        path = f"predictions/{name}.csv"
        write_predictions(folder / path, files, labels, probabilities[name], classes)
        return {
            **scores(labels, probabilities[name], classes),
            "file": f"models/{name}.safetensors",
            "predictions": path,
        }

    def trained(name: str, examples: int, skill: float, level: float) -> dict[str, Any]:
        for number in range(1, rounds + 1):
            curve = [
                {
                    "loss": float(level * np.exp(-0.28 * (e + 3 * (number - 1))) + 0.012)
                    * float(generator.uniform(0.85, 1.15)),
                    "seconds": examples * 0.02,
                }
                for e in range(epochs)
            ]
            if name == "centralized" and number > 1:
                break
            # from the second round on every rule trains on from its own merge
            for prefix in rules if number > 1 else ("",):
                label = f"{prefix}/{name}".lstrip("/")
                for e, one in enumerate(curve):
                    history.append([label, number, e + 1, one["loss"], one["seconds"]])
        training = {"examples": examples, "steps": epochs * -(-examples // 4), "epochs": curve}
        return {**model(name, skill), "training": training}

    models: dict[str, Any] = {}
    if with_centralized:
        models["centralized"] = trained("centralized", 1001 * k, 2.55, 0.35)
    for client in range(clients if rules else 0):
        skill = 1.9 + 0.4 * float(generator.random())
        models[f"submodel/{client}"] = trained(f"submodel/{client}", 99 * k, skill, 0.5)
    weights = {
        "polyak": [0.5 ** max(clients - 1, 0), *(0.5 ** (clients - i) for i in range(1, clients))],
        "fedavg": [1 / clients] * clients,
    }
    after = []
    for number in range(1, rounds + 1):
        entry: dict[str, Any] = {"round": number}
        for rule in rules:
            one = model(rule, 2.3 + 0.06 * number + 0.05 * (rule == "fedavg"))
            models[rule] = {
                **one,
                "title": {"polyak": "Polyak β = 0.5", "fedavg": "FedAvg"}.get(rule, rule),
                "effective_weights": weights[rule],
                "n_eff": 1 / sum(w * w for w in weights[rule]),
            }
            entry[rule] = {
                key: one[key] for key in ("accuracy", "precision", "recall", "f1", "loss", "n")
            } | {"bytes": {"down": 2 * 10**8, "up": 10**8}}
        after.append(entry)

    with (folder / "history.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["model", "round", "epoch", "loss", "seconds"], *history])
    results: dict[str, Any] = {
        "schema": 1,
        "status": "complete",
        "config": {"strategy": {"rules": list(rules), "beta": 0.5}, "train": {"lr": 0.001}},
        "seed": 0,
        "versions": {"python": "3.11.7", "torch": "2.14.1", "flwr": "1.42.0"},
        "data": {
            "source": source,
            "note": "",
            "classes": list(classes),
            "train": dict.fromkeys(classes, 1001),
            "test": dict.fromkeys(classes, per_class),
            "shards": [
                {"client": i, "examples": 99 * k, "per_class": dict.fromkeys(classes, 99)}
                for i in range(clients)
            ],
        },
        "weights": {"source": "imagenet_features", "sha256": "443c5bc35326b81e" * 4},
        "models": models,
        "store": {"trained": list(models)[:3], "reused": list(models)[3:]},
        "seconds": {"data": 12.3, "centralized": 405.0, "clients": 431.9, "total": 880.1},
    }
    if with_centralized:
        results["comparison"] = {
            rule: compare(labels, probabilities[rule], probabilities["centralized"], seed=1)
            for rule in rules
        }
    if rounds > 1:
        results["rounds"] = after
    if paper:
        results["paper"] = paper
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    return results


def small(**more: Any) -> dict[str, Any]:
    """A results dict by hand: centralized 0.96, merged 0.95, two sub-models."""

    def model(accuracy: float, precision: float, recall: float, **rest: Any) -> dict[str, Any]:
        return {
            "accuracy": accuracy, "precision": precision, "recall": recall, "f1": 0.9,
            "loss": 0.1, "n": 200, "confusion_matrix": [[95, 5], [3, 97]], **rest,
        }  # fmt: skip

    interval = {"difference": -0.01, "low": -0.03, "high": 0.012}
    training = {"examples": 2003, "steps": 501, "epochs": []}
    return {
        "data": {
            "source": "folder",
            "classes": ["cat", "dog"],
            "train": {"cat": 999, "dog": 1004},
            "test": {"cat": 100, "dog": 100},
            "shards": [{"client": i, "examples": n} for i, n in enumerate((1000, 1003))],
        },
        "config": {"strategy": {"beta": 0.5}},
        "models": {
            "centralized": model(0.96, 0.95, 0.97, training=training),
            "submodel/0": model(0.90, 0.91, 0.92),
            "submodel/1": model(0.92, 0.93, 0.94),
            "polyak": model(
                0.95, 0.955, 0.94, title="Polyak β = 0.5", effective_weights=[0.5, 0.5], n_eff=2.0
            ),
        },
        "comparison": {
            "polyak": {
                "n": 200, "only_model_right": 3, "only_reference_right": 5, "mcnemar_p": 0.7266,
                "confidence": 0.95,
                "accuracy": interval,
                "precision": {"difference": 0.005, "low": -0.01, "high": 0.02},
                "recall": {"difference": -0.03, "low": -0.05, "high": -0.01},
            }
        },
        **more,
    }  # fmt: skip
