"""What `wagma.validate` is made of: a trace indexed as evidence, and the checks of exchanges and of gradients."""
