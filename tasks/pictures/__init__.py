"""Bytes to tensors.

| module | what it does |
| --- | --- |
| `decoders` | a pool of decoder processes, each of which a hostile picture may take with it |
| `decoder_process` | one of them |
| `confinement` | what the kernel leaves it: to read pictures, write answers and use memory |
| `picture` | decodes one picture and fits it into the network's square |
| `containers` | what of a file makes its pixels, and what only stands beside them |
"""
