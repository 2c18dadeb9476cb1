"""What an on-call engineer sees: objectives, rules, alerts and dashboards, as code."""
