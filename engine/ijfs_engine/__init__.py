"""ijfs_engine: the storage engine. Knows bytes, pages, chunks, trees and refs, and nothing above them."""
