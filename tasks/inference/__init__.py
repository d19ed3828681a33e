"""The network that turns tensors into features.

| module | what it does |
| --- | --- |
| `model` | loads the SavedModel, names its version, computes |
| `fingerprint` | what it makes of a fixed picture, to tell it from others with the same weights |
| `graph` | the frozen graph it computes with, kept on disk |
"""
