"""The web page at `/`: static files, what they have to know of the model, and drawings to try it on.

The page loads nothing from elsewhere and runs no inline script or style; `HEADERS` hold the browser to that. The files
themselves are open to everybody; what they say of the model and ask it needs the API key, as with any client.
"""

from __future__ import annotations

import functools
import io
from importlib import resources

from rayml.clothing import CLASSES
from serving.limits import RequestLimits
from serving.protocols.base import Answer, ModelFacts, dump

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # A page of one version of the server must not meet the script of another.
    "cache-control": "no-cache",
}
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/web/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/web/style.css": ("style.css", "text/css; charset=utf-8"),
    "/web/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path -> file and content type."""
EXAMPLES = {f"/web/examples/{label}.jpg": label for label in CLASSES}
"""Path -> class of the drawing."""
ABOUT = "/web/about"

_EXAMPLE_PX = 192
_EXAMPLE_SEED = 7  # Another sample than the one that is trained on.
_QUALITY = 88


@functools.cache
def static(path: str) -> Answer:
    """One of `FILES`."""
    name, content_type = FILES[path]
    return Answer((resources.files("serving") / "web" / name).read_bytes(), 200, HEADERS, content_type)


@functools.cache
def example(path: str) -> Answer:
    """One of `EXAMPLES`: drawn when it is first asked for, which takes some 50 ms."""
    from rayml.sample import draw, sample_seed  # And with it what Pillow needs for drawing, 2 MB.

    encoded = io.BytesIO()
    draw(EXAMPLES[path], sample_seed(_EXAMPLE_SEED, "train", 0), _EXAMPLE_PX).save(encoded, "JPEG", quality=_QUALITY)
    return Answer(encoded.getvalue(), 200, HEADERS, "image/jpeg")


def about(model: ModelFacts, limits: RequestLimits) -> Answer:
    """What the page has to know: the model, its classes, what it may be sent, and which drawings suit it."""
    known = set(model.classes)
    return Answer(
        dump(
            {
                "model": model.identity.to_dict(),
                "classes": list(model.classes),
                "examples": [label for label in CLASSES if label in known],
                "limits": {"max_image_bytes": limits.max_image_bytes, "max_pixels": limits.max_pixels},
            }
        ),
        headers=HEADERS,
    )
