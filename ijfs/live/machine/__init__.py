"""What the place that ijfs runs in allows, found out by trying: for `ijfs doctor`."""
