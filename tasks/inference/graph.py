"""The network as one graph whose weights are constants: made from a SavedModel once, kept, then run.

A kept graph loads faster than the SavedModel (docs/profile.md), and TensorFlow optimises it further than one
that reads variables: scale and offset of a batch normalisation become part of the convolution before it.
"""

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ServiceUnavailableError
from tasks.files import atomic_write

log = logging.getLogger(__name__)

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From pictures [n, 299, 299, 3] to features [n, 2048]."""

_PICTURES = "pictures"
_FEATURES = "features"


def frozen(function: Any) -> bytes:
    """The graph of a concrete function of one input and one output, its variables as constants."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    constant = convert_variables_to_constants_v2(function)
    (given,), (result,) = constant.inputs, constant.outputs
    with tf.Graph().as_default() as graph:
        pictures = tf.compat.v1.placeholder(given.dtype, given.shape, name=_PICTURES)
        (features,) = tf.import_graph_def(
            constant.graph.as_graph_def(),
            input_map={given.name: pictures},
            return_elements=[result.name],
            name="network",
        )
        tf.identity(features, name=_FEATURES)
    content: bytes = _folded(graph).SerializeToString()
    return content


def _folded(graph: Any) -> Any:
    """The graph with all that depends on constants alone computed, which would take seconds at each load."""
    import tensorflow as tf
    from tensorflow.python.grappler import tf_optimizer

    described = tf.compat.v1.MetaGraphDef(graph_def=graph.as_graph_def())
    described.collection_def["train_op"].node_list.value.append(_FEATURES)
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1
    config.graph_options.rewrite_options.optimizers.extend(["constfold", "dependency"])
    return tf_optimizer.OptimizeGraph(config, described)


def kept(path: Path, made_from: str, make: Callable[[], bytes]) -> bytes:
    """The graph kept at `path`, or the one that `make` gives, which is then kept there if the folder lets us.

    What it was made from is under the checksum too, so that a graph that is damaged, or was made from
    something else, is made again.
    """
    with suppress(OSError):
        content = path.read_bytes()
        graph = content[hashlib.sha256().digest_size :]
        if content.startswith(_checksum(made_from, graph)):
            return graph
    graph = make()
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(_checksum(made_from, graph) + graph)
    except ServiceUnavailableError as error:
        log.warning("Each process has to make the model ready for itself, which takes seconds: %s", error)
    return graph


def network(graph: bytes, *, bfloat16: bool, streams: int, threads: int) -> Network:
    """The graph, ready to compute on this machine: in bfloat16 where that is asked for, else in float32.

    The first call optimises it; two first calls at once would do so twice.

    Args:
        graph: as `frozen` gives it.
        bfloat16: only where `multiplies_bfloat16`.
        streams: how many batches will be computed at once.
        threads: the CPU threads of each of them.
    """
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto()
    config.use_per_session_threads = True
    config.inter_op_parallelism_threads = streams
    config.intra_op_parallelism_threads = threads
    # Without it TensorFlow takes the whole GPU.
    config.gpu_options.allow_growth = True
    rewriting = config.graph_options.rewrite_options
    # It moves activations behind the concatenation of branches, out of the convolutions they can be part of.
    rewriting.arithmetic_optimization = rewriting.OFF
    # It finds nothing here, and copies the weights several times while it looks.
    rewriting.memory_optimization = rewriting.NO_MEM_OPT
    if bfloat16:
        rewriting.auto_mixed_precision_onednn_bfloat16 = rewriting.ON
    definition = tf.compat.v1.GraphDef.FromString(graph)
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(definition, name="")
    session = tf.compat.v1.Session(graph=imported, config=config)
    computed: Network = session.make_callable(f"{_FEATURES}:0", feed_list=[f"{_PICTURES}:0"])
    return computed


def _checksum(made_from: str, graph: bytes) -> bytes:
    digest = hashlib.sha256(made_from.encode() + b"\n")
    digest.update(graph)
    return digest.digest()
