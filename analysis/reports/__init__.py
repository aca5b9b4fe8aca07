"""Reports: questions to the lake, answered in SQL by DuckDB. One file a report; `report.py` asks any of them."""
