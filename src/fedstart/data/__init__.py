"""Data: where examples come from, how they are shared out over clients, and the tasks made of them.

sources, tables, cache, digits, synthetic: from a name to `Examples`. federation: `Examples` and `Federation`.
partitions: who owns what. tasks: federations for pre-training and for downstream tasks.
"""
