"""The page a cut is shown with: one offline HTML file, charts and styles inside, nothing fetched from anywhere.

Model names, prompts and sampled text are hostile input: templates escape everything, texts lose their control
characters first, and a content security policy in the page allows only our own style and script (by their hash), and
no request at all.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from secateur.errors import NoMatch, nearest, require
from secateur.report import groups, headline, parts, svg, words
from secateur.report import packed as packing
from secateur.report.table import check_results

_TEMPLATES = Path(__file__).parent / "templates"


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def render_page(results: dict[str, Any]) -> str:
    """The page as text, the same for the same results.

    Raises:
        BadInput, Unsupported: the results are not what `check_results` accepts, or jinja2 is not installed.
    """
    jinja2 = require("jinja2", "report")
    markup = require("markupsafe", "report").Markup
    results = check_results(results)
    view = groups.view(results)
    columns = parts.columns(view)
    style, script = "\n" + _read("page.css") + _read("chart.css"), "\n" + _read("page.js")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The one way past escaping: charts, which escape what they are given, and our own style and script.
    environment.filters["ours"] = markup
    share = view.lead.mean("sparsity") if view.lead else None
    return environment.get_template("page.html").render(
        r=results,
        title=results.get("title") or f"{results.get('model') or 'model'}, cut",
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        view=view,
        sentence=headline.sentence(view, results.get("model") or ""),
        rivals=headline.rivals(view),
        costs=headline.costs(view),
        kept=None
        if view.lead is None or share is None
        else svg.kept_grid(share, f"{view.lead.name}: what was cut", view.lead.slot),
        tiles=parts.tiles(view),
        columns=columns,
        tiers=parts.tiers(columns),
        lines=parts.summary(view, columns),
        every=parts.every_row(view, columns),
        plots=parts.plots(view),
        maps=parts.maps(view),
        knees=parts.knees(results),
        packed=packing.packed(results),
        packed_head=packing.HEAD,
        samples=parts.samples(view, results.get("prompt") or ""),
        origins=parts.origins(results),
        made=words.moment(results.get("created") or ""),
        folders=parts.folders(results),
        notes=headline.notes(results),
    )


def write_page(results: dict[str, Any], path: Path) -> Path:
    """Write the page to `path` in one piece (the old file or the new one, never a part); returns the path."""
    from secateur.io.files import write_atomic

    text = render_page(results)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    return path


def write_plot(results: dict[str, Any], path: Path, metric: str = "perplexity") -> Path:
    """Write quality against sparsity as an .svg file of its own, for a README or a paper.

    Raises:
        NoMatch: no cut model was measured by that metric.
    """
    from secateur.io.files import write_atomic

    view = groups.view(check_results(results))
    found = {plot.metric: plot for plot in parts.plots(view)}
    if metric not in found:
        raise NoMatch(f"no cut was measured by {metric!r}", where="results", fix=nearest(metric, found))
    write_atomic(path, svg.standalone(found[metric].wide))
    return Path(path)
