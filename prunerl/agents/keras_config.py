"""Read a Keras model's configuration as a graph; what has no counterpart is refused by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prunerl.agents import keras_builders as builders
from prunerl.agents import keras_layers as layers
from prunerl.agents.keras_graph import Graph, attribute
from prunerl.agents.keras_layers import Node
from prunerl.errors import LoadError


def parse(config: Mapping[str, Any]) -> Graph:
    """Turn the configuration of a Sequential or Functional model into a graph.

    Raises:
        LoadError: It is another kind of model, or holds something that has no counterpart.
    """
    kind = str(config.get("class_name"))
    if kind not in ("Sequential", "Functional"):
        raise LoadError(
            f"The model is a {kind[:80]!r}; Sequential and Functional models are supported. Build the policy as one, "
            "copy the weights over with set_weights, and save it again."
        )
    body = config["config"]
    entries = body["layers"]
    graph = _sequential(body, entries) if kind == "Sequential" else _functional(body, entries)
    for node in graph.nodes:
        builders.check(node)
    names = Counter([attribute(graph.input), *(attribute(node.name) for node in graph.nodes)])
    name, times = names.most_common(1)[0]
    if times > 1:
        raise LoadError(f"{times} layers are called {name!r}. Give each layer its own name.")
    return graph


def _sequential(body: Mapping[str, Any], entries: Sequence[Any]) -> Graph:
    first = entries[0] if entries else {}
    shape = body.get("build_input_shape")
    name = "input"
    if _kind(first) == "InputLayer":
        shape, name, entries = first["config"]["batch_shape"], str(first["config"]["name"]), entries[1:]
    if not entries or shape is None:
        raise LoadError("The model has no layers or was never built. Give it an Input and save it again.")
    nodes = []
    before = name
    for entry in entries:
        node = Node(str(entry["config"]["name"]), _kind(entry), _checked(entry), (before,))
        nodes.append(node)
        before = node.name
    return Graph(name, _observation(shape), tuple(nodes), (before,))


def _functional(body: Mapping[str, Any], entries: Sequence[Any]) -> Graph:
    inputs, outputs = _references(body["input_layers"]), _references(body["output_layers"])
    if len(inputs) != 1:
        raise LoadError(f"The model has {len(inputs)} inputs; a policy takes the observation alone. Join them first.")
    shape: Any = None
    nodes: list[Node] = []
    known = set(inputs)
    for entry in entries:
        name = str(entry["name"])
        if _kind(entry) == "InputLayer":
            shape = entry["config"]["batch_shape"] if name == inputs[0] else shape
            continue
        calls = entry["inbound_nodes"]
        node = Node(name, _kind(entry), _checked(entry), ())
        if len(calls) != 1:
            raise layers.refusal(node, f"is called {len(calls)} times")
        node = replace(node, inputs=tuple(_arguments(node, calls[0])))
        if not {i for i in node.inputs if isinstance(i, str)} <= known:
            raise layers.refusal(node, "reads what is computed after it")
        known.add(name)
        nodes.append(node)
    if shape is None or not outputs or not set(outputs) <= known:
        raise LoadError("The model's inputs or outputs are not among its layers. Save it again.")
    return Graph(inputs[0], _observation(shape), tuple(nodes), tuple(outputs))


def _arguments(node: Node, call: Any) -> Iterator[str | float]:
    if not isinstance(call, dict):
        raise LoadError("The model was saved by Keras 2. Load it there or in Keras 3, and save it with Keras 3.")
    if any(value not in (None, False) for value in (call.get("kwargs") or {}).values()):
        raise layers.refusal(node, f"is called with keyword arguments {sorted(call['kwargs'])}")
    for argument in call["args"]:
        for part in argument if isinstance(argument, list) else [argument]:
            if isinstance(part, int | float) and not isinstance(part, bool):
                yield float(part)
            elif isinstance(part, dict) and part.get("class_name") == "__keras_tensor__":
                yield str(part["config"]["keras_history"][0])
            elif part is not None:
                raise layers.refusal(node, f"is called with {str(part)[:80]}")


def _references(value: Any) -> list[str]:
    """Return the layers that ``input_layers`` or ``output_layers`` name: one reference or a list of them."""
    if isinstance(value, dict):
        value = list(value.values())
    if value and isinstance(value[0], str):
        value = [value]
    return [str(reference[0]) for reference in value]


def _observation(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or any(type(n) is not int or n < 1 for n in shape[1:]) or len(shape) < 2:
        raise LoadError(f"The model's input has the shape {str(shape)[:80]}; all but the batch must be known.")
    return tuple(shape[1:])


def _kind(entry: Any) -> str:
    """Return the class of an entry: of Keras' own layers by name, other classes with their module."""
    module, name = str(entry.get("module")), str(entry.get("class_name"))
    if module.startswith("keras.src.ops."):
        return f"ops.{name}"
    own = module == "keras.layers" or module.startswith("keras.src.layers.")
    return name if own else f"{module}.{name}"


def _checked(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an entry's configuration, refusing what changes how any layer computes."""
    config: Mapping[str, Any] = entry["config"]
    node = Node(str(config["name"]), _kind(entry), config, ())
    policy = config.get("dtype")
    dtype = policy.get("config", {}).get("name") if isinstance(policy, dict) else policy
    if dtype not in (None, "float32"):
        raise layers.refusal(node, f"computes in {str(dtype)[:80]}, not in float32")
    for key in ("quantization_config", "lora_rank"):
        if config.get(key):
            raise layers.refusal(node, f"uses {key}")
    return config
