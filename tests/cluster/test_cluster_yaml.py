"""ray_cluster.yaml, without a cloud: Ray's own schema, EC2's own model, and `ray up` on a mock of it."""

from __future__ import annotations

import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
TOKEN_FILE = "/home/ray/.neuroray/cluster/auth_token"


@pytest.fixture
def written() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


@pytest.fixture
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    return prepare_config(written)


def test_ray_accepts_it(prepared: dict[str, Any]) -> None:
    validate_config(prepared)


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("available_node_types", "gpu_spot", "resources", "GPU"), 0.5, jsonschema.ValidationError),
        (("available_node_types", "gpu_spot", "spot_first"), True, jsonschema.ValidationError),
        (("available_node_types", "gpu_spot", "min_workers"), 21, ValueError),
        (("head_node_type",), "chief", ValueError),
    ],
)
def test_ray_would_refuse_a_mistake(
    prepared: dict[str, Any], path: tuple[str, ...], value: object, fault: type[Exception]
) -> None:
    broken = copy.deepcopy(prepared)
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(fault):
        validate_config(broken)


def test_ec2_accepts_every_node(written: dict[str, Any]) -> None:
    # Ray's schema does not look into node_config. botocore knows the request as EC2 takes it, and its instance types.
    service = botocore.session.get_session().get_service_model("ec2")
    request, instance_types = service.operation_model("RunInstances").input_shape, service.shape_for("InstanceType")
    for name, node in written["available_node_types"].items():
        config = node["node_config"]
        faults = ParamValidator().validate(config | {"MinCount": 1, "MaxCount": 1}, request).generate_report()
        assert faults == "", name
        assert config["InstanceType"] in instance_types.enum, name


def test_ray_up_opens_ssh_and_nothing_else(
    prepared: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    moto = pytest.importorskip("moto")
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "none")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    with moto.mock_aws():
        bootstrapped = bootstrap_aws(prepared)
        ec2 = boto3.client("ec2", region_name=prepared["provider"]["region"])
        groups = ec2.describe_security_groups(GroupNames=["neuroray"])["SecurityGroups"]
    assert [group["GroupName"] for group in groups] == ["neuroray"]
    for node in bootstrapped["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"] == [groups[0]["GroupId"]]
    from_outside = [rule for rule in groups[0]["IpPermissions"] if not rule["UserIdGroupPairs"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in from_outside] == [(22, 22)]


def test_no_work_lands_on_the_head(written: dict[str, Any]) -> None:
    head = written["available_node_types"][written["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert head["max_workers"] == 0


def test_no_worker_costs_money_while_idle(written: dict[str, Any]) -> None:
    workers = [node for name, node in written["available_node_types"].items() if name != written["head_node_type"]]
    assert all(node["min_workers"] == 0 for node in workers)
    assert not written["provider"]["cache_stopped_nodes"]
    assert any(node["resources"].get("GPU") for node in workers)
    assert any(not node["resources"].get("GPU") for node in workers)


def test_spot_is_tried_before_on_demand(written: dict[str, Any]) -> None:
    nodes = written["available_node_types"]
    for kind in ("cpu", "gpu"):
        spot, on_demand = nodes[f"{kind}_spot"], nodes[f"{kind}_on_demand"]
        assert spot["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert "InstanceMarketOptions" not in on_demand["node_config"]
        assert spot["labels"]["ray.io/market-type"] == "spot"
        assert on_demand["labels"]["ray.io/market-type"] == "on-demand"
        assert spot["priority"] > on_demand["priority"]
        # Only then do they stand in for one another.
        assert spot["resources"] == on_demand["resources"]


def test_resources_are_those_of_the_instance(written: dict[str, Any]) -> None:
    # Sizes from the names: an xlarge has 4 vCPUs, and an n-xlarge n times as many; g6.4xlarge carries one L4.
    for name, node in written["available_node_types"].items():
        if name == written["head_node_type"]:
            continue
        family, size = node["node_config"]["InstanceType"].split(".")
        assert node["resources"]["CPU"] == 4 * int(size.removesuffix("xlarge"))
        assert node["resources"].get("GPU", 0) == (1 if family == "g6" else 0)


def test_every_node_asks_for_the_token(written: dict[str, Any]) -> None:
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in written[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    for command in starts:
        assert f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={TOKEN_FILE} ray start" in command
    assert "-e RAY_AUTH_MODE=token" in written["docker"]["run_options"]
    assert f"-e RAY_AUTH_TOKEN_PATH={TOKEN_FILE}" in written["docker"]["run_options"]
    assert str(Path(TOKEN_FILE).parent) in written["file_mounts"]


def test_the_dashboard_listens_on_loopback_only(written: dict[str, Any]) -> None:
    (start,) = [command for command in written["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in (ROOT / "ray_cluster.yaml").read_text()
    assert "ray-client-server-port" not in start


def test_images_carry_the_ray_that_is_pinned(written: dict[str, Any]) -> None:
    images = [written["docker"]["image"]]
    images += [node["docker"]["worker_image"] for node in written["available_node_types"].values() if "docker" in node]
    python = (ROOT / ".python-version").read_text().strip().replace(".", "")
    assert len(images) == 3
    for image in images:
        assert image.startswith(f"rayproject/ray:{version('ray')}-py{python}-")
    for node in written["available_node_types"].values():
        assert bool(node["resources"].get("GPU")) == node.get("docker", {}).get("worker_image", "").endswith("-gpu")


def test_nodes_install_what_is_pinned(written: dict[str, Any]) -> None:
    install = " ".join(written["setup_commands"])
    for remote, local in written["file_mounts"].items():
        if not local.startswith("~"):
            assert (ROOT / local).is_file()
            assert remote in install
    assert "--constraint /home/ray/.neuroray/constraints.txt" in install
