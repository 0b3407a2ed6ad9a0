"""The subcommands: a file each, with its ``Arguments`` as data and ``run`` as what it does."""
