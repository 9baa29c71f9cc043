"""The published runs of MultiPruner, BlockPruner and ShortGPT: what they say of counts, against
what we count.
"""
