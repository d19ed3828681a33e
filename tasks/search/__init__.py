"""Elasticsearch: what the index must be, what it holds, and writing to it.

| module | what it does |
| --- | --- |
| `writing` | features into documents: which to skip, and the status of each item |
| `index` | what the stages ask of the index and write to it |
| `exact` | the nearest items by comparing with every feature |
| `queries` | what pages ask: coverage, items, the nearest ones |
| `mapping` | the fields we add, and what an index must be to take them |
| `document_fields` | where the shop's documents hold URL, category and name |
| `client` | the connection, and its errors in words |
"""
