"""The shop's databases.

| module | what it does |
| --- | --- |
| `ledger` | the items without a feature, and when each is tried again |
| `catalogue` | the items as the shop has them, read-only |
| `database` | statements of sql/ on SQLite, PostgreSQL, MariaDB and MySQL |
| `connections` | where the catalogue, Elasticsearch and the ledger are |
"""
