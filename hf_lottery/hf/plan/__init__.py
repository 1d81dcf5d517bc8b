"""What a search will cost, before it begins: steps, disk, memory, seconds, and the cost of aligning what it finds."""

from .search import SearchPlan, plan_search

__all__ = ["SearchPlan", "plan_search"]
