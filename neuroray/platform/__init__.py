"""From stored scans to evidence: data, models, training, evaluation, explanation."""
