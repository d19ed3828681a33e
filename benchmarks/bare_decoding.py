"""Bare Pillow and our resize in a loop: python -m benchmarks.bare_decoding FOLDER.

It prints pictures a CPU second, for the JPEG files anywhere below FOLDER.
"""

import sys
import time
from pathlib import Path

from benchmarks.photo_server import photos_in
from tasks.pictures.picture import decode, to_tensor
from tasks.settings import Settings


def main() -> None:
    contents = photos_in(Path(sys.argv[1]))
    most_pixels = Settings.load().max_image_pixels
    tensor = to_tensor(decode(contents[0], most_pixels))
    cpu = time.process_time()
    for content in contents:
        to_tensor(decode(content, most_pixels), tensor)
    print(len(contents) / (time.process_time() - cpu))


if __name__ == "__main__":
    main()
