"""What the runs do: plain Python, no Airflow import. A wing imports only wings below it (pyproject.toml).

| from the top down | what is there |
| --- | --- |
| `__main__` | the command: `python -m tasks` |
| `offline` | features in a file, and search in it, without any server |
| `serve/` | the inference process behind the HTTP API |
| `stages/` | plan, download, extract, index, summarise, and a whole run of them without Airflow |
| `housekeeping` | what old runs left on disk goes |
| `duplicates/` | items that show the same picture, in groups |
| `space/` | what is learnt from all features together: compact vectors, codes, categories |
| `search/` | Elasticsearch: what the index must be, holds and takes |
| `inference/` | the model and its graph |
| `shop/` | the shop's databases: its catalogue, our ledger of failures |
| `pictures/` | bytes to tensors |
| `fetching/` | URLs to bytes |
| `runs/` | a run on disk: request, plan, chunks, stage files, report |
| `settings`, `files`, `machine`, `progress`, `statuses`, `errors` | the ground |
"""
