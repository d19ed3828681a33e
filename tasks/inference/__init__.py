"""The network that turns tensors into features.

| module | what it does |
| --- | --- |
| `model` | loads the SavedModel, names its version, computes |
| `graph` | the frozen graph it computes with, kept on disk |
"""
