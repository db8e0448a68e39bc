"""What is checked of tables beyond their contracts: statistical rules, freshness, quality of forecasts."""
