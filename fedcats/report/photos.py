"""The page's parts about photos: what was found in the data, and those that models get wrong."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcats.errors import UserError
from fedcats.metrics import Predictions, read_predictions
from fedcats.report import tables, view
from fedcats.results import Results
from fedcats.results.names import is_submodel, submodel

if TYPE_CHECKING:
    from fedcats.data import Images

SIDE = 96  # pixels of a thumbnail, which then takes some 3 kB
_LISTED = 50  # findings of a kind; results.json has all
_CLIENTS = 12  # of more clients' own models none is asked
_CLASSES = 3  # most probable ones that are listed

TEMPLATE = """\
{% if gallery %}
<h2>Photos that models get wrong{{ of_seed }}</h2>
<p class="note">A click shows what each model says. The photos are part of this page; with
gallery=0 a run makes one without.</p>
{% for group in gallery %}
<h3>{{ group.title }}</h3>
<p class="note" style="margin-bottom: .6rem">{{ group.text }}</p>
{% if group.photos %}<div class="gallery">{% for one in group.photos %}
<details><summary><img src="data:image/jpeg;base64,{{ one.thumbnail }}" width="96" height="96"
alt="{{ one.alt }}"><span>{{ one.caption }}</span></summary>
<p class="note">{{ one.file }}</p>{{ to_html(one.table) }}</details>{% endfor %}</div>{% endif %}
{% endfor %}
{% endif %}
"""

DATA = """\
<h2>The data</h2>
{{ to_html(data.counts) }}
{% for kind in data.found %}
<details><summary>{{ kind.title }}: {{ kind.count }}</summary><ul>
{% for line in kind.lines %}<li>{{ line }}</li>
{% endfor %}</ul></details>
{% endfor %}
"""

STYLE = """\
.gallery { display: grid; grid-template-columns: repeat(auto-fill, 6.5rem); gap: .8rem; }
.gallery details { margin: 0; } .gallery details[open] { grid-column: 1 / -1; }
.gallery summary { list-style: none; font-size: .8rem; width: 6.5rem; overflow-wrap: anywhere; }
.gallery summary::-webkit-details-marker { display: none; }
.gallery img { display: block; border-radius: 4px; }
"""


@dataclass(frozen=True)
class Wrong:
    """A photo that some model gets wrong, with what each model says of it."""

    file: str
    thumbnail: str
    alt: str
    caption: str
    table: tables.Table


@dataclass(frozen=True)
class Group:
    """Photos of one kind; ``text`` says how many there are."""

    title: str
    text: str
    photos: list[Wrong]


def gallery(results: Results, folder: Path, images: Images | None) -> list[Group]:
    """Choose photos that the centralized, the first merged model or both get wrong.

    Parameters
    ----------
    results, folder
        Of the run.
    images
        Its test images; without them, and with ``gallery=0``, there is no gallery.
    """
    most = results.get("config", {}).get("gallery", 0)
    names = [*view.of_all(results)]
    if images is None or not most or not names:
        return []
    own = [submodel(client) for client in view.submodels(results)]
    asked = [*names, *(own if len(own) <= _CLIENTS else ())]
    try:
        found = {
            name: read_predictions(folder / results["models"][name]["predictions"])
            for name in asked
        }
    except UserError:
        return []
    groups = []
    for title, by, chosen in _kinds(results, found):
        shown = [_wrong(results, found, by, images, i) for i in chosen[:most]]
        groups.append(Group(title, _text(results, len(chosen), most), shown))
    return groups


def _kinds(results: Results, found: Mapping[str, Predictions]) -> list[tuple[str, str, list[int]]]:
    """Each kind, a model that is wrong, and the photos: those first of which it is surest."""
    merged = next(iter(view.merged(results)), None)
    base = "centralized" if "centralized" in found else None
    right = {name: _guesses(one) == one.labels for name, one in found.items()}
    sure = {name: one.probabilities.max(axis=1) for name, one in found.items()}

    def ranked(where: Any, by: str) -> list[int]:
        at = np.flatnonzero(where)
        order = at[np.argsort(-sure[by][at], kind="stable")]
        return [int(i) for i in order]

    if base is None or merged is None:
        (only,) = [name for name in (base, merged) if name]
        return [(f"{view.title(results, only)} is wrong", only, ranked(~right[only], only))]
    title = view.title(results, merged)
    return [
        (
            f"Lost by merging: centralized right, {title} wrong",
            merged,
            ranked(right[base] & ~right[merged], merged),
        ),
        (
            f"Won by merging: {title} right, centralized wrong",
            base,
            ranked(~right[base] & right[merged], base),
        ),
        ("Both are wrong", merged, ranked(~right[base] & ~right[merged], merged)),
    ]


def _text(results: Results, count: int, most: int) -> str:
    tested = sum(results["data"]["test"].values())
    text = f"{count:,} of {tested:,} test {view.things(results)}"
    if count > most:
        return f"{text}; those {most} of which it is surest."
    return f"{text}." if count else f"None of {tested:,} test {view.things(results)}."


def _guesses(found: Predictions) -> Any:
    return found.probabilities.argmax(axis=1)


def _wrong(
    results: Results, found: Mapping[str, Predictions], by: str, images: Images, i: int
) -> Wrong:
    any_one = next(iter(found.values()))
    classes, label = any_one.classes, any_one.classes[int(any_one.labels[i])]
    rows: list[tuple[str, ...]] = []
    said = []
    for name, one in found.items():
        p = one.probabilities[i]
        likely = [int(k) for k in np.argsort(-p, kind="stable")[:_CLASSES]]
        guess = f"{classes[likely[0]]} {view.percent(float(p[likely[0]]))}"
        others = ", ".join(f"{classes[k]} {view.percent(float(p[k]))}" for k in likely[1:])
        mark = "right" if classes[likely[0]] == label else "wrong"
        rows.append((view.title(results, name), guess, mark, others))
        if not is_submodel(name):
            said.append(f"{view.title(results, name)} says {guess}")
    header = ("model", "prediction", "", "others")
    table = tables.Table(any_one.files[i], header, rows, text=(0, 1, 2, 3))
    alt = f"{any_one.files[i]}: {label}; {', '.join(said)}"
    taken = classes[int(found[by].probabilities[i].argmax())]
    caption = f"{label}, taken for {taken}"
    return Wrong(any_one.files[i], _thumbnail(images, i), alt, caption, table)


def _thumbnail(images: Images, i: int) -> str:
    from PIL import Image

    pixels = images.pixels([i])[0].permute(1, 2, 0).numpy()
    small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75)
    return base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Found:
    """A kind of finding in the files, with the first ones."""

    title: str
    count: str
    lines: list[str]


def data(results: Results) -> dict[str, Any]:
    """What there is of each class in each part, and what the check of the files found."""
    has = results["data"]
    parts = {"training": has["train"], "held out": has.get("held_out", {}), "test": has["test"]}
    parts = {name: counts for name, counts in parts.items() if any(counts.values())}
    rows = [(name, *(f"{parts[part].get(name, 0):,}" for part in parts)) for name in has["classes"]]
    rows.append(("all", *(f"{sum(counts.values()):,}" for counts in parts.values())))
    note = str(has.get("note") or "")
    audit = has.get("audit")
    if audit and audit.get("checked"):
        note = f"{audit['checked']:,} files were looked at. {note}".strip()
    counts = tables.Table("The data", ("class", *parts), rows, note=note)
    return {"counts": counts, "found": _found(audit) if audit else []}


def _found(audit: Any) -> list[Found]:
    alike = [
        f"{one['first']} ~ {one['second']}{' (training and test)' if one['across'] else ''}"
        for one in audit.get("near_duplicates", ())
    ]
    left = "left out of training" if audit.get("removed") else "kept in training"
    kinds: list[tuple[str, Sequence[str], int | None]] = [
        ("Unusable files, left out", [": ".join(one) for one in audit["quarantined"]], None),
        ("Files ignored, since they do not look like images", audit["ignored"], None),
        (
            f"Training images that are test images too, {left}",
            [" = ".join(one) for one in audit["in_test_too"]],
            None,
        ),
        (
            "The same image in several classes",
            [" = ".join(one) for one in audit["contradictions"]],
            None,
        ),
        ("The same image several times", [" = ".join(one) for one in audit["duplicates"]], None),
        ("Pairs that look alike", alike, audit.get("near_duplicates_found")),
    ]
    found = []
    for title, lines, count in kinds:
        total = len(lines) if count is None else count
        if total:
            more = total - len(lines[:_LISTED])
            shown = [*lines[:_LISTED], *([f"and {more:,} more: results.json"] if more else [])]
            found.append(Found(title, f"{total:,}", shown))
    return found
