"""From text to P: covariances, null spaces, and the guard that keeps writes inside them."""
