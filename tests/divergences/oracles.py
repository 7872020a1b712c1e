"""The divergences of one head of one sample, literally, in NumPy float64."""

import numpy as np
from scipy.spatial.distance import cdist


def cosine_cost(query, key):
    query = query / np.linalg.norm(query, axis=-1, keepdims=True)
    key = key / np.linalg.norm(key, axis=-1, keepdims=True)
    return 1.0 - query @ key.T


def squared_euclidean_cost(query, key):
    return ((query[:, None] - key[None]) ** 2).sum(-1)


COSTS = {"cosine": cosine_cost, "squared_euclidean": squared_euclidean_cost}


def adversarial(query_logits, key_logits):
    query = 1.0 / (1.0 + np.exp(-query_logits))
    key = 1.0 / (1.0 + np.exp(-key_logits))
    return np.log(query).mean() + np.log(1.0 - key).mean()


def conditional_transport(
    query_features, key_features, query_navigation, key_navigation, rho=0.5, cost="cosine"
):
    """Equation 4 as a double loop over queries and keys."""
    costs = COSTS[cost](query_features, key_features)
    queries, keys = len(query_features), len(key_features)
    forward = backward = 0.0
    for i in range(queries):
        affinities = [np.exp(query_navigation[i] @ key_navigation[j]) for j in range(keys)]
        for j in range(keys):
            forward += affinities[j] / sum(affinities) * costs[i, j] / queries
    for j in range(keys):
        affinities = [np.exp(query_navigation[i] @ key_navigation[j]) for i in range(queries)]
        for i in range(queries):
            backward += affinities[i] / sum(affinities) * costs[i, j] / keys
    return rho * forward + (1.0 - rho) * backward


def optimal_transport(query, key, epsilon=0.1, cost="cosine"):
    """Sinkhorn, then Newton's method to the last digit; agrees with POT (`test_particulars`)."""
    costs = COSTS[cost](query, key)
    kernel = np.exp(-(costs - costs.min()) / epsilon)
    rows, columns = np.full(len(query), 1 / len(query)), np.full(len(key), 1 / len(key))
    right = np.ones(len(key))
    for _ in range(200):
        left = rows / (kernel @ right)
        right = columns / (left @ kernel)
    for _ in range(20):
        plan = left[:, None] * kernel * right
        missing = np.concatenate([rows - plan.sum(1), columns - plan.sum(0)])
        if np.abs(missing).sum() < 1e-14:
            break
        system = np.block([[np.diag(plan.sum(1)), plan], [plan.T, np.diag(plan.sum(0))]])
        step = np.linalg.lstsq(system, missing, rcond=None)[0]
        step *= min(1.0, 1.0 / np.abs(step).max())  # far from the solution, no leap
        left, right = left * np.exp(step[: len(rows)]), right * np.exp(step[len(rows) :])
    assert np.abs(missing).sum() < 1e-10
    return (plan * costs).sum()


def maximum_mean_discrepancy(query, key, bandwidth=1.0):
    def kernel(x, y):
        return np.exp(-squared_euclidean_cost(x, y) / (2 * bandwidth**2)).mean()

    return kernel(query, query) + kernel(key, key) - 2 * kernel(query, key)


def own_bandwidth(query, key):
    """Half of the mean squared distance of two draws, each a query or a key by the toss of a coin,
    is its square."""
    within = (cdist(x, x, "sqeuclidean").mean() for x in (query, key))
    mean = (sum(within) + 2 * cdist(query, key, "sqeuclidean").mean()) / 4
    return np.sqrt(mean / 2)


def largest_energy(query, key):
    return 2 * cdist(query, key).mean()


def energy_distance(query, key, largest=None):
    """As a share of its largest value, where none is given."""
    energy = 2 * cdist(query, key).mean() - cdist(query, query).mean() - cdist(key, key).mean()
    return energy / (largest_energy(query, key) if largest is None else largest)


def batched(oracle, arrays, query_mask=None, key_mask=None, **options):
    """Applies an oracle to each sample and head of `[B, N, H, ...]` arrays, padding cut away.

    `arrays` alternate between queries and keys.
    """
    batch, _, heads = arrays[0].shape[:3]
    masks = (query_mask, key_mask)
    result = np.zeros((batch, heads))
    for b in range(batch):
        for h in range(heads):
            parts = []
            for number, x in enumerate(arrays):
                mask = masks[number % 2]
                part = np.asarray(x[b, :, h], np.float64)
                parts.append(part if mask is None else part[np.asarray(mask[b])])
            if all(len(part) for part in parts):
                result[b, h] = oracle(*parts, **options)
    return result


def finite_difference(function, arrays, step=1e-5):
    """Central differences of a scalar function of float64 arrays, entry by entry."""
    gradients = []
    for number, x in enumerate(arrays):
        gradient = np.zeros(x.shape)
        for index in np.ndindex(x.shape):
            values = []
            for sign in (1, -1):
                moved = [a.astype(np.float64) for a in arrays]
                moved[number][index] += sign * step
                values.append(function(*moved))
            gradient[index] = (values[0] - values[1]) / (2 * step)
        gradients.append(gradient)
    return gradients
