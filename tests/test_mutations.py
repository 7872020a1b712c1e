"""The list of mutations is about the code as it is; `python -m tests.mutations` tries them out."""

from tests.mutations.catalogue import MUTATIONS
from tests.mutations.mutation import problems


def test_every_mutation_can_be_made():
    assert not problems(MUTATIONS)
