"""Near-duplicates: the groups of items that show the same picture, perhaps recompressed, resized or cropped.

| module | what it does |
| --- | --- |
| `find` | from the features in the index to the documents' groups |
| `known` | what is known of the pictures that were compared before |
| `candidates` | pairs of pictures whose codes are near each other |
| `second_looks` | fetches the pictures that are in doubt |
| `looks` | whether two pictures look the same |
| `leading` | which group a picture is in |
| `writing` | writes the groups into the documents |
"""
