"""Sources of images, one module for each family of formats; `asrcl.images.data.load_images` imports the one that is asked for."""
