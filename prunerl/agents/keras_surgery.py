"""Change a Keras model's configuration so that it says what its tensors are: narrower layers, or fewer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prunerl.agents.keras_builders import variables
from prunerl.agents.keras_config import parse
from prunerl.agents.keras_file import Contents
from prunerl.agents.keras_graph import Graph, Network, attribute
from prunerl.agents.keras_layers import Node
from prunerl.errors import LoadError, RemovalError
from prunerl.types import Tie

ELEMENTWISE = frozenset(
    "Activation ReLU LeakyReLU ELU Dropout AlphaDropout GaussianNoise GaussianDropout ActivityRegularization Identity "
    "Rescaling ops.Relu ops.Tanh ops.Sigmoid ops.Softplus".split()
)
"""Layers that compute each number of their output from the same number of their input."""


def shapes(graph: Graph, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each node's value, without the batch; nothing is computed.

    Raises:
        LoadError: The layers do not fit each other.
    """
    blank = {name: tensor.to("meta") for name, tensor in tensors.items()}
    return Network(graph, blank).eval().shapes(torch.empty((2, *graph.shape), device="meta"))


def removable(graph: Graph) -> tuple[str, ...]:
    """Return the Dense layers of a chain whose units only another Dense layer reads, through elementwise layers."""
    if not graph.is_chain:
        return ()
    last: str | None = None
    found = []
    for node in graph.nodes:
        if node.kind == "Dense":
            if last is not None:
                found.append(last)
            last = attribute(node.name)
        elif node.kind not in ELEMENTWISE or (node.kind == "Activation" and node.config.get("activation") == "softmax"):
            last = None
    return tuple(found)


def without(contents: Contents, tensors: Mapping[str, Tensor]) -> Contents:
    """Leave out the layers that have no kernel any more, with their activations.

    Raises:
        RemovalError: One of them cannot be left out.
    """
    graph = contents.graph
    gone = {n.name for n in graph.nodes if n.kind == "Dense" and f"{attribute(n.name)}.kernel" not in tensors}
    if not gone:
        return contents
    kept = {attribute(name) for name in gone} - set(removable(graph))
    if kept:
        raise RemovalError(
            f"Layers {sorted(kept)} cannot be left out of the Keras model: only hidden Dense layers of a plain chain "
            "can. Prune its units instead."
        )
    dropped: set[str] = set()
    following = False
    for node in graph.nodes:
        following = node.name in gone or (following and not variables(node))
        if following:
            dropped.add(node.name)
    config = json.loads(json.dumps(contents.config))
    body = config["config"]
    replaced = {node.name: str(node.inputs[0]) for node in graph.nodes if node.name in dropped}
    body["layers"] = [entry for entry in body["layers"] if entry["config"].get("name") not in dropped]
    for reference in _keras_tensors(body["layers"]):
        history = reference["keras_history"]
        while history[0] in replaced:
            history[0] = replaced[history[0]]
    return replace(contents, config=config, graph=parse(config))


def resized(contents: Contents, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the configuration with the widths of ``tensors``, not compiled, and else as it was."""
    config: dict[str, Any] = json.loads(json.dumps(contents.config))
    config.pop("compile_config", None)
    found = shapes(contents.graph, tensors)
    nodes = {node.name: node for node in contents.graph.nodes}
    entries = config["config"]["layers"]
    for entry in entries:
        node = nodes.get(entry["config"].get("name"))
        if node is not None:
            _resize(entry, node, found, tensors)
    for reference in _keras_tensors(entries):
        reference["shape"] = [None, *found[reference["keras_history"][0]]]
    return config


def ties(graph: Graph, policy: Graph) -> tuple[Tie, ...]:
    """Return what must follow the policy's units in the layers that only other outputs need.

    Raises:
        LoadError: Such a layer reads units in a way that cannot be followed.
    """
    nodes = {node.name: node for node in graph.nodes}
    own = {node.name for node in policy.nodes}
    readers = {_origin(nodes, node.inputs[0]): node for node in policy.nodes if node.kind == "Dense"}
    result = []
    for node in graph.nodes:
        origins = {_origin(nodes, i) for i in node.inputs if isinstance(i, str)} & own
        if node.name in own or not origins or node.kind in ELEMENTWISE:
            continue
        origin = origins.pop()
        if node.kind != "Dense" or origin not in readers:
            raise LoadError(
                f"Layer {node.name!r} reads layer {origin!r}, which the policy reads in another way, so it could not "
                "follow when units are removed. Save a model that returns the policy's output alone."
            )
        source, target = attribute(readers[origin].name), attribute(node.name)
        result.append(Tie(f"{source}.kernel", 1, f"{target}.kernel", 1, copies=False))
    return tuple(result)


def _origin(nodes: Mapping[str, Node], name: str | float) -> str:
    """Return the node whose units a value holds: elementwise layers hand on those of their input."""
    current = str(name)
    while current in nodes and nodes[current].kind in ELEMENTWISE:
        current = str(nodes[current].inputs[0])
    return current


def _resize(
    entry: dict[str, Any], node: Node, found: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
) -> None:
    width = {"Dense": "units", "Conv1D": "filters", "Conv2D": "filters"}.get(node.kind)
    if width is not None:
        entry["config"][width] = tensors[f"{attribute(node.name)}.kernel"].shape[0]
    if node.kind == "Reshape" and -1 not in node.config["target_shape"]:
        entry["config"]["target_shape"] = list(found[node.name])
    build = entry.get("build_config")
    if isinstance(build, dict) and "input_shape" in build:
        inputs = [[None, *found[i]] for i in node.inputs if isinstance(i, str)]
        build["input_shape"] = inputs[0] if len(inputs) == 1 else inputs


def _keras_tensors(value: Any) -> Iterator[dict[str, Any]]:
    """Find every reference to a value within the layers' calls."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield value["config"]
        else:
            for part in value.values():
                yield from _keras_tensors(part)
    elif isinstance(value, list):
        for part in value:
            yield from _keras_tensors(part)
