"""A model card: what a model was made from, how good it is, and what it is not."""

from __future__ import annotations

from typing import Any

from fedcats.report import cautions, tables, verdict, view
from fedcats.results import Results
from fedcats.results.names import is_submodel
from fedcats.text import shown

USE = {
    "hub": """\
```python
import torch, torchvision
from safetensors.torch import load_file

model = torchvision.models.{model}(num_classes={classes}{more})
model.load_state_dict(load_file("model.safetensors"))
model.eval()
```

It takes RGB images of {side} x {side} pixels in 0..1, normalised with the mean {mean} and the
standard deviation {std} of ImageNet, and gives one score a class, before the softmax.
""",
    "torchscript": """\
```python
import torch

model = torch.jit.load("model.pt")
probabilities = model(pixels)  # (b, 3, {side}, {side}), uint8, RGB
```

Resize to {side} x {side}, bilinear, without a crop; all else is inside.
""",
    "onnx": """\
```python
import onnxruntime

model = onnxruntime.InferenceSession("model.onnx")
(probabilities,) = model.run(None, {{"pixels": pixels}})  # (b, 3, {side}, {side}), uint8, RGB
```

Resize to {side} x {side}, bilinear, without a crop; all else is inside. Classes and preprocessing
stand in the file's metadata, in the entry `fedcats`.
""",
}


def card(results: Results, name: str, form: str, described: dict[str, Any]) -> str:
    """Write the card of one model of a run in Markdown, with a head that model hubs read.

    Parameters
    ----------
    results
        Of the run.
    name
        Of the model in it.
    form
        One of `USE`.
    described
        What the weights' file says of itself: model, classes, preprocessing.
    """
    data, config, model = results["data"], results["config"], results["models"][name]
    train, title = config["train"], view.title(results, name)
    clients = len(data["shards"])
    how = (
        f"trained on all {view.trained_on(results):,} {view.things(results)} in one place"
        if name == "centralized"
        else f"merged by {title} from models of {clients} clients that kept their photos"
        if "clients" in model
        else f"one client's own ({title})"
    )
    facts = {
        "architecture": f"torchvision {config['model']['name']}, {config['model']['trainable']} "
        f"trained, from {results['weights']['source']} weights",
        "classes": ", ".join(map(shown, data["classes"])),
        "data": f"{data['source']}; {sum(data['train'].values()):,} training, "
        f"{sum(data['test'].values()):,} test {view.things(results)}",
        "recipe": f"SGD, lr {train['lr']:g}, batch {train['batch_size']}, epochs "
        f"{train['epochs']}, rounds {config['rounds']}, seed {results['seed']}",
        "made with": ", ".join(f"{key} {value}" for key, value in results["versions"].items()),
    }
    more = ", aux_logits=False, transform_input=True, init_weights=False"
    use = USE[form].format(
        model=config["model"]["name"],
        classes=len(data["classes"]),
        more=more if config["model"]["name"] in ("googlenet", "inception_v3") else "",
        side=described["size"],
        mean=described["mean"],
        std=described["std"],
    )
    limits = [
        *cautions.warnings(results),
        "The scores are of these test images; other photos may be harder.",
        "Weights are not private: who has them can learn something of the photos behind them.",
    ]
    return "\n".join(
        [
            "---",
            "library_name: pytorch",
            "pipeline_tag: image-classification",
            "tags: [federated-learning, fedcats]",
            "---",
            f"# {config['model']['name']}, {title}",
            "",
            f"An image classifier, {how}.",
            "",
            *(f"- {key}: {text}" for key, text in facts.items()),
            "",
            "## How good it is",
            "",
            *(f"{sentence}\n" for sentence in verdict.answer(results)),
            tables.to_markdown(tables.scores(results, submodels=is_submodel(name))),
            "## Use",
            "",
            use,
            "## Limits",
            "",
            *(f"- {line}" for line in limits),
            "",
        ]
    )
