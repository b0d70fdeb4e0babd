"""One module for each queue. None imports its queue before `open`: the harness has none of them."""
