"""`sa2depth data ...`: data sets on disk. A file for each command; `app` lists them."""
