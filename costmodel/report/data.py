"""Answers as plain data with stable keys, for JSON: units in the keys, SI base units in the values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from costmodel import __version__
from costmodel.advice import Advice
from costmodel.hardware.cluster import Cluster
from costmodel.hardware.provenance import kinds
from costmodel.plan import Plan
from costmodel.rates import usable_memory
from costmodel.report import frameworks, words
from costmodel.report.answer import Answer
from costmodel.subject import Subject
from costmodel.workload import Workload


def dump(what: str, content: Mapping[str, Any]) -> str:
    """A JSON document; ``schema`` changes when a key is taken away or changes its meaning."""
    document = {"schema": f"costmodel.{what}/1", "costmodel_version": __version__} | dict(content)
    return json.dumps(document, indent=2, allow_nan=False)


def answers_as_json(answers: Sequence[Answer]) -> str:
    """The document of ``costmodel plan``."""
    ranking = answers[0].ranking
    content = {
        "subject": subject(ranking.subject),
        "cluster": cluster(ranking.cluster),
        "answers": [_answer(answer) for answer in answers],
    }
    return dump("plan", content)


def subject(asked: Subject) -> dict[str, Any]:
    """What is run."""
    layers = [
        {"mixer": layer.mixer.name, "count": layer.count, "sizes": dict(layer.sizes), "window": layer.window}
        for layer in asked.layers
    ]
    return {"name": asked.name, "width": asked.width, "vocabulary": asked.vocabulary, "layers": layers}


def cluster(asked: Cluster) -> dict[str, Any]:
    """What it is run on, and where its numbers come from."""
    profile = asked.profile
    return {
        "profile": profile.name,
        "title": profile.title,
        "devices": asked.devices,
        "usable_bytes_per_device": usable_memory(asked),
        "calibrated": profile.calibrated,
        "provenance": kinds(profile),
    }


def workload(asked: Workload) -> dict[str, Any]:
    """One step."""
    return {
        "pass": asked.phase,
        "length_tokens": asked.length,
        "cached_tokens": asked.cached,
        "batch_sequences": asked.batch,
        "causal": asked.causal,
        "documents_tokens": list(asked.documents),
        "dtype": asked.dtype,
        "gradient": asked.gradient,
        "cache_bytes_per_element": asked.cache_width,
        "whole_logits": asked.whole_logits,
    }


def arrangement(found: Plan) -> dict[str, Any]:
    """The strategy and the kernel of each kind of layer, in the order of the subject's layers."""
    ways = found.arrangement.ways
    return {"strategies": [way.strategy.name for way in ways], "kernels": [way.kernel for way in ways]}


def plan(found: Plan, asked: Workload, capacity: float) -> dict[str, Any]:
    """One plan and its cost on the busiest rank."""
    tokens = asked.batch * (1 if asked.phase == "decode" else asked.length)
    return arrangement(found) | {
        "mesh": dict(found.mesh),
        "context_inside_ulysses": found.context_inside,
        "recompute": found.recompute,
        "sharing": found.sharing.value,
        "padded_length_tokens": found.length,
        "busiest_over_mean_rank_seconds": found.imbalance,
        "fits": found.bytes <= capacity,
        "seconds": found.seconds,
        "seconds_favourable": found.fastest,
        "seconds_unfavourable": found.slowest,
        "extrapolated": dict(found.extrapolated),
        "tokens_per_second": tokens / found.seconds,
        "compute_seconds": found.compute,
        "communication_seconds": found.communication,
        "exposed_communication_seconds": found.exposed,
        "bottleneck": found.bottleneck,
        "busy_seconds": dict(found.breakdown),
        "bytes": found.bytes,
        "bytes_by_kind": dict(found.memory),
        "missing_bytes": max(0.0, found.bytes - capacity),
        "wire_bytes": dict(found.wire),
        "messages": dict(found.messages),
    }


def _answer(answer: Answer) -> dict[str, Any]:
    ranking, capacity = answer.ranking, answer.ranking.capacity
    asked = ranking.workload
    others = [
        plan(other, asked, capacity) | {"why_not": words.why(other, answer.best, capacity)}
        for other in answer.others[: answer.top]
    ]
    return workload(asked) | {
        "fits": answer.best is not None,
        "best": plan(answer.best, asked, capacity) if answer.best else None,
        "frameworks": frameworks.options(answer.best) if answer.best else {},
        "longest_tokens_in_best": answer.longest[0] if answer.best else None,
        "longest_tokens_in_any": answer.longest[1],
        "others": others,
        "not_applicable": {str(way): list(reasons) for way, reasons in ranking.refused.items()},
        "advice": _advice(answer.advice, answer) if answer.advice else None,
        "plans_timed": len(ranking.places),
        "plans_that_fit": len(ranking.order),
        "search_seconds": answer.took,
    }


def _advice(advice: Advice, answer: Answer) -> dict[str, Any]:
    asked, capacity = answer.ranking.workload, answer.ranking.capacity
    return {
        "nearest": plan(advice.nearest, asked, capacity),
        "missing_bytes": advice.missing,
        "longest_tokens": advice.longest,
        "longest_plan": arrangement(advice.longest_plan) | {"mesh": dict(advice.longest_plan.mesh)},
        "smallest_cluster_devices": advice.devices,
        "changes": [
            {
                "what": change.what,
                "fits": change.fits,
                "bytes": change.bytes if math.isfinite(change.bytes) else None,
                "note": change.note,
            }
            for change in advice.changes
        ],
    }
