"""`sa2depth data ...`: data sets on disk. One file a command; `app` lists them."""
