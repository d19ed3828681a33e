"""URLs to bytes.

| module | what it does |
| --- | --- |
| `hosts` | which URL is whose turn: a host's rate, pauses and failures |
| `fetch` | fetches one URL, redirects included |
| `http1` | the HTTP client |
| `addresses` | which hosts and addresses pictures may come from |
"""
