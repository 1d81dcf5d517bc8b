"""The cost of a search before it begins: steps, disk, memory and seconds, and the cost of aligning two results."""

from .search import SearchPlan, plan_search

__all__ = ["SearchPlan", "plan_search"]
