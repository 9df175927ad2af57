import jax
import pytest

from experiments.harness.run_settings import DeviceSettings


def test_devices_are_one_hosts(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="there are 2 processes: let --coordinator auto join them"):
        DeviceSettings().place()
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert len(DeviceSettings().place().devices) == 8
    assert len(DeviceSettings(devices=8).place().devices) == 8
    with pytest.raises(ValueError, match="devices must be all 8 of the 2 processes, got 4"):
        DeviceSettings(devices=4).place()


def test_parameters_are_not_spread_by_pmap():
    assert len(DeviceSettings(devices=4, parallel="pmap").place().devices) == 4
    with pytest.raises(ValueError, match="fsdp is for parallel mesh, got 2 for pmap"):
        DeviceSettings(fsdp=2, parallel="pmap").place()
