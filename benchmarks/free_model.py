"""A model that costs nothing, to see what everything around a model costs, and what would feed a fast one."""

from pathlib import Path
from typing import Any

import numpy as np

from tasks.inference.model import DIMENSIONS, quiet_tensorflow
from tasks.pictures.picture import SIDE


def save(folder: Path) -> None:
    """Write a SavedModel whose feature is the middle pixel times a kernel, plus a constant: never zeros."""
    tf = quiet_tensorflow()
    random = np.random.default_rng(11)

    class Free(tf.Module):
        variables: Any = ()

        @tf.function(input_signature=[tf.TensorSpec([None, SIDE, SIDE, 3], tf.float32)])
        def __call__(self, images: Any) -> Any:
            kernel, constant = self.variables
            return images[:, SIDE // 2, SIDE // 2] @ kernel + constant

    model = Free()
    model.variables = [
        tf.Variable(random.random((3, DIMENSIONS), np.float32)),
        tf.Variable(random.random(DIMENSIONS, np.float32)),
    ]
    tf.saved_model.save(model, str(folder))
