"""Ray with two nodes on this machine."""

from __future__ import annotations

from typing import Any

import pytest

from medlt.engine import EngineChoice, run_tasks

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]  # Ray warns of parts of itself


def test_what_a_killed_node_worked_on_is_done_by_the_others(tasks: Any) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = nodes.add_node(num_cpus=2)
        ray.init(nodes.address, log_to_driver=False)
        given = [("actor", i) for i in range(60)]
        done: list[tuple[str, int]] = []
        actors: set[int] = set()
        for task, (_, actor) in run_tasks(EngineChoice("ray", 3), tasks.make, (), given, tasks.lost, ahead=1):
            done.append(task)
            actors.add(actor)
            if len(actors) == 3 and node is not None:
                nodes.remove_node(node, allow_graceful=False)
                node = None
        assert node is None
        assert sorted(done) == sorted(given)
    finally:
        ray.shutdown()
        nodes.shutdown()
