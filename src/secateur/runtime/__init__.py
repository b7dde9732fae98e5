"""A pruned model that is really smaller and really faster: packed weights, kernels, what runs them."""
