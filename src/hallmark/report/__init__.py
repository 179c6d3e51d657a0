"""From result rows to everything a person reads: tables, figures, the report, the page, claims against findings."""
