"""Files that are whole or absent: records, tensors, the cache, and what ships."""
