"""URLs to bytes.

| module | what it does |
| --- | --- |
| `downloads` | the loop: asks for what is next, takes in what has come |
| `hosts` | which URL is whose turn: a host's rate, pauses and circuit |
| `client` | the HTTP client, on libcurl |
| `answers` | what an answer says of a picture |
| `addresses` | which hosts and addresses pictures may come from |
"""
