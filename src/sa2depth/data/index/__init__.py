"""From the file layout of a data set to a list of frames; nothing below this folder imports torch."""
