"""The learner: models, token log-probs, losses, batches, optimiser. Knows no method and samples nothing."""
