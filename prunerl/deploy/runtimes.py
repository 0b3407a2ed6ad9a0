"""The ways in which one machine can take a policy's decisions, each as a function of one observation.

A function keeps its policy's memory itself, and allows every action. Libraries are imported only here and only when
their runtime is asked for; one that is not installed raises ``ImportError``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.program import OBSERVATION, Program

Decide = Callable[[Any], Any]
"""From one observation to one action, both as the environment has them."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What is decided about.

    Attributes:
        agent: Anything with a ``policy``.
        program: The same, lowered.
        raw: Observations as the environment gives them.
        packed: The same, each as one array.
        folder: For files that a runtime reads.
    """

    agent: Any
    program: Program
    raw: Sequence[Any]
    packed: Sequence[NDArray[Any]]
    folder: Path


class Unavailable(Exception):
    """A runtime that cannot take this policy's decisions; the message says why."""


def stable_baselines3(scene: Scene) -> tuple[Decide, Sequence[Any]]:
    """Call ``predict`` of the live model, after the normalisation that its user has to do."""
    from prunerl import heads

    if not hasattr(scene.agent, "model"):
        raise Unavailable("not an agent of Stable-Baselines3")
    normalizer = scene.agent.policy.normalizer
    if normalizer is not None and isinstance(scene.raw[0], dict):
        raise Unavailable("a dict of observations with statistics is normalised by the environment alone")
    model = scene.agent.model()
    masked = {"action_masks": _all(scene)} if scene.program.allowed else {}
    state: list[Any] = [None, np.ones(1, dtype=bool)]

    def decide(observation: Any) -> Any:
        seen = observation if normalizer is None else heads.normalize(normalizer, observation)
        action, state[0] = model.predict(seen, state[0], state[1], deterministic=True, **masked)
        state[1] = None if state[0] is None else np.zeros(1, dtype=bool)
        return action

    return decide, scene.raw


def pytorch(scene: Scene) -> tuple[Decide, Sequence[Any]]:
    """Call the network in PyTorch's inference mode, without what Stable-Baselines3 puts around it."""
    import torch

    from prunerl import heads

    policy = scene.agent.policy
    state = [heads.empty_memory(policy, 1)]
    allowed = _all(scene)

    def decide(observation: Any) -> Any:
        with torch.inference_mode():
            actions, state[0] = heads.step(policy, observation[None], state[0], allowed)
        return actions[0]

    return decide, scene.packed


def torchscript(scene: Scene) -> tuple[Decide, Sequence[Any]]:
    """Trace the whole policy, freeze it, and let TorchScript optimise it."""
    import warnings

    import torch

    from prunerl.deploy.torch.module import torch_module

    given = [torch.from_numpy(array) for array in _arguments(scene).values()]
    observation = torch.from_numpy(np.array(scene.packed[0])[None])
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of TorchScript's age, and that sizes are taken as constants
        traced = torch.jit.trace(torch_module(scene.program), (observation, *given), check_trace=False)  # type: ignore[no-untyped-call]
        frozen = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    masks, memory = given[: bool(scene.program.allowed)], [given[bool(scene.program.allowed) :]]

    def decide(observation: Any) -> Any:
        with torch.inference_mode():
            made = frozen(torch.from_numpy(observation[None]), *masks, *memory[0])
        actions = made[0] if isinstance(made, tuple) else made
        memory[0] = list(made[1:]) if isinstance(made, tuple) else []
        return actions.numpy()[0]

    return decide, scene.packed


def onnx_runtime(scene: Scene) -> tuple[Decide, Sequence[Any]]:
    """Run the ONNX file in ONNX Runtime on one thread."""
    import onnxruntime

    from prunerl.deploy.onnx.write import onnx_bytes

    options = onnxruntime.SessionOptions()
    # More threads than one make so little work slower.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_bytes(scene.program), options, providers=["CPUExecutionProvider"])
    given, names = _arguments(scene), list(scene.program.memory)

    def decide(observation: Any) -> Any:
        action, *following = session.run(None, {OBSERVATION: observation[None], **given})
        given.update(zip(names, following, strict=True))
        return action[0]

    return decide, scene.packed


def openvino(scene: Scene) -> tuple[Decide, Sequence[Any]]:
    """Compile the ONNX file with OpenVINO for latency on one thread; its tensors stay where they are, for speed."""
    import openvino as ov

    from prunerl.deploy.onnx.write import onnx_bytes

    if scene.program.memory or scene.program.allowed:
        raise Unavailable("not measured with a memory or with masked actions")
    path = scene.folder / "policy.onnx"
    path.write_bytes(onnx_bytes(scene.program))
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(str(path), "CPU", hints).create_infer_request()
    held = np.zeros((1, *scene.program.observation_shape), scene.packed[0].dtype)
    request.set_input_tensor(ov.Tensor(held, shared_memory=True))

    def decide(observation: Any) -> Any:
        held[0] = observation
        request.infer()
        return request.get_output_tensor().data[0].copy()

    return decide, scene.packed


def litert(scene: Scene) -> tuple[Decide, Sequence[Any]]:
    """Run the TFLite file in LiteRT on one thread."""
    from ai_edge_litert.interpreter import Interpreter

    from prunerl.deploy.tflite.write import tflite_bytes

    if scene.program.memory or scene.program.allowed:
        raise Unavailable("not measured with a memory or with masked actions")
    interpreter = Interpreter(model_content=tflite_bytes(scene.program), num_threads=1)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def decide(observation: Any) -> Any:
        interpreter.set_tensor(source["index"], observation[None].astype(source["dtype"], copy=False))
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])[0]

    return decide, scene.packed


def interpreted(scene: Scene) -> tuple[Decide, Sequence[Any]]:
    """Interpret the program in NumPy."""
    from prunerl.deploy.interpret import run

    memory: list[dict[str, Any] | None] = [None]

    def decide(observation: Any) -> Any:
        actions, memory[0] = run(scene.program, observation[None], memory[0])
        return actions[0]

    return decide, scene.packed


def compiled(scene: Scene) -> tuple[Decide, Sequence[Any]]:
    """Call the policy that this package compiles for this machine."""
    from prunerl.deploy.native import compile as compiled_policy

    policy = compiled_policy(scene.program)
    return policy, scene.packed


RUNTIMES: dict[str, Callable[[Scene], tuple[Decide, Sequence[Any]]]] = {
    "Stable-Baselines3 predict": stable_baselines3,
    "PyTorch, eager": pytorch,
    "TorchScript, frozen": torchscript,
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": openvino,
    "LiteRT": litert,
    "NumPy interpreter": interpreted,
    "prunerl.compile": compiled,
}
"""What is compared, by the name in the table."""


def _all(scene: Scene) -> NDArray[np.bool_] | None:
    """Allow every action, for a batch of one."""
    return np.ones((1, scene.program.allowed), dtype=bool) if scene.program.allowed else None


def _arguments(scene: Scene) -> dict[str, Any]:
    """Return what a program takes beside the observation at the start of an episode, by name, in its order."""
    program, mask = scene.program, _all(scene)
    memory = {name: np.zeros((1, *program.shapes[name]), dtype=np.float32) for name in program.memory}
    return {**({} if mask is None else {"allowed": mask}), **memory}
