"""An experiment runner for specialising causal language models."""
