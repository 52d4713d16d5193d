"""From the bytes of a scan to grey slices, and from masks back to files."""
