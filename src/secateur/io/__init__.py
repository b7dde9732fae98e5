"""Everything that touches files: checkpoints, tensors, manifests, calibration text, embedded data, the hub."""
