"""One module per family of image file formats. `segpipe.data.image` chooses among them and is what others call."""
