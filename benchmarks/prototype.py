"""The prototype's way, to compare with: python -m benchmarks.prototype ELASTICSEARCH INDEX < items.

Picture by picture: one request to the image server, the SavedModel as TF-Hub loads it on a batch of one, one
update of one document. A line of the items is an id, a tab and a URL. The first pictures, at which TensorFlow
still optimises, are done before the clock starts; what the others took is printed as JSON.
"""

import json
import sys
import time

import numpy as np
import requests
from elasticsearch import Elasticsearch

from benchmarks.cpu import cpu_seconds
from tasks.inference.model import quiet_tensorflow
from tasks.settings import Settings

WARM_UP = 3


def main() -> None:
    url, index = sys.argv[1:]
    items = [line.rstrip("\n").split("\t") for line in sys.stdin]
    tf = quiet_tensorflow()
    import tensorflow_hub as hub

    module = hub.load(str(Settings.load().model_dir))
    with Elasticsearch(url) as client:
        for number, (item_id, img_url) in enumerate(items):
            if number == WARM_UP:
                started, cpu = time.monotonic(), cpu_seconds()
            image = tf.image.decode_jpeg(requests.get(img_url, timeout=10).content, channels=3)
            image = tf.image.resize_with_pad(image, 299, 299)
            # 0 to 255, by mistake; it costs the same.
            feature = np.squeeze(module(tf.expand_dims(image, 0)))
            client.update(index=index, id=item_id, doc={"imagenet_feature": feature.tolist()})
    seconds, cpu = time.monotonic() - started, cpu_seconds() - cpu
    print(json.dumps({"items": len(items) - WARM_UP, "seconds": seconds, "cpu": cpu}))


if __name__ == "__main__":
    main()
