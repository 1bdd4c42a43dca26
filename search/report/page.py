"""The page around the report: style, scripts, and a policy that lets nothing in from outside.

One file: plotly.js, the data and the style are in it. The content security policy forbids every request, and of
scripts it allows exactly those that are named by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from search.report.markup import Html, element, escape
from search.report.plain_data import finite
from search.report.section import Section, asset, in_order

_TURNING = re.compile(r"(?<!\\)((?:\\\\)*)\\(u(?:200[ef]|202[a-e]|206[6-9]))")
"""In JSON: a sign that turns the order of what stands around it (:func:`search.report.markup.readable`)."""


def page(title: str, header: Html, sections: Sequence[Section], data: dict[str, Any], plotly: str) -> str:
    """The whole HTML file.

    Args:
        title: plain text.
        header: what stands above the sections.
        sections: in their order; their scripts and styles go in once each.
        data: for the page's scripts, see :func:`search.report.section.merged_data`.
        plotly: the source of plotly.js; it goes in exactly once.
    """
    names = in_order(["report", *(name for each in sections for name in each.scripts)])
    scripts = [plotly, *(asset(f"{name}.js") for name in names)]
    sheets = in_order(["report", *(name for each in sections for name in each.styles)])
    style = "\n".join(asset(f"{name}.css") for name in sheets)
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(_hash(each) for each in scripts)}",
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            '<meta name="referrer" content="no-referrer">\n<link rel="icon" href="data:,">\n',
            element("title", title),
            f"\n<style>{style}</style>\n</head>\n<body>\n",
            element("a", "Skip to the report", href="#report", class_="skip"),
            "\n",
            header,
            "\n",
            _contents(sections),
            "\n",
            element("noscript", element("p", "The figures need JavaScript; the tables hold their numbers without it.")),
            '\n<main id="report" tabindex="-1">\n',
            "\n".join(each.html() for each in sections),
            "\n</main>\n",
            f'\n<script type="application/json" id="report-data">{script_json(data)}</script>',
            *(f"\n<script>{each}</script>" for each in scripts),
            "\n</body>\n</html>\n",
        ]
    )


def script_json(data: Any) -> str:
    """JSON that is safe between script tags: no character can end the element, and NaN and infinity become null."""
    text = json.dumps(finite(data), separators=(",", ":"), allow_nan=False)  # ASCII only: separators are escaped too
    text = _TURNING.sub(r"\1\\\\\2", text)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _contents(sections: Sequence[Section]) -> Html:
    links = [element("li", element("a", each.title, href=f"#{each.key}")) for each in sections]
    return element("nav", element("ul", links), aria_label="Contents", class_="contents") if links else Html()


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
