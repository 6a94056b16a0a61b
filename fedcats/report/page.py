"""The pages' templates (Jinja), as text in a module.

Not files of their own: the bundle that ``flwr run`` sends to its server takes ``.py`` but no
``.html``, and a report must come out there as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedcats.report import page, photos, tables
from fedcats.text import lines_shown

if TYPE_CHECKING:
    from fedcats.report.drawing import Drawn

# Columns are sorted by a click or a key on their name: numbers as numbers, whatever is around them.
_SORT = """\
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  if (!table.tHead || !body || body.rows.length < 2) continue;
  [...table.tHead.rows[0].cells].forEach((th, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...th.childNodes);
    th.append(button);
    button.addEventListener("click", () => {
      const up = th.getAttribute("aria-sort") === "descending";
      for (const one of th.parentNode.cells) one.removeAttribute("aria-sort");
      th.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => row.cells[column].textContent.replace("\u2212", "-").replaceAll(",", "");
      const order = (a, b) => {
        const [x, y] = [parseFloat(key(a)), parseFloat(key(b))];
        const numbers = !isNaN(x) && !isNaN(y);
        const words = isNaN(x) && isNaN(y);
        return numbers ? x - y : words ? key(a).localeCompare(key(b)) : isNaN(x) - isNaN(y);
      };
      const rows = [...body.rows].sort(order);
      body.append(...(up ? rows : rows.reverse()));
    });
  });
}
"""

BASE = (
    """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root {
  --page: #ffffff; --ink: #1f2328; --muted: #59626c; --grid: #d8dee4; --soft: #f6f8fa;
  --blue: #0072b2; --vermillion: #d55e00; --green: #009e73; --purple: #aa4499;
  --orange: #e69f00; --warn: #fff4d6; --warn-ink: #5c4300;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1318; --ink: #e6eaef; --muted: #a3adb8; --grid: #2c333b; --soft: #171d24;
    --blue: #4aa8e0; --vermillion: #f08a4b; --green: #3cc79c; --purple: #d583c6;
    --orange: #f0b63a; --warn: #3a2f10; --warn-ink: #f5dc9a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif;
}
header p.kind { margin: 0; color: var(--muted); letter-spacing: .06em; font-size: .8rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .3rem 0 1rem; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
p.answer { font-size: 1.13rem; margin: .5rem 0; }
p.meta, p.note, figcaption { color: var(--muted); font-size: .88rem; }
p.note { margin: .4rem 0 0; }
p.warning {
  background: var(--warn); color: var(--warn-ink); border-left: 4px solid var(--orange);
  padding: .6rem .9rem; margin: 1rem 0; border-radius: 3px;
}
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem; }
.card { background: var(--soft); border-radius: 6px; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.7rem; font-variant-numeric: tabular-nums; }
.card span { display: block; color: var(--muted); font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid var(--grid); }
th, td { padding: .28rem .8rem .28rem 0; white-space: nowrap; vertical-align: top; }
td { border-bottom: 1px solid var(--grid); }
.num { text-align: right; }
figure { margin: 1rem 0 1.4rem; overflow-x: auto; }
figure svg {
  display: block; width: 100%; height: auto;
  max-width: var(--width); min-width: min(34rem, var(--width));
}
figcaption { margin-top: .3rem; position: sticky; left: 0; }
details { margin: .8rem 0; }
summary { cursor: pointer; }
pre, code { font: .85rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
a { color: var(--blue); }
th button { all: unset; cursor: pointer; } th[aria-sort] button::after { content: " \25BC"; }
th[aria-sort="ascending"] button::after { content: " \25B2"; }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
"""
    + photos.STYLE
    + """\
@media (max-width: 34rem) {
  body { padding-top: 1rem; } h1 { font-size: 1.35rem; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; }
}
@media print {
  :root {
    --page: #ffffff; --ink: #000000; --muted: #555555; --grid: #cccccc; --soft: #f4f4f4;
    --blue: #0072b2; --vermillion: #d55e00; --green: #009e73; --purple: #aa4499;
    --orange: #e69f00; --warn: #fff4d6; --warn-ink: #5c4300;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  figure, .card, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .scroll, figure, pre { overflow: visible; } figure svg { min-width: 0; }
  pre { white-space: pre-wrap; }
  .gallery { display: block; } .gallery > * { display: inline-block; }
  th, td { white-space: normal; overflow-wrap: anywhere; }
  .num { overflow-wrap: normal; } thead { display: table-header-group; }
  table { font-size: 8pt; } th, td { padding-right: .5rem; }
}
</style>
</head>
<body>
{% macro figure(one) %}{% if one %}<figure tabindex="0" style="--width: {{ one.width }}px">
{{ one.svg | safe }}
<figcaption>{{ one.caption }}</figcaption></figure>{% endif %}{% endmacro %}
{% macro pairs(items) %}<dl>{% for key, value in items %}
<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>{% endmacro %}
<header>
<p class="kind">{{ kind }}</p>
<h1>{{ heading }}</h1>
{% for warning in warnings %}<p class="warning">{{ warning }}</p>
{% endfor %}
{% for sentence in answer %}<p class="answer">{{ sentence }}</p>
{% endfor %}
<p class="meta">{{ meta }}</p>
{% if made_by is defined %}<p class="meta">{{ made_by }}</p>{% endif %}
</header>
<main>
{% block main %}{% endblock %}
</main>
<script>
"""
    + _SORT
    + """\
</script>
</body>
</html>
"""
)

REPORT = """\
{% extends "base.html" %}
{% block main %}
{% if cards %}<div class="cards">
{% for card in cards %}<div class="card"><span>{{ card.name }}</span><b>{{ card.change }}</b>
<span>{{ card.detail }}</span><span>{{ card.interval }}</span></div>
{% endfor %}</div>{% endif %}

{% if tables.seeds %}
<h2>Over seeds</h2>
{{ to_html(tables.seeds) }}
{{ figure(figures.seeds) }}
{% if tables.split_over_seeds %}<h3>{{ tables.split_over_seeds.title }}</h3>
{{ to_html(tables.split_over_seeds) }}{{ to_html(tables.split_measures) }}{% endif %}
{{ to_html(tables.measures) }}
{% endif %}

<h2>Scores{{ of_seed }}</h2>
{{ to_html(tables.scores) }}
{{ figure(figures.scores) }}
{% if tables.comparison %}
<h2>Merged minus centralized{{ of_seed }}</h2>
{{ to_html(tables.comparison) }}
{{ figure(figures.difference) }}
{% endif %}
{% if tables.split %}
<h2>{{ tables.split.title }}</h2>
{{ to_html(tables.split) }}
{% endif %}
{% if tables.thresholds %}
<h2>{{ tables.thresholds.title }}</h2>
{{ to_html(tables.thresholds) }}
{% endif %}
{% if tables.paper %}
<h2>Beside the paper</h2>
{{ to_html(tables.paper) }}
{% endif %}
{% if tables.frontier %}
<h2>Accuracy against bytes{{ of_seed }}</h2>
{% for sentence in frontier %}<p>{{ sentence }}</p>
{% endfor %}{{ figure(figures.frontier) }}
{{ to_html(tables.frontier) }}
{% endif %}
{% if tables.rounds %}
<h2>Round by round</h2>
{{ figure(figures.rounds) }}
{{ to_html(tables.rounds) }}
{% endif %}

{% if figures["by-client"] %}
<h2>Each model at each client</h2>
{{ figure(figures["by-client"]) }}
{% endif %}

{% if explained %}
<h2>Why merging works, or does not{{ of_seed }}</h2>
{% for part in explained %}
<h3>{{ part.title }}</h3>
<p>{{ part.text }}</p>
{% for name in part.figures %}{{ figure(figures[name]) }}{% endfor %}
{% endfor %}
{% endif %}

<h2>Where the models err</h2>
{{ figure(figures.confusion) }}
{% if tables.per_class %}
{% if tables.per_class.rows | length > 60 %}
<details><summary>Each class</summary>
{{ to_html(tables.per_class) }}</details>
{% else %}{{ to_html(tables.per_class) }}{% endif %}
{% endif %}
{% if figures.confusion_submodels %}
<details><summary>The clients' own models</summary>
{{ figure(figures.confusion_submodels) }}</details>
{% endif %}

{% if privacy %}
<h2>What the weights give away{{ of_seed }}</h2>
{% for sentence in privacy %}<p>{{ sentence }}</p>
{% endfor %}
{{ figure(figures.membership) }}
{% for one in (tables.promise, tables.membership, tables.who_sees_what) %}
{% if one %}{{ to_html(one) }}{% endif %}
{% endfor %}
{% endif %}

{% include "gallery.html" %}
<h2>Training</h2>
{% for sentence in validation %}<p>{{ sentence }}</p>
{% endfor %}{{ figure(figures.loss) }}
{% if tables.cost %}{{ to_html(tables.cost) }}{% endif %}
{% if tables.shards %}
<h2>Shards and their weights</h2>
{{ figure(figures["who-has-what"]) }}
{{ figure(figures.weights) }}
{{ to_html(tables.shards) }}
{% endif %}

{% include "data.html" %}
<h2>How it was made</h2>
{{ pairs(made) }}
<details><summary>Configuration</summary><pre tabindex="0">{{ config }}</pre></details>
<p class="note">Beside this page lie results.json (every number here), history.csv (loss of each
epoch), predictions/ (each test {{ thing }}, every model){% if figures %}, figures/{% endif %}.</p>
{% endblock %}
"""

SWEEP = """\
{% extends "base.html" %}
{% block main %}
{% for one in figures.values() %}
{{ figure(one) }}
{% endfor %}
{% for one in seeds %}{% if one %}
<h3>{{ one.title }}</h3>
{{ to_html(one) }}
{% endif %}{% endfor %}
{% if frontier %}<h2>Accuracy against bytes</h2>
{{ to_html(frontier) }}{% endif %}
<h2>Every point</h2>
{{ to_html(points) }}
<p class="note">The same numbers are in {{ csv }} beside this page.</p>
{% if jobs %}
<h2>The single runs</h2>
<ul>{% for name in jobs %}<li><a href="{{ name }}/report.html">{{ name }}</a></li>
{% endfor %}</ul>
{% endif %}
{% endblock %}
"""


def render(template: str, drawn: list[Drawn], **values: Any) -> str:
    """Fill one of the templates of :mod:`fedcats.report.page`."""
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    def to_html(table: tables.Table) -> Markup:  # it escapes its cells itself
        return Markup(tables.to_html(table))

    environment = Environment(
        loader=DictLoader(
            {"base.html": page.BASE, "gallery.html": photos.TEMPLATE, "data.html": photos.DATA}
        ),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: lines_shown(value) if type(value) is str else value,
    )
    # so that a section can ask for a figure that this run does not have
    figures = _Missing({one.name: one for one in drawn})
    return environment.from_string(template).render(figures=figures, to_html=to_html, **values)


class _Missing(dict[str, "Drawn"]):
    def __missing__(self, key: str) -> None:
        return None
