"""The stages of a run, and the whole run of them without Airflow.

| module | what it does |
| --- | --- |
| `pipeline` | all stages one after the other, chunks overlapping |
| `plan` | reads the catalogue, leaves out what is current, cuts the rest into chunks |
| `download` | fetches a chunk's pictures |
| `extract` | computes their features |
| `index` | writes them into the documents |
| `summarise` | counts what became of every item, writes report and ledger |
| `compact` | writes the published space's compact vectors into all documents |
| `prefetch` | works in threads, ahead or on several things at once |
| `clock` | what the time of a stage goes into |
"""
