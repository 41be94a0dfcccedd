"""One inference engine for every accelerator."""
