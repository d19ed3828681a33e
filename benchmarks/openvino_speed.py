"""The same model in OpenVINO, in an environment of its own: python openvino_speed.py MODEL TENSORS.

MODEL is the SavedModel's folder, TENSORS an .npy file of [n, 299, 299, 3]. Each line of standard input is a
number of streams and a batch size; the answer is a line of JSON: seconds and CPU seconds for all tensors, in
bfloat16, and the first feature.
"""

import json
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import openvino


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def prepared(folder: str, streams: int, size: int) -> Callable[[np.ndarray], np.ndarray]:
    core = openvino.Core()
    model = core.read_model(folder)
    model.reshape([size, 299, 299, 3])
    options = {"INFERENCE_PRECISION_HINT": "bf16", "NUM_STREAMS": streams}
    requests = openvino.AsyncInferQueue(core.compile_model(model, "CPU", options), streams)

    def compute(tensors: np.ndarray) -> np.ndarray:
        features = np.empty((len(tensors), 2048), np.float32)

        def done(request: openvino.InferRequest, start: int) -> None:
            features[start : start + size] = request.get_output_tensor().data

        requests.set_callback(done)
        for start in range(0, len(tensors), size):
            requests.start_async([tensors[start : start + size]], start)
        requests.wait_all()
        return features

    return compute


def main() -> None:
    folder, tensors = sys.argv[1], np.load(sys.argv[2])
    ways: dict[tuple[int, int], Callable[[np.ndarray], np.ndarray]] = {}
    for line in sys.stdin:
        streams, size = map(int, line.split())
        if (streams, size) not in ways:
            ways[streams, size] = prepared(folder, streams, size)
            ways[streams, size](tensors[: streams * size])
        started, cpu = time.monotonic(), cpu_seconds()
        features = ways[streams, size](tensors)
        took = {"seconds": time.monotonic() - started, "cpu": cpu_seconds() - cpu}
        print(json.dumps(took | {"feature": features[0].tolist()}), flush=True)


if __name__ == "__main__":
    main()
