"""The data sets by name, as configurations call them: one file a data set, each returns a source."""
