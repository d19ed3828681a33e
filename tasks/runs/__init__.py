"""A run on disk.

| module | what it does |
| --- | --- |
| `reports` | `report.json`: reading them, and what recent ones let us expect |
| `run` | what was asked for, the plan, its chunks, and where each stage's file lies |
| `packs` | the stage files: Parquet, whole or not there |
| `category_names` | names of the categories, as the last plan found them |
| `labels` | names for people |
"""
