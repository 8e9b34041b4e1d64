"""`GET /docs`: the OpenAPI document in words, without scripts and without anything from elsewhere."""

from __future__ import annotations

import functools
import html
import json
from typing import Any

from serving.limits import RequestLimits
from serving.openapi import document
from serving.protocols.base import Answer, ModelFacts


@functools.lru_cache(maxsize=2)  # As `openapi.json_page`.
def html_page(model: ModelFacts, limits: RequestLimits) -> Answer:
    """What `GET /docs` answers."""
    described = document(model, limits)
    info = described["info"]
    parts = [f"<h1>{_text_of(info['title'])}</h1><p>{_text_of(info['description'])}</p>"]
    parts.append('<p>The same for programs: <a href="/openapi.json">openapi.json</a>.</p>')
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            if method != "head":
                parts.append(_section(path, method, operation))
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
        "section{border-top:1px solid #ccc;margin-top:1.5rem}code,pre{font:14px/1.4 ui-monospace,monospace}"
        "pre{background:#f4f4f4;padding:.7rem;overflow:auto;max-height:20rem}"
        "@media(prefers-color-scheme:dark){body{background:#161616;color:#eee}pre{background:#262626}a{color:#8bf}}"
    )
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text_of(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>"
    )
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"content-security-policy": policy, "x-content-type-options": "nosniff"}
    return Answer(page.encode(), headers=headers, content_type="text/html; charset=utf-8")


def _section(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [
        f"<section><h2><code>{method.upper()} {_text_of(path)}</code></h2><p>{_text_of(operation['summary'])}.</p>"
    ]
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body <code>{_text_of(media_type)}</code></p>{_shown(content)}")
    for status, response in operation["responses"].items():
        if status == "200":
            for media_type, content in response["content"].items():
                parts.append(f"<p>200 <code>{_text_of(media_type)}</code></p>{_shown(content)}")
    refusals = [status for status in operation["responses"] if status != "200"]
    parts.append(f"<p>Otherwise {', '.join(refusals)}.</p></section>")
    return "".join(parts)


def _shown(content: dict[str, Any]) -> str:
    values = [content["example"]] if "example" in content else []
    values += [example["value"] for example in content.get("examples", {}).values()]
    return "".join(f"<pre>{_text_of(json.dumps(value, indent=1))}</pre>" for value in values)


def _text_of(text: str) -> str:
    return html.escape(text)
