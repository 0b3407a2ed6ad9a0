"""From a network's graph to the operations of a program."""
