"""Reading and finding files: photographs, depth maps, tables, folders."""
