"""The OpenAPI 3.1 description of the JSON API: the same facts as `apps.api`, as a document. Room: apps. Pure."""

from __future__ import annotations

from typing import Any, Final

_INTEGER: Final = {"type": "integer"}
_STRING: Final = {"type": "string"}
_REFUSALS: Final = {
    "401": "The token is missing or wrong.",
    "403": "A foreign Host or Origin.",
    "404": "There is no such run, step, key or feature in this trace; or the trace never stored it.",
    "422": "A parameter or the body cannot be read.",
}


def document() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Rewind",
            "version": "1",
            "description": "Recorded training runs, step by step. JSON has no NaN: NaN and the infinities are the "
            'strings "NaN", "Infinity" and "-Infinity".',
        },
        "security": [{"bearer": []}, {"token": []}],
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "token": {"type": "apiKey", "in": "query", "name": "token"},
            },
            "schemas": {
                "Refusal": {
                    "type": "object",
                    "required": ["error", "detail"],
                    "properties": {"error": _STRING, "detail": _STRING},
                },
                "Number": {"oneOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]},
            },
        },
        "paths": _paths(),
    }


def _paths() -> dict[str, Any]:
    step, layer = _query("step", _INTEGER, "Default: where /debug/step stands, at first the last step."), _layer()
    features = _query("features", _STRING, "0,5,12; default: the watched ones.")
    return {
        "/debug/openapi.json": {"get": _operation("This document.", [], run=False)},
        "/debug/state": {"get": _operation("The step's scalars, and what there is.", [step])},
        "/debug/batch": {
            "get": _operation(
                "The batch of a step.", [step, _query("images", {"type": "boolean"}, "With pixels.")], 413
            )
        },
        "/debug/step_data/keys": {"get": _operation("The keys captured at a step.", [step])},
        "/debug/step_data/{key}": {
            "get": _operation(
                "One capture. The key may have slashes: layer/name.",
                [{"name": "key", "in": "path", "required": True, "schema": _STRING}, step],
                413,
            )
        },
        "/debug/step_data/force_detail": {
            "get": _operation(
                "Weight, gradient delta, SOM delta and their sum for one feature.",
                [_query("feature", {"type": "integer", "minimum": 0}, "", required=True), step, layer],
            )
        },
        "/debug/cosine_matrix": {
            "get": _operation(
                "Pairwise cosines of a source: one of /debug/state's `sources`.",
                [_query("source", _STRING, "", required=True), step],
                413,
            )
        },
        "/debug/watch": {
            "get": _operation("The watched features.", []),
            "post": _operation("Watch other features.", [], body=_body("features", _features(), required=True)),
        },
        "/debug/trajectories": {
            "get": _operation(
                "A metric of features over all steps, and when they died.",
                [_query("metric", _STRING, "Default: win_rate."), features, layer, *_range()],
                413,
            )
        },
        "/debug/trajectories/clear": {"post": _operation("Watch nothing.", [])},
        "/debug/step": {
            "post": _operation(
                "Move through the record, or let a paused live run make steps.",
                [],
                409,
                body=_body("steps", _INTEGER, required=False),
            )
        },
        "/debug/pause": {"post": _operation("Pause a live run; 409 for a recorded one.", [], 409)},
        "/debug/resume": {"post": _operation("Resume a live run; 409 for a recorded one.", [], 409)},
    }


def _features() -> dict[str, Any]:
    return {"type": "array", "maxItems": 256, "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}}


def _range() -> list[dict[str, Any]]:
    return [_query("first", _INTEGER, "The first step shown."), _query("last", _INTEGER, "The last step shown.")]


def _layer() -> dict[str, Any]:
    return _query("layer", _STRING, "Default: the first layer with captures.")


def _query(name: str, schema: dict[str, Any], text: str, *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": text}


def _body(name: str, schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    needed = {"required": [name]} if required else {}
    content = {"application/json": {"schema": {"type": "object", "properties": {name: schema}, **needed}}}
    return {"required": required, "content": content}


def _operation(
    summary: str, parameters: list[dict[str, Any]], *more: int, body: dict[str, Any] | None = None, run: bool = True
) -> dict[str, Any]:
    own = [_query("run", _STRING, "The run's name; default: the first one.")] if run else []
    refusal = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    extra = {409: "Not with a run that is over, or past its end.", 413: "Too many numbers for JSON."}
    codes = {**_REFUSALS, **{str(code): extra[code] for code in more}}
    return {
        "summary": summary,
        "parameters": [*parameters, *own],
        **({"requestBody": body} if body else {}),
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": {"type": "object"}}}},
            **{code: {"description": text, "content": refusal} for code, text in codes.items()},
        },
    }
