"""From radiology reports to labels: rule files, reports, the labeller, the table of labels and its evidence."""
