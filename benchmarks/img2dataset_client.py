"""Has img2dataset fetch a list of URLs, doing as little else as its options allow, and tells how it went.

    python img2dataset_client.py URLS THREADS FOLDER

It runs in img2dataset's own environment, so it imports nothing of ours. The pictures are kept as they come:
not decoded, not hashed, without EXIF, in one Parquet file.
"""

import json
import resource
import sys
from pathlib import Path

from img2dataset import download


def main() -> None:
    """The command; its last line is JSON."""
    urls, threads, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    download(
        url_list=urls,
        output_folder=str(folder),
        output_format="parquet",
        processes_count=1,
        thread_count=threads,
        number_sample_per_shard=100_000,
        resize_mode="no",
        disable_all_reencoding=True,
        extract_exif=False,
        compute_hash=None,
    )
    statistics = json.loads((folder / "00000_stats.json").read_text())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        json.dumps(
            {
                "pictures": statistics["successes"],
                "seconds": statistics["duration"],
                "cpu_seconds": used.ru_utime + used.ru_stime,
            }
        )
    )


if __name__ == "__main__":  # its worker process imports this file
    main()
