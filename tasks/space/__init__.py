"""The feature space: what is learnt from all features of the shop together.

| module | what it does |
| --- | --- |
| `snapshot` | the features of many items in one HDF5 file, written and read in a stream |
| `vectors` | compact vectors and 128-bit codes of features |
| `categories` | the category of a picture, with its probability |
| `evaluation` | how good a space is, on items that it was not learnt from |
| `published` | the space in one file with its digest, and which one is published |
| `fit` | from a snapshot to a published space |
| `exact` | the nearest of a snapshot, by all features or by codes first |
"""
