"""The inference process behind the HTTP API, `python -m tasks.serve`, and the client that asks it.

| module | what it does |
| --- | --- |
| `__main__` | the command: the socket, the memory limit, the server |
| `api` | the routes on the socket, and the schema that describes them |
| `features` | pictures to features, by the fetcher, decoders and model of a run |
| `photos` | search by photo: its category, and the items that look like it |
| `saving` | features into an index, by a run's own rules |
| `batches` | lets requests that come together share work |
| `concurrency` | how many requests at once, and for how long |
| `answers` | which HTTP code a status has, and errors in one form |
| `client` | asks it over its socket; imports no TensorFlow |
"""
