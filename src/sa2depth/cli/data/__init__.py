"""`sa2depth data ...`: commands for data sets on disk, one file each; `app` lists them."""
