"""Ready-made: chains and partitions of the transformations, without arithmetic."""

__all__: list[str] = []
