"""Weight files: read their headers, judge whether they fit together, mend their metadata.

`reader` trusts nothing in a file, `checks` judges what it read, `mend` writes a corrected copy.
"""
