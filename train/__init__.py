"""The application: trains, evaluates and compares models with alignment attention."""

from train.devices.huge_pages import restart_with_huge_pages

restart_with_huge_pages()
