"""All mutations: those of the library, then those of the application."""

from __future__ import annotations

from tests.mutations.application import APPLICATION
from tests.mutations.library import LIBRARY
from tests.mutations.mutation import Mutation

MUTATIONS: tuple[Mutation, ...] = (*LIBRARY, *APPLICATION)
